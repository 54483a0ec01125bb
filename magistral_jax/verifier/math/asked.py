r"""What the words of a problem say about the form of its answer.

- A bare list has no order where the problem asks for all of something ("all solutions", "separated
  by commas") and for no order ("in increasing order", "respectively"). Else the order counts.
- A tuple that the problem writes, (r, k), gives the order in which r = 4, k = 12 is (4, 12).
- An expression that the problem writes by itself, and gives no value, may be repeated before the
  value: pq = 35.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

_THINGS = (
    r"(?:solutions?|values?|roots?|zero(?:e?s)?|integers?|numbers?|primes?|reals?|pairs?|triples?"
    r"|points?|angles?|elements?|functions?|polynomials?|options?|possibilities|factors|divisors)\b"
)
_REQUEST = r"\b(?:find|determine|list|give|enter|state|compute|identify|solve|what are|what is)\b"
_ALL = re.compile(
    r"separated by (?:a )?commas?|\bin any order\b"
    rf"|{_REQUEST}[^.?!,;]{{0,40}}?\b(?<!for )all\b[^.?!,;]{{0,40}}?\b{_THINGS}"
    r"|\bfor (?:what|which) (?:[a-z]+ ){0,6}(?:values|integers|numbers)\b"
    rf"|{_REQUEST} (?:all )?the (?:[a-z]+ )?"
    r"(?:solutions|roots|zero(?:e?s)|possibilities|factors|divisors|primes)\b",
    re.IGNORECASE,
)
_NAME = r"\$?\\?[A-Za-z]\w{0,5}(?:\([^()]{1,9}\))?\$?"
_ORDER = re.compile(
    r"(?<!any )(?<!some )\border(?:ed|ings?)?\b(?! (?:pairs?|triples?|quadruples?|tuples?))"
    r"|\brespectively\b|\bsort(?:ed)?\b|\brank(?:ings?|ed)?\b|\b(?:max|min)imum and\b"
    r"|\b(?:in|de)creasing\b|\b(?:a|de)scending\b|\balphabetical"
    r"|\bfrom (?:the )?(?:least|smallest|lowest|greatest|largest|highest|left|first|top|most)\b"
    r"|\bsequence\b|\bnext (?:\w+ )?(?:terms?|numbers?)\b"
    r"|\bfirst\b[^.?!]{0,40}\b(?:then|second|followed)\b"
    # Several names, each with a value of its own.
    rf"|(?:\b(?:values?|of|for)|{_REQUEST}) (?:the )?(?:{_NAME},? ){{1,6}}and {_NAME}(?![A-Za-z])",
    re.IGNORECASE,
)
_TUPLE = re.compile(
    r"(?<![A-Za-z}_\])])\(([A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?){1,9})\)"
)
_FORMULA = re.compile(r"\$+([^$]{1,200})\$+|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]", re.DOTALL)
_NOISE = re.compile(r"\s|\\left|\\right|\\[,;! ]")
_MOST = 20_000


@dataclass(frozen=True)
class Asked:
    """What is known of a problem; by default nothing."""

    is_unordered: bool = False
    orders: tuple[tuple[str, ...], ...] = ()
    """The tuples of names that the problem writes."""
    formulas: frozenset[str] = frozenset()
    """What the problem writes as formulas by themselves, without blanks."""

    def writes(self, expression: str) -> bool:
        """Whether the problem writes this expression by itself, and gives it no value."""
        plain = _NOISE.sub("", expression).strip("$")
        given = any(formula.startswith(plain + "=") for formula in self.formulas)
        return len(plain) > 1 and plain in self.formulas and not given


NOTHING = Asked()


@lru_cache(64)
def asked(problem: str) -> Asked:
    """What the words of a problem say; linear in the text."""
    problem = problem[-_MOST:]
    if not problem.strip():
        return NOTHING
    orders = dict.fromkeys(
        tuple(name.strip() for name in names.split(",")) for names in _TUPLE.findall(problem)
    )
    sets = [frozenset(order) for order in orders]
    return Asked(
        is_unordered=bool(_ALL.search(problem)) and not _ORDER.search(problem),
        # Of the same names in two orders neither is known to be meant.
        orders=tuple(order for order in orders if sets.count(frozenset(order)) == 1),
        formulas=frozenset(
            _NOISE.sub("", next(filter(None, found))).strip(".,;:?")
            for found in _FORMULA.findall(problem)
        ),
    )
