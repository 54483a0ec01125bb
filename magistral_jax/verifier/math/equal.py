r"""Whether an answer is the reference answer: text, labels, exact numbers, forms, then points.

Precision first: what is not understood equals only its own text, and a wrong no is preferred to a
wrong yes. Beyond the decisions in structure.py, statements.py and grammar.py:
- a percentage is its value: 50\% = 0.5 = 1/2, and 50\% is not 50;
- decimals are exact: 0.33 is not 1/3; 0.333... and 0.\overline{3} are;
- 1,000 (no space) is a thousand outside brackets; 1, 000 and (1,000) are lists;
- leading zeros mean nothing in an answer that is one whole number (049 = 49, as contests write
  it), and make anything else unreadable;
- an answer may be followed by its rounded value (\frac23 \approx 0.667; statements.py says how
  near), or consist of steps between constants that are exactly equal (2 + 3 = 5); a rounded value
  alone is no answer;
- a hedge (4 or 5) is a list of two, and never equals one answer;
- \log without a base may mean ten or e, so \log 100 equals neither 2 nor \ln 100;
- sums and products between two numbers are written out; integrals, limits and derivatives are not
  evaluated.
"""

import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from typing import Literal

from magistral_jax.verifier.format import last_box
from magistral_jax.verifier.lazy import Loader, NotLoaded
from magistral_jax.verifier.math.asked import NOTHING, Asked, asked
from magistral_jax.verifier.math.caps import Unreadable, is_bounded
from magistral_jax.verifier.math.clean import clean, readings, spelled
from magistral_jax.verifier.math.exact import exact
from magistral_jax.verifier.math.extract import final_answer, final_answers
from magistral_jax.verifier.math.grammar import parse
from magistral_jax.verifier.math.judge import Judge, Verdict, either
from magistral_jax.verifier.math.labels import same_label
from magistral_jax.verifier.math.nodes import Constant, Node, Symbol, replaced, walk
from magistral_jax.verifier.math.structure import same_tree

Mode = Literal["answer", "text"]


PARSERS = "magistral_jax.verifier.math.symbolic"


def math_equal(
    gold: str,
    pred: str,
    mode: Mode = "answer",
    load: Loader = import_module,
    problem: str = "",
) -> bool:
    """True only if `pred` gives the answer `gold`. Never raises for any two texts.

    In mode "answer" `pred` is the text inside the box. In mode "text" it is a whole output, and
    `gold` may be one, or hold a box. `problem` is the problem's text, whose words decide whether
    the order of a list counts (asked.py).
    """
    if mode == "text":
        if (boxed := last_box(gold)) is not None:
            gold = boxed
        elif "\n" in gold or len(gold) > 200:
            gold = final_answer(gold) or gold
        return any(same_answer(gold, found, load, problem) for found in final_answers(pred))
    return same_answer(gold, pred, load, problem)


def same_answer(gold: str, candidate: str, load: Loader = import_module, problem: str = "") -> bool:
    """True only if both texts are the same answer. The pool bounds its time.

    Raises nothing for any two texts but what `load` raises for a module that is not there yet.
    """
    try:
        known = asked(problem)
        if _same(gold, candidate, load, known):
            return True
        value = _value_of_asked(gold, candidate, known)
        return value is not None and _same(gold, value, load, known)
    except (KeyboardInterrupt, SystemExit, NotLoaded, ImportError):
        raise
    except BaseException:  # RecursionError, MemoryError, and what libraries derive from neither
        return False


def _same(gold: str, candidate: str, load: Loader, known: Asked) -> bool:
    verdict = settle(gold, candidate, known)
    if verdict is not None:
        return verdict
    return load(PARSERS).same_value(gold, candidate, load, known)


_HALF_SIGN = re.compile(r"(?:[<>!:]|\\(?:not|ne|neq|ge|geq|le|leq))\s*$")


def _value_of_asked(gold: str, candidate: str, known: Asked) -> str | None:
    """The value behind an expression that the problem writes: 35 of `pq = 35`; else None."""
    expression, sign, value = candidate.partition("=")
    if not sign or "=" in value + gold or not value.strip() or _HALF_SIGN.search(expression):
        return None
    return value if known.asks_for(expression) else None


def settle(gold: str, candidate: str, known: Asked = NOTHING) -> bool | None:
    """What text, labels, exact numbers and forms can tell; None if values at points must."""
    if not (is_bounded(gold) and is_bounded(candidate)):
        return False
    a, b = clean(gold), clean(candidate)
    if spelled(a) == spelled(b):
        return spelled(a) != ""
    label = same_label(a, b)
    if label is not None:
        return label
    return compared(gold, candidate, replace(_EXACT, asked=known))


def compared(gold: str, candidate: str, judge: Judge) -> Verdict:
    """The judge's verdict on the two trees, over the readings that the texts allow."""
    trees_a, trees_b = _trees(clean(gold)), _trees(clean(candidate))
    if any(_IMAGINARY in walk(a) for a in trees_a):
        trees_b = tuple(_with_unit(b) for b in trees_b)
    if not trees_a or not trees_b:
        return judge.unknown
    return either(_compared(a, b, judge) for a in trees_a for b in trees_b)


_IMAGINARY = Constant("i")


def _with_unit(node: Node) -> Node:
    """A tree that writes I, and no i, for the imaginary unit."""
    return node if _IMAGINARY in walk(node) else replaced(node, Symbol("I"), _IMAGINARY)


def is_readable_gold(gold: str) -> bool:
    """True if there is a reference to compare with: some text within the caps."""
    return is_bounded(gold) and spelled(clean(gold)) != ""


def _compared(a: Node, b: Node, judge: Judge) -> Verdict:
    try:
        return same_tree(a, b, judge)
    except Unreadable:
        return judge.unknown


@lru_cache(256)  # both stages read both texts, and a group's answers have one reference
def _trees(cleaned: str) -> tuple[Node, ...]:
    trees: list[Node] = []
    for reading in readings(cleaned):
        try:
            trees.append(parse(reading))
        except Unreadable:
            continue
    return tuple(trees)


def _exactly_equal(a: Node, b: Node) -> Verdict:
    left, right = exact(a), exact(b)
    return None if left is None or right is None else left == right


def _exact_place(node: Node) -> Fraction:
    value = exact(node)
    if value is None:
        raise Unreadable("no exact place")
    return value


_EXACT = Judge(
    equal=_exactly_equal,
    proportional=lambda f, g, is_positive: None,
    place=_exact_place,
    unknown=None,
)
