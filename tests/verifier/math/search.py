r"""A search for an answer that is equal to two references that differ: it would end a run.

Answers are drawn from the grammar, seeded with what reaches extreme values on the way: poles,
cancellations, saturation, 0 : 0, infinities, empty sums, values on a part of the domain. No two of
the references below are the same by any rule of docs/VERIFIERS.md. An answer that equals one of
them is held against its neighbours as well: the reference moved by a hundred-thousandth.

    python tests/verifier/math/search.py --pairs 1000000 --seed 1

With --attacks it holds written answers against references instead: `constants.jsonl`, by an author
who had not seen the grader. Its first line holds references, each other line a kind, a mode, an
answer, and the references that it must not equal.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from magistral_jax.verifier.math.equal import math_equal, same_answer

GOLDS = (
    "5",
    "-3",
    r"\frac{3}{7}",
    r"\sqrt{2}",
    "0",
    r"\pi",
    "1000000",
    "(1, 2)",
    "[0, 4)",
    r"\{1, 2, 3\}",
    r"(-\infty, 7) \cup (8, 9]",
    "x^2 + 1",
    r"\frac{1}{x}",
    "y = 2x + 1",
    "x > 2",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"37\%",
    "3 + 4i",
    "3 : 4",
    r"\ln 3",
)
ZEROS = (
    *("0", r"\sin \pi", r"\ln 1", r"(1-1)", r"\cos\frac{\pi}{2}", r"(\sqrt{2}^2 - 2)", "(x - x)"),
    *(r"(\sin^2 x + \cos^2 x - 1)", r"\tan \pi", r"e^{-10^6}", "10^{-300}", r"(1-\tanh(1000))"),
    *(
        r"(2^{100}-2^{100})",
        r"\sum_{k=1}^{3} 0",
        r"\lfloor 0.5 \rfloor",
        r"\frac{0}{5}",
        r"(i^2+1)",
    ),
    *(r"(\frac{\pi}{2}-\arctan(10^{60}))", r"(\sqrt{x^2}-|x|)", r"\binom{3}{5}"),
)
HUGE = (
    *(r"\tan\frac{\pi}{2}", r"\cot \pi", r"\sec\frac{\pi}{2}", r"\csc 0", r"\ln 0", r"\infty"),
    *(r"10^{300}", r"e^{1000}", r"\frac{1}{\sin \pi}", r"(-1)!", r"0^{-1}", r"1000!", r"9^{9^9}"),
    *(r"\coth 0", r"\log_1 5", r"\frac{1}{\sqrt{2}^2-2}", r"e^{e^{e^{5}}}", r"10^{50}"),
)
PLAIN = (*GOLDS[:7], "1", "2", "7", "10", r"\frac12", "x", "y", "n", "e", "i", "0.5", "-1", "4")
FUNCTIONS = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh"),
    *("tanh", "coth", "ln", "log", "exp", "arsinh", "artanh"),
)
MOVED = "100001"
"""A neighbour is the reference times this over a hundred thousand, or plus that less one."""


def expression(dice: random.Random, depth: int) -> str:
    """A random formula; the deeper, the likelier to be a seed."""
    if depth == 0 or dice.random() < 0.2:
        return dice.choice(dice.choice((ZEROS, HUGE, PLAIN, PLAIN)))
    if dice.random() < 0.25:
        return extreme(dice)
    a, b = expression(dice, depth - 1), expression(dice, depth - 1)
    match dice.randrange(14):
        case 0 | 1:
            return f"{a} + {b}"
        case 2:
            return f"{a} - ({b})"
        case 3 | 4:
            return rf"({a}) \cdot ({b})"
        case 5 | 6:
            return rf"\frac{{{a}}}{{{b}}}"
        case 7:
            return f"({a})^{{{b}}}"
        case 8:
            return rf"\sqrt{{{a}}}"
        case 9:
            return rf"\sqrt[3]{{{a}}}"
        case 10:
            return f"|{a}|"
        case 11:
            return rf"\{dice.choice(('max', 'min'))}({a}, {b})"
        case _:
            return rf"\{dice.choice(FUNCTIONS)}({a})"


def extreme(dice: random.Random) -> str:
    """What has no value, loses it, or hides a difference."""
    zero, other, huge, more = (dice.choice(kind) for kind in (ZEROS, ZEROS, HUGE, HUGE))
    plain = dice.choice(PLAIN)
    return dice.choice(
        (
            rf"({zero}) \cdot {huge}",
            rf"\frac{{{zero}}}{{{other}}}",
            f"({huge} - {more})",
            f"({huge} - {huge})",
            rf"\frac{{{huge}}}{{{more}}}",
            f"({huge} + {plain} - {huge})",
            f"({plain} + {zero})",
            f"({zero})^{{{other}}}",
            rf"({plain} + 0 \cdot \sqrt{{x - 10}})",
        )
    )


def answer(dice: random.Random) -> str:
    """A random answer: a formula, or a form that holds some."""
    part = lambda: expression(dice, dice.randrange(4))  # noqa: E731
    forms = {
        "{}": 8,
        "({}, {})": 2,
        "[{}, {})": 2,
        r"\{{{}, {}, {}\}}": 2,
        r"(-\infty, {}) \cup ({}, {}]": 1,
        "y = {}": 2,
        "{} = {}": 2,
        "x > {}": 1,
        "{} > {}": 1,
        r"\begin{{pmatrix}} {} & {} \\ {} & {} \end{{pmatrix}}": 2,
        r"({})\%": 1,
        "{} : {}": 3,
        r"{} \approx {}": 1,
        r"\pm {}": 1,
        r"({})^\circ": 1,
        r"{} \text{{ or }} {}": 1,
        r"\sum_{{k=1}}^{{3}} ({})": 1,
    }
    form = dice.choices(list(forms), list(forms.values()))[0]
    return form.format(*(part() for _ in range(form.count("{}") + 1)))


def neighbours(gold: str) -> Iterator[str]:
    """References that differ from this one by a hundred-thousandth, where that is easily said."""
    if gold in GOLDS[:7] or gold in ("3 + 4i", r"\ln 3", "x^2 + 1", r"\frac{1}{x}"):
        yield rf"\frac{{{MOVED}}}{{100000}} \cdot ({gold}) + \frac{{1}}{{100000}}"


@dataclass
class Found:
    """What a search has seen."""

    pairs: int = 0
    hits: list[tuple[str, str]] = field(default_factory=list)
    """Answers that equal one reference, as some must."""
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    """Answers that equal two."""
    slowest: tuple[float, str] = (0.0, "")


def search(pairs: int, seed: int) -> Found:
    """Compare random answers with every reference, at least `pairs` comparisons."""
    dice, found = random.Random(seed), Found()
    while found.pairs < pairs:
        text = answer(dice)
        began = time.process_time()
        equal = [gold for gold in GOLDS if same_answer(gold, text)]
        found.pairs += len(GOLDS)
        found.slowest = max(found.slowest, (time.process_time() - began, text))
        for gold in equal[:1]:
            found.hits.append((text, gold))
            equal += [near for near in neighbours(gold) if same_answer(near, text)]
        if len(equal) > 1:
            found.faults.append((text, equal[0], equal[1]))
    return found


def attacks(path: Path) -> list[tuple[str, str, str]]:
    """Kind, answer and reference of each written attack that is paid; prints how many there are."""
    golds, *rows = map(json.loads, path.read_text("utf-8").splitlines())
    print(
        f"{sum(len(numbers) for *_, numbers in rows)} attacks of {len({r[0] for r in rows})} kinds"
    )
    return [
        (kind, text, golds[number])
        for kind, mode, text, numbers in rows
        for number in numbers
        if math_equal(golds[number], text, mode)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attacks", type=Path)
    args = parser.parse_args()
    if args.attacks:
        faults = attacks(args.attacks)
    else:
        began = time.monotonic()
        found = search(args.pairs, args.seed)
        faults = found.faults
        print(
            f"{found.pairs} pairs, seed {args.seed}, in {time.monotonic() - began:.0f} s: "
            f"{len(found.hits)} answers equal one reference, {len(faults)} equal two; "
            f"slowest answer {found.slowest[0]:.2f} s"
        )
    for fault in faults:
        print("paid:", *fault, sep="\n  ")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
