"""Each rule by which two texts are the same answer, as docs/VERIFIERS.md lists them."""

import re
from pathlib import Path

import pytest

from magistral_jax.verifier.math.equal import math_equal, same_answer

DOC = Path(__file__).parents[3] / "docs" / "VERIFIERS.md"


def rules():
    """(rule, reference, answers that are the same, answers that are not) of each row."""
    section = DOC.read_text("utf-8").split("## When two texts are the same answer")[1]
    found = []
    for line in section.split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] != "rule":
            found.append((cells[0], *(re.findall(r"`([^`]+)`", cell) for cell in cells[1:])))
    return found


def test_the_table_is_read():
    assert len(rules()) >= 20 and all(len(rule[1]) == 1 and rule[2] and rule[3] for rule in rules())


@pytest.mark.parametrize(
    ("rule", "gold", "same", "other"), rules(), ids=lambda value: str(value)[:30]
)
def test_a_rule_does_what_the_table_says(rule, gold, same, other):
    assert [text for text in same if not same_answer(gold[0], text)] == []
    assert [text for text in other if same_answer(gold[0], text)] == []


PROBLEM = "Find all real roots of $x^2 - 3x + 2$. Enter the solutions separated by commas."


@pytest.mark.parametrize(
    ("problem", "gold", "answer", "is_same"),
    [
        (PROBLEM, "1, 2", "2, 1", True),
        (PROBLEM, "1, 2", r"\{2, 1\}", True),
        (PROBLEM, "1, 1, 2", "1, 2, 2", False),  # as often as it is there
        (PROBLEM, "(1, 2)", "(2, 1)", False),
        (PROBLEM + " List them in increasing order.", "1, 2", "2, 1", False),
        ("Find a and b, respectively, for all real x.", "1, 2", "2, 1", False),
        ("What is the pair?", "1, 2", "2, 1", False),
        ("Enter the ordered pair $(r, k)$.", "(4, 12)", "k = 12, r = 4", True),
        ("Enter the ordered pair $(k, r)$.", "(4, 12)", "k = 12, r = 4", False),
        ("Find $pq$.", "35", "pq = 35", True),
        ("Find $p$.", "35", "pq = 35", False),
        ("Solve $2x = 10$ for what $2x$ says.", "5", "2x = 5", False),  # it gives it a value
        ("Find $x$ such that $a < b$ and $x > 0$.", "5", "x >= 5", False),
        ("This is not hard. Find x.", "5", "not = 5", False),
        ("Solve $f(x)=x$ for $f(x)$.", "f(x)=x", "f(x)=x", True),
        ("When does $AB = BA$ hold?", "AB = BA", "AB = BA", True),
        ("Find the values of $b$ and $c$, separated by commas.", "1, 2", "2, 1", False),
        ("For all x, find a.", "1, 2", "2, 1", False),
        ("Determine all real numbers $a, b$ and $c$ for which", "1, 2, 3", "3, 2, 1", False),
        ("Find all real solutions to the system $x + y = 3$.", "1, 2", "2, 1", False),
        ("Compute the area and perimeter, separated by commas.", "12, 20", "20, 12", False),
        ("Enter the minimum and maximum of all values.", "1, 5", "5, 1", False),
        ("Find $(x,y)$ given $P=(y,x)$.", "(1, 2)", "x = 1, y = 2", True),
        ("Find $(x,y)$ given $P=(y,x)$.", "(2, 1)", "x = 1, y = 2", False),
    ],
)
def test_the_words_of_a_problem_decide(problem, gold, answer, is_same):
    assert math_equal(gold, answer, problem=problem) is is_same


@pytest.mark.parametrize(
    ("gold", "text", "is_same"),
    [
        (r"17\%", r"<think></think>The answer is $\boxed{17}\%$.", True),
        ("17", r"<think></think>So it is \boxed{17} percent.", True),
        ("0.18", r"<think></think>\boxed{17}\%", False),
        ("5", r"<think>It is \boxed{5}.", False),  # thoughts that never close
        ("5", "<think>a</think><think>It is \\boxed{5}.", False),
    ],
)
def test_what_stands_behind_the_box_and_where_the_box_stands(gold, text, is_same):
    assert math_equal(gold, text, "text") is is_same
