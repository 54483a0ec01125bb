"""Whether two answers are the same, by their trees and by values at points (mpmath).

This module loads what takes time to load; import it only when `equal.settle` cannot tell.
"""

from magistral_jax.verifier.math.equal import compared
from magistral_jax.verifier.math.numeric import numeric_judge


def same_value(gold: str, candidate: str) -> bool:
    """True only if both texts are read and are the same answer. May raise what parsers raise."""
    return compared(gold, candidate, numeric_judge()) is True


def warm() -> None:
    """Pay once, before a worker forks, for what the first comparison loads and caches."""
    same_value(r"\sqrt{8}", r"2\sqrt{2}")
