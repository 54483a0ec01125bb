"""SymPy beside the balls: what it proves, what it leaves open, and that its no is heard."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from magistral_jax.verifier.math import algebra
from magistral_jax.verifier.math.clean import clean
from magistral_jax.verifier.math.equal import same_answer
from magistral_jax.verifier.math.grammar import parse
from magistral_jax.verifier.math.symbolic import ALGEBRA


def same(a, b):
    return algebra.same(parse(clean(a)), parse(clean(b)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt2+\sqrt3", r"\sqrt{5+2\sqrt6}"),
        (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1"),  # odd roots of negative numbers are real
        (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4}"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\sin^2 x", r"1-\cos^2 x"),
        (r"\ln 20", r"\ln 4 + \ln 5"),
        (r"\frac{(2n)!}{(n!)^2}", r"\binom{2n}{n}"),
        (r"\ln(2+\sqrt3)", r"\cosh^{-1} 2"),
    ],
)
def test_it_proves_what_is_equal(a, b):
    assert same(a, b) is True


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("(x+1)^2", "x^2+2x+1.00000000000000000000000000000000000001"),
        (r"\sqrt2+\sqrt3", r"\sqrt{10}"),
        (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4} + 10^{-40}"),
    ],
)
def test_it_disproves_what_is_not(a, b):
    assert same(a, b) is False


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"e^{\pi\sqrt{163}}", "262537412640768744"),
        (r"\arctan\frac12+\arctan\frac13", r"\frac{\pi}{4}"),
        (r"\lfloor\sqrt{20}\rfloor", "4"),
        ("(x+y)^{1000}", "(y+x)^{1000}+0"),
        (r"9^{9^{9}}", r"9^{9^{9}}"),
    ],
)
def test_what_it_cannot_decide_it_says_so_in_time(a, b):
    began = time.process_time()
    assert same(a, b) is None
    assert time.process_time() - began < algebra.BUDGET_S + 1


def test_a_comparison_stops_at_its_budget_of_cpu_time():
    with pytest.raises(algebra._OverBudget), algebra._budget(0.05):
        while True:
            pass


def test_beside_the_main_thread_nothing_is_decided():
    said = []
    thread = threading.Thread(target=lambda: said.append(same("(x+1)^2", "x^2+2x+1")))
    thread.start()
    thread.join(30)
    assert said == [None]


@pytest.mark.parametrize(("verdict", "is_same"), [(True, True), (None, True), (False, False)])
def test_its_no_is_heard_and_its_silence_is_not(verdict, is_same):
    def load(name):
        if name == ALGEBRA:
            return SimpleNamespace(same=lambda a, b: verdict)
        return sys.modules[name]

    assert same_answer(r"\sqrt8", r"2\sqrt2", load) is is_same


def test_it_is_loaded_when_points_first_find_two_expressions_equal():
    probe = (
        "import sys; from magistral_jax.verifier.math.equal import same_answer as s; "
        r"assert not s(r'\sqrt8', r'3\sqrt2') and 'sympy' not in sys.modules; "
        r"assert s(r'\sqrt8', r'2\sqrt2') and 'sympy' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
