r"""What the words of a problem say about the form of its answer.

- A bare list has no order where the problem asks for all of something ("all solutions", "separated
  by commas") and for no order ("in increasing order", "respectively"). Else the order counts.
- A tuple that the problem writes, (r, k), gives the order in which r = 4, k = 12 is (4, 12).
- An expression that the problem writes may be repeated before the value: m + n = 113.
"""

import re
from dataclasses import dataclass

_ALL = re.compile(
    r"separated by (?:a )?commas?|\b(?:all|every|each|any)\b[^.?!]{0,60}\b(?:solutions?|values?"
    r"|roots?|zeros?|zeroes|integers?|numbers?|primes?|possible|reals?|pairs?|triples?|points?|angles?"
    r"|elements?|functions?|polynomials?|options?)\b|\b(?:solutions|roots|zeros) of\b"
    r"|\bfor (?:what|which) (?:[a-z]+ )*(?:values|integers|numbers)\b|\bwhat are the\b",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\border(?:ed)?\b(?! (?:pairs?|triples?|quadruples?|tuples?))|\brespectively\b|\bsort(?:ed)?\b"
    r"|\b(?:in|de)creasing\b|\b(?:a|de)scending\b|\balphabetical|\bfrom (?:the )?(?:least|smallest"
    r"|lowest|greatest|largest|highest|left|first|top)\b|\bsequence\b|\bnext (?:\w+ )?(?:terms?"
    r"|numbers?)\b|\bfirst\b[^.?!]{0,40}\b(?:then|second|followed)\b|\brank\b",
    re.IGNORECASE,
)
_TUPLE = re.compile(r"\(([A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?)+)\)")
_NOISE = re.compile(r"\s|\$|\\left|\\right|\\[,;! ]")
_MOST = 20_000


@dataclass(frozen=True)
class Asked:
    """What is known of a problem; by default nothing."""

    is_unordered: bool = False
    orders: tuple[tuple[str, ...], ...] = ()
    """The tuples of names that the problem writes."""
    text: str = ""
    """The problem without blanks, dollar signs and what only stretches brackets."""

    def writes(self, expression: str) -> bool:
        """Whether the problem writes this expression, spelled the same."""
        plain = _NOISE.sub("", expression)
        return len(plain) > 1 and plain in self.text


NOTHING = Asked()


def asked(problem: str) -> Asked:
    """What the words of a problem say; linear in the text."""
    problem = problem[-_MOST:]
    if not problem.strip():
        return NOTHING
    orders = tuple(
        tuple(name.strip() for name in names.split(",")) for names in _TUPLE.findall(problem)
    )
    return Asked(
        is_unordered=bool(_ALL.search(problem)) and not _ORDER.search(problem),
        orders=tuple(dict.fromkeys(orders)),
        text=_NOISE.sub("", problem),
    )
