"""Whether two answers are the same, by their trees, by values at points (Arb) and by algebra.

This module loads what takes time to load; import it only when `equal.settle` cannot tell. SymPy
takes longer still, and is loaded when points first find two expressions equal.
"""

from dataclasses import replace
from importlib import import_module

from magistral_jax.verifier.lazy import Loader
from magistral_jax.verifier.math.asked import NOTHING, Asked
from magistral_jax.verifier.math.equal import compared
from magistral_jax.verifier.math.nodes import Node
from magistral_jax.verifier.math.numeric import Confirm, numeric_judge

ALGEBRA = "magistral_jax.verifier.math.algebra"


def same_value(
    gold: str, candidate: str, load: Loader = import_module, known: Asked = NOTHING
) -> bool:
    """True only if both texts are read and are the same answer. May raise what parsers raise."""

    def confirm(a: Node, b: Node) -> bool | None:
        return load(ALGEBRA).same(a, b)

    return _same(gold, candidate, confirm, known)


def warm() -> None:
    """Pay once, before a worker forks, for what the first comparison loads and caches."""
    _same(r"\sqrt{8}", r"2\sqrt{2}", lambda a, b: None, NOTHING)


def _same(gold: str, candidate: str, confirm: Confirm, known: Asked) -> bool:
    judge = replace(numeric_judge(confirm), asked=known)
    return compared(gold, candidate, judge) is True
