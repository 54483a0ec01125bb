r"""What the words of a problem say about the form of its answer.

- A bare list has no order where the problem asks for all of something ("all solutions", "separated
  by commas") and for no order ("in increasing order", "respectively"). Else the order counts.
- A tuple that the problem writes, (r, k), gives the order in which r = 4, k = 12 is (4, 12).
- An expression that the problem asks for may be repeated before its value: pq = 35.
"""

import re
from collections.abc import Iterator
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
_NAME = r"\$?[A-Za-z](?:_\{?\w\}?)?(?:\([^()]{1,9}\))?,?\$?,?"
_QUANTITY = (
    r"\b(?:sum|product|number|area|perimeter|mean|smallest|largest|greatest|least|quotient|degree"
    r"|radius|minimum|maximum)\b(?: [a-z]+){0,3} and (?:the )?[a-z]+"
)
_ORDER = re.compile(
    r"(?<!any )(?<!some )\border(?:ed|ings?)?\b(?! (?:pairs?|triples?|quadruples?|tuples?))"
    r"|\brespectively\b|\bsort(?:ed)?\b|\brank(?:ings?|ed)?\b|\bsolutions? (?:to|of) the system\b"
    r"|\b(?:in|de)creasing\b|\b(?:a|de)scending\b|\balphabetical"
    r"|\bfrom (?:the )?(?:least|smallest|lowest|greatest|largest|highest|left|first|top|most)\b"
    r"|\bon the (?:left|right)\b|\bsequence\b|\bnext (?:\w+ )?(?:terms?|numbers?)\b"
    r"|\bfirst\b[^.?!]{0,40}\b(?:then|second|followed)\b"
    # Several names, or several quantities, each with a value of its own.
    rf"|(?:\b(?:values?|of|for)|{_REQUEST}) (?:all |the |possible |real |positive |integer ){{0,4}}"
    rf"(?:numbers |integers |constants |values of |digits )?(?:{_NAME} ){{1,6}}and {_NAME}(?!\w)"
    rf"|{_QUANTITY}",
    re.IGNORECASE,
)
_TUPLE = re.compile(
    r"(?<![A-Za-z}_\])])\(([A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?){1,9})\)"
)
_FORMULA = re.compile(r"\${1,2}([^$]{1,200})\$|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]", re.DOTALL)
_NOISE = re.compile(r"\s|\\left|\\right|\\[,;! ]")
_MOST = 20_000


@dataclass(frozen=True)
class Asked:
    """What is known of a problem; by default nothing."""

    is_unordered: bool = False
    orders: tuple[tuple[str, ...], ...] = ()
    """The tuples of names that the problem writes."""
    formulas: frozenset[str] = frozenset()
    """What the problem asks for in formulas by themselves, without blanks."""

    def asks_for(self, expression: str) -> bool:
        """Whether the problem asks for the value of this expression."""
        return len(plain := _NOISE.sub("", expression).strip("$")) > 1 and plain in self.formulas


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
        formulas=frozenset(_requested(problem)),
    )


def _requested(problem: str) -> Iterator[str]:
    """The formulas behind a request in the same sentence, find $m + n$, which have no value yet."""
    found = [
        (match.start(), _NOISE.sub("", next(filter(None, match.groups()))).strip(".,;:?"))
        for match in _FORMULA.finditer(problem)
    ]
    given = {formula.partition("=")[0] for _, formula in found if "=" in formula}
    for start, formula in found:
        before = re.split(r"[.?!]\s", problem[max(0, start - 80) : start])[-1]
        if formula not in given and re.search(_REQUEST, before, re.IGNORECASE):
            yield formula
