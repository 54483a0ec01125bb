r"""What the words of a problem say about the form of its answer.

- A bare list has no order where the problem asks for all of something ("all solutions", "separated
  by commas") and for no order ("in increasing order", "respectively"). Else the order counts.
- A tuple that the problem writes, (r, k), gives the order in which r = 4, k = 12 is (4, 12).
- An expression that the problem writes may be repeated before the value: m + n = 113.
"""

import re
from dataclasses import dataclass

_THINGS = (
    r"(?:solutions?|values?|roots?|zero(?:e?s)?|integers?|numbers?|primes?|reals?|pairs?|triples?"
    r"|points?|angles?|elements?|functions?|polynomials?|options?|possibilities|factors|divisors)\b"
)
_ALL = re.compile(
    r"separated by (?:a )?commas?|\bin any order\b"
    r"|\b(?<!for )all\b(?: of)?(?: the)?(?: possible)?[^.?!,;]{0,40}?\b"
    + _THINGS
    + r"|\bfor (?:what|which) (?:[a-z]+ )*(?:values|integers|numbers)\b"
    r"|\b(?:what are|find|determine|list|give|enter|state) (?:all )?the (?:[a-z]+ )?"
    r"(?:solutions|roots|zero(?:e?s)|possibilities|factors|divisors|primes)\b",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"(?<!any )(?<!some )\border(?:ed)?\b(?! (?:pairs?|triples?|quadruples?|tuples?))"
    r"|\brespectively\b|\bsort(?:ed)?\b"
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
