r"""A thousand answer pairs whose truth is known by construction: (form, gold, candidate, same).

Every form has positives (one value in two spellings) and negatives one edit away from a positive.
Truth comes from how a pair is made, never from a grader. `python -m pairs` in this folder scores
math-verify on them, which must find them hard.
"""

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

Pair = tuple[str, str, str, bool]
ROUNDS = 7


def frac(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def number(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    n = r.randrange(10_000, 10**7)
    yield f"{n}", f"{n:,}", True
    yield f"{n}", f"{n:,}".replace(",", r"\,"), True
    yield f"{n:,}", f"{n:,}".replace(",", r",\!"), True
    yield f"{n}", f"{n + 1}", False
    yield f"{n}", f"{n:,}".replace(",", ", "), False
    big = 2**53 + r.randrange(1, 10**6) * 2 + 1
    yield f"{big}", f"{big}.0", True
    yield f"{big}", f"{big + 1}", False
    k = r.randrange(25, 60)
    yield rf"10^{{-{k}}}", "0", False
    yield rf"1 + 10^{{-{k}}}", "1", False
    m = r.randrange(11, 99)
    yield rf"{m / 10} \times 10^{{{k}}}", f"{m / 10}e{k}", True
    yield rf"{m / 10} \times 10^{{{k}}}", rf"{m / 10} \times 10^{{{k + 1}}}", False
    yield rf"3^{{{m}}}", f"{3**m}", True
    yield rf"3^{{{m}}}", f"{3**m - 1}", False
    yield f"{m}", f"{m}.", True
    yield f"-{m}", f"\u2212{m}", True
    yield f"-{m}", f"{m}", False


def fraction(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    d = r.choice([3, 7, 11, 13, 17])
    q = Fraction(r.randrange(1, 9) * d + 1, d)
    whole, rest = divmod(q.numerator, d)
    yield frac(q), f"{q.numerator}/{d}", True
    yield frac(q), rf"{whole}\frac{{{rest}}}{{{d}}}", True
    yield frac(q), rf"\dfrac{{{3 * q.numerator}}}{{{3 * d}}}", True
    yield frac(-q), rf"\frac{{{q.numerator}}}{{-{d}}}", True
    yield frac(q), frac(1 / q), False
    yield frac(q), rf"{whole + 1}\frac{{{rest}}}{{{d}}}", False
    yield frac(q), f"{float(q):.4f}", False
    yield frac(q), frac(-q), False
    n = r.randrange(1, 9)
    yield rf"\frac{n}9", rf"0.\overline{{{n}}}" if n < 9 else "1", True
    yield rf"\frac{n}9", f"0.{n}{n}{n}...", True
    yield rf"\frac{n}9", f"0.{n}{n}{n}", False
    two = r.randrange(12, 98)
    yield rf"\frac{{{two}}}{{99}}", rf"0.\overline{{{two}}}", True
    yield rf"0.{n}\overline{{{two}}}", rf"0.\overline{{{n}{two}}}", False


def percent(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    p = r.randrange(11, 99)
    yield rf"{p}\%", f"0.{p}", True
    yield f"{p}%", frac(Fraction(p, 100)), True
    yield rf"{p}\%", rf"{p}\text{{ percent}}", True
    yield rf"{p}\%", f"{p}.0%", True
    yield rf"{p}\%", f"0.0{p}", False
    yield rf"{p}\%", rf"{p + 1}\%", False
    yield rf"{p}\%", rf"0.{p}\%", False


def unit(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    n = r.randrange(2, 60)
    short, long, other = r.choice(
        [("cm", "centimeters", "mm"), ("kg", "kilograms", "g"), ("km", "kilometers", "m")]
    )
    yield rf"{n}\text{{ {short}}}", f"{n} {short}", True
    yield rf"{n}\text{{ {short}}}", rf"{n}\,\mathrm{{{short}}}", True
    yield rf"{n}\text{{ {short}}}", rf"{n} \text{{ {long}}}", True
    yield rf"{n}\text{{ {short}}}", rf"{n}\text{{ {other}}}", False
    yield rf"{n}\text{{ {short}}}", rf"{n + 1}\text{{ {short}}}", False
    yield rf"{n}\text{{ cm}}^2", rf"{n}\text{{ square centimeters}}", True
    yield rf"{n}\text{{ cm}}^2", rf"{n}\text{{ cm}}^3", False
    yield rf"{n}\text{{ m/s}}", rf"{n}\text{{ meters per second}}", True
    yield rf"{n}\text{{ m/s}}", rf"{n}\text{{ m/s}}^2", False
    yield rf"{n}\text{{ minutes}}", rf"{60 * n}\text{{ seconds}}", True
    yield rf"{n}\text{{ hours}}", rf"{n}\text{{ minutes}}", False
    yield rf"\${n}.50", f"{n}.5", True
    yield rf"\${n}.50", rf"\${n}.05", False
    yield rf"{n}^\circ", f"{n}", True
    yield rf"{n}^\circ", rf"{n}^{{\circ}}", True
    yield rf"{n}^\circ", rf"{n}'", False
    yield rf"{n}\text{{ students}}", f"{n}", True
    yield rf"{n}\text{{ apples}}", rf"{n}\text{{ oranges}}", False


def interval(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a = r.randrange(-9, 5)
    b, c = a + r.randrange(2, 6), a + 9
    yield f"({a},{b}]", rf"\left({a}, {b}.0\right]", True
    yield f"({a},{b}]", f"{a} < x \\le {b}", True
    yield f"({a},{b}]", rf"{b} \geq x > {a}", True
    yield f"({a},{b}]", f"[{a},{b}]", False
    yield f"({a},{b}]", f"({a},{b})", False
    yield f"({a},{b}]", rf"{a} < x < {b}", False
    yield rf"[{a},{b}]\cup[{b},{c}]", f"[{a},{c}]", True
    yield rf"[{a},{b})\cup({b},{c}]", f"[{a},{c}]", False
    yield rf"(-\infty,{a})\cup({b},\infty)", rf"({b},\infty)\cup(-\infty,{a})", True
    yield rf"(-\infty,{a})\cup({b},\infty)", rf"(-\infty,{a}]\cup({b},\infty)", False
    yield rf"({a},{c})\cap[{b},{c + 4})", f"[{b},{c})", True
    yield rf"({a},{c})\cap[{b},{c + 4})", f"[{b},{c}]", False
    yield rf"[\sqrt{{{b + 10}}},\infty)", rf"x \ge ({b + 10})^{{1/2}}", True


def set_(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b, c = sorted(r.sample(range(-9, 30), 3))
    yield rf"\{{{a},{b},{c}\}}", rf"\{{{c}, {a}, {b}\}}", True
    yield rf"\{{{a},{b},{c}\}}", f"{b}, {a}, {c}", True
    yield rf"\{{{a},{b},{c}\}}", rf"\{{{a},{b}\}}", False
    yield rf"\{{{a},{b}\}}", rf"\{{{a},{b},{c}\}}", False
    yield rf"\{{{a},{b},{c}\}}", rf"\{{{a},{b},{c + 1}\}}", False
    yield rf"\{{{a},{b}\}}", f"({a},{b})", False
    yield rf"\{{{a},{b}\}}", rf"x={b} \text{{ or }} x={a}", True
    yield rf"\{{{a},{b},{c}\}}\cap\{{{b},{c}\}}", rf"\{{{c},{b}\}}", True
    yield rf"\{{{a},{b}\}}\cup\{{{c}\}}", rf"\{{{a},{c},{b}\}}", True
    yield rf"\{{{a},{b}\}}\cap\{{{c}\}}", r"\emptyset", True
    yield rf"\{{{a},{b}\}}\cap\{{{b}\}}", rf"\{{{a}\}}", False
    yield rf"\{{({a},{b}),({b},{c})\}}", rf"\{{({b},{c}),({a},{b})\}}", True
    yield rf"\{{({a},{b}),({b},{c})\}}", rf"\{{({b},{a}),({b},{c})\}}", False


def tuple_(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b, c = r.sample(range(1, 30), 3)
    yield f"({a},-{b})", rf"\left( {a}.0 ,\, -{b} \right)", True
    yield f"({a},{b},{c})", f"({a}, {b}, {2 * c}/2)", True
    yield rf"(\sqrt{{{4 * a}}},{b})", rf"(2\sqrt{{{a}}},{b})", True
    yield f"({a},{b})", f"({b},{a})", False
    yield f"({a},{b})", f"({a},{b},{c})", False
    yield f"({a},{b},{c})", f"({a},{b})", False
    yield f"({a},{b})", f"({a},-{b})", False
    yield f"({a},{b})", f"(x,y)=({a},{b})", True
    yield f"({a},{b})", f"(x,y)=({b},{a})", False


def matrix(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b, c, d = r.sample(range(1, 40), 4)
    m = rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d}\end{{pmatrix}}"
    yield m, rf"\begin{{bmatrix}} {a} & {b} \\ {c} & {d} \end{{bmatrix}}", True
    yield m, rf"\begin{{pmatrix}}{a}&{b}\\{c}&\frac{{{2 * d}}}{{2}}\\\end{{pmatrix}}", True
    yield m, rf"\left[\begin{{array}}{{cc}}{a}&{b}\\{c}&{d}\end{{array}}\right]"[6:-7], True
    yield m, rf"\frac12\begin{{pmatrix}}{2 * a}&{2 * b}\\{2 * c}&{2 * d}\end{{pmatrix}}", True
    yield m, rf"\begin{{pmatrix}}{a}&{c}\\{b}&{d}\end{{pmatrix}}", False
    yield m, rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d + 1}\end{{pmatrix}}", False
    yield m, rf"\begin{{vmatrix}}{a}&{b}\\{c}&{d}\end{{vmatrix}}", False
    yield m, rf"\begin{{pmatrix}}{a}&{b}\end{{pmatrix}}", False


def equation(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    m, b, k = r.randrange(2, 9), r.randrange(1, 9), r.randrange(3, 9)
    yield f"y={m}x+{b}", f"y-{b}={m}x", True
    yield f"y={m}x+{b}", f"{m}x-y+{b}=0", True
    yield f"{m}x+{b}y={k}", f"{3 * m}x+{3 * b}y={3 * k}", True
    yield f"y={m}x+{b}", f"{m}x+{b}", False
    yield f"y={m}x+{b}", f"y={m}x-{b}", False
    yield f"y={m}x+{b}", f"{m}x+y+{b}=0", False
    yield f"x={k}", f"{k}", True
    yield f"x={k}", f"{m}x={m * k}", False
    yield f"x={k}", f"y={k}", False
    yield f"x={k}", f"x=-{k}", False
    yield f"x^2+y^2={k * k}", f"y^2={k * k}-x^2", True
    yield f"x^2+y^2={k * k}", f"x^2+y^2={k}", False


def inequality(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a = r.randrange(-9, 9)
    b = a + r.randrange(2, 9)
    yield f"x>{b}", f"{b}<x", True
    yield f"x>{b}", rf"({b},\infty)", True
    yield f"x>{b}", rf"x\ge {b}", False
    yield f"x>{b}", f"x<{b}", False
    yield f"x>{b}", f"y>{b}", False
    yield rf"{a}\le x<{b}", rf"{b}>x\geq {a}", True
    yield rf"{a}\le x<{b}", rf"x\ge {a} \text{{ and }} x<{b}", True
    yield rf"{a}\le x<{b}", rf"{a}<x<{b}", False
    yield rf"x<{a} \text{{ or }} x>{b}", rf"(-\infty,{a})\cup({b},\infty)", True
    yield rf"x<{a} \text{{ or }} x>{b}", f"{a}<x<{b}", False
    yield rf"x\neq {b}", rf"\mathbb{{R}}\setminus\{{{b}\}}", True
    yield f"x+2y<{b + 20}", f"{b + 20}>2y+x", True
    yield f"x+2y<{b + 20}", f"x+2y>{b + 20}", False


def polynomial(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b = r.sample(range(2, 12), 2)
    square = f"x^2+{a + b}x+{a * b}"
    yield f"(x+{a})(x+{b})", square, True
    yield square, f"{a * b}+x({a + b}+x)", True
    yield f"(x+{a})(x-{b})", square, False
    yield square, f"x^2+{a + b}x-{a * b}", False
    yield square, f"x^2+{a + b + 1}x+{a * b}", False
    yield square, square.replace("x", "y"), False
    yield rf"\frac{{x^2-{a * a}}}{{x-{a}}}", f"x+{a}", True
    yield f"{a}x^{{10}}y", rf"x^{{10}}y\cdot {a}", True
    yield f"{a}x^{{10}}y", f"{a}xy^{{10}}", False
    yield f"{a}ab-{b}b", f"b({a}a-{b})", True


def radical(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, p = r.randrange(2, 9), r.choice([2, 3, 5, 7])
    yield rf"\sqrt{{{a * a * p}}}", rf"{a}\sqrt{{{p}}}", True
    yield rf"\frac{{{a}}}{{\sqrt{{{p}}}}}", rf"\frac{{{a}\sqrt{p}}}{{{p}}}", True
    yield rf"\sqrt[3]{{{a**3 * p}}}", rf"{a}\sqrt[3]{{{p}}}", True
    yield rf"{a}\sqrt{p}", rf"{a} \sqrt {{{p}}}", True
    yield rf"{a}\sqrt{p}", f"{a}*sqrt({p})", True
    yield rf"{a}\sqrt{p}", f"{a * p**0.5:.6f}", False
    yield rf"{a}\sqrt{p}", rf"\sqrt[{a}]{{{p}}}", False
    yield rf"{a}\sqrt{p}", rf"{a}\sqrt{{{p + 1}}}", False
    yield rf"\sqrt[3]{{{p}}}", rf"\sqrt{{{p}}}", False
    yield rf"\sqrt{{{a * a + p}+{2 * a}\sqrt{p}}}", rf"{a}+\sqrt{p}", True
    yield rf"\sqrt{{{a * a + p}+{2 * a}\sqrt{p}}}", rf"{a}-\sqrt{p}", False
    yield rf"\frac{{1}}{{\sqrt{{{a + 1}}}-\sqrt{{{a}}}}}", rf"\sqrt{{{a + 1}}}+\sqrt{{{a}}}", True


def logarithm(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    b, k = r.choice([2, 3, 5, 7]), r.randrange(2, 6)
    yield rf"\log_{{{b}}} {b**k}", f"{k}", True
    yield rf"\ln {b**k}", rf"{k}\ln {b}", True
    yield rf"\log_{b} {11}" if b > 9 else rf"\log_{{{b}}} 11", rf"\frac{{\ln 11}}{{\ln {b}}}", True
    yield rf"\ln {b}+\ln {k}", rf"\ln {b * k}", True
    yield rf"\ln {b}+\ln {k}", rf"\ln {b + k + 20}", False
    yield rf"\log_{{{b}}} 11", rf"\log_{{11}} {b}", False
    yield rf"\log_{{{b}}} 11", r"\log 11", False
    yield rf"\ln {b}", rf"\log_{{10}} {b}", False
    yield rf"{k}\ln {b}", rf"\ln {b * k + 40}", False


def complex_(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b = r.sample(range(2, 12), 2)
    yield f"{a}+{b}i", f"{b}i+{a}", True
    yield f"({a}+{b}i)^2", f"{a * a - b * b}+{2 * a * b}i", True
    yield f"{a}+{b}i", f"{a}-{b}i", False
    yield f"{a}+{b}i", f"{b}+{a}i", False
    yield f"{a}i", f"{a}", False
    yield rf"{a}e^{{i\pi}}", f"-{a}", True
    yield rf"{a}e^{{i\pi/2}}", rf"{a}i", True
    yield rf"{a}e^{{i\pi/2}}", rf"-{a}i", False
    yield rf"e^{{i\pi/{a}}}", rf"\cos\frac{{\pi}}{{{a}}}+i\sin\frac{{\pi}}{{{a}}}", True
    yield rf"\frac{{1}}{{{a}+{b}i}}", rf"\frac{{{a}-{b}i}}{{{a * a + b * b}}}", True
    yield rf"\sqrt{{-{a * a}}}", f"{a}i", True


def base(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    n = r.randrange(40, 250)
    two, eight, hexa = f"{n:b}", f"{n:o}", f"{n:X}"
    yield f"{two}_2", f"{two}_{{2}}", True
    yield f"{two}_2", rf"{two}_{{\text{{two}}}}", True
    yield f"{two}_2", f"{n}_{{10}}", True
    yield f"{two}_2", two, False
    yield f"{two}_2", f"{two}_3", False
    yield f"{eight}_8", eight, False
    yield f"{eight}_8", f"{n + 1:o}_8", False
    yield f"{n}_{{16}}", f"{n}_{{15}}", False
    yield f"1{hexa}_{{16}}", f"1{hexa.lower()}_{{16}}", True


MONTHS = ["January", "February", "March", "April", "August", "December"]


def date(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    at, day, year = r.randrange(6), r.randrange(13, 28), r.randrange(1500, 2020)
    month, nth = MONTHS[at], [1, 2, 3, 4, 8, 12][at]
    yield f"{month} {day}, {year}", f"{day} {month} {year}", True
    yield f"{month} {day}, {year}", rf"\text{{{month} {day}, {year}}}", True
    yield f"{month} {day}, {year}", f"{year}-{nth:02d}-{day}", True
    yield f"{month} {day}", f"{month} {day}th", True
    yield f"{month} {day}, {year}", f"{month} {day + 1}, {year}", False
    yield f"{month} {day}, {year}", f"{month} {day}, {year + 1}", False
    yield f"{month} {day}", f"{MONTHS[(at + 1) % 6]} {day}", False


def time(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    hour, minute = r.randrange(1, 10), r.randrange(10, 59)
    yield rf"{hour}:{minute}\text{{ PM}}", f"{hour}:{minute} p.m.", True
    yield f"{hour}:{minute} PM", f"{hour + 12}:{minute}", True
    yield f"{hour}:{minute}", rf"\text{{{hour}:{minute}}}", True
    yield f"{hour}:{minute} PM", f"{hour}:{minute} AM", False
    yield f"{hour}:{minute} PM", f"{hour}:{minute + 1} PM", False
    yield f"{hour}:{minute}", f"{hour}.{minute}", False
    yield f"{hour}:{minute}", f"{hour + 1}:{minute}", False


def choice(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b = r.sample("ABCDE", 2)
    yield a, rf"\text{{({a})}}", True
    yield f"({a})", rf"\textbf{{{a}}}", True
    yield a, f"{a}.", True
    yield a, b, False
    yield a, rf"\text{{{a} or {b}}}", False
    yield a, f"({b})", False
    yield f"({a})", f"({a}), ({b})", False


def yes_no(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    word, other = r.choice([("Yes", "No"), ("No", "Yes"), ("True", "False"), ("False", "True")])
    yield rf"\text{{{word}}}", word.lower(), True
    yield word, rf"\mathrm{{{word}}}", True
    yield word, f"{word.upper()}.", True
    yield word, rf"\textbf{{{word}}}.", True
    yield word, other, False
    yield word, f"{word} or {other}", False
    yield word, rf"\text{{{word} and {other}}}", False
    yield rf"\text{{not {word}}}", word, False


def list_(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b, c = r.sample(range(2, 40), 3)
    yield f"{a}, {b}, {c}", f"{a},{b},{c}", True
    yield f"{a}, {b}", rf"{a} \text{{ and }} {b}", True
    yield f"{a}, {b}, {c}", f"{a}, {b}", False
    yield f"{a}, {b}", f"{a}, {b}, {c}", False
    yield f"{a}, {b}, {c}", f"{a}, {c}, {b}", False
    yield rf"x={a} \text{{ or }} x={b}", f"x={b}, x={a}", True
    yield rf"x={a} \text{{ or }} x={b}", f"x={a}", False
    yield rf"\pm {a}", f"{a}, -{a}", True
    yield rf"\pm {a}", f"{a}", False
    root = rf"\sqrt{{{b}}}"
    yield rf"{a}\pm{root}", f"{a}-{root}, {a}+{root}", True
    yield rf"{a}\pm{root}", f"{a}+{root}, {a}+{root}", False


def hedge(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    a, b = r.sample(range(2, 60), 2)
    yield f"{a}", rf"{a} \text{{ or }} {b}", False
    yield f"{a}", rf"\text{{{a} or {b}}}", False
    yield f"{a}", rf"{a} \text{{ (or {b})}}", False
    yield f"{a}", rf"{a}\text{{, maybe }}{b}", False
    yield f"{a}", f"{a}; {b}", False
    yield f"{a}", f"{a} / {b}", False
    yield f"{a}", rf"\{{{a}, {b}\}}", False


def factorial(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    n = r.randrange(7, 30)
    yield rf"\frac{{{n}!}}{{{n - 2}!}}", f"{n * (n - 1)}", True
    yield rf"\frac{{{n}!}}{{{n - 2}!}}", f"{n * (n - 1) + 1}", False
    yield rf"\binom{{{n}}}{{2}}", f"{n * (n - 1) // 2}", True
    yield rf"\binom{{{n}}}{{2}}", f"{n * (n - 1)}", False
    yield rf"{n}!", rf"{n}\cdot {n - 1}!", True
    yield r"\frac{n!}{(n-2)!}", "n(n-1)", True
    yield rf"{n}!", rf"{n - 1}!", False


def trigonometry(r: random.Random) -> Iterator[tuple[str, str, bool]]:
    k = r.randrange(2, 9)
    angle, value = r.choice([(30, r"\frac12"), (45, r"\frac{\sqrt2}{2}"), (90, "1")])
    yield rf"\sin {angle}^\circ", value, True
    yield rf"\sin {angle}^\circ", rf"\sin {angle}", False
    yield rf"{k}\sin^2 x+{k}\cos^2 x", f"{k}", True
    yield r"\sin 2x", r"2\sin x\cos x", True
    yield rf"\sin^{k} x", rf"\sin x^{k}", False
    yield rf"{180 // k}^\circ", rf"{180 // k + 1}^\circ", False
    yield rf"{k}\cos 2x", rf"{k}-{2 * k}\sin^2 x", True
    yield rf"{k}\cos 2x", rf"{k}-{2 * k}\sin x^2", False
    yield r"\tan x", r"\frac{\sin x}{\cos x}", True


FORMS: dict[str, Callable[[random.Random], Iterator[tuple[str, str, bool]]]] = {
    f.__name__.strip("_"): f
    for f in (
        *(number, fraction, percent, unit, interval, set_, tuple_, matrix, equation, inequality),
        *(polynomial, radical, logarithm, complex_, base, date, time, choice, yes_no, list_),
        *(hedge, factorial, trigonometry),
    )
}


def pairs() -> list[Pair]:
    """All pairs, each once, in a fixed order."""
    found: dict[tuple[str, str], Pair] = {}
    for form, make in FORMS.items():
        for seed in range(ROUNDS):
            for gold, candidate, same in make(random.Random(f"{form} {seed}")):
                found.setdefault((gold, candidate), (form, gold, candidate, same))
    return list(found.values())


def bare_math_verify(gold: str, candidate: str) -> bool:
    """math-verify's verdict, without its timers."""
    from math_verify import parse, verify

    try:
        sides = [parse(rf"\boxed{{{t}}}", parsing_timeout=None) for t in (gold, candidate)]
        return verify(*sides, timeout_seconds=None)
    except Exception:
        return False


PAIRS = pairs()

if __name__ == "__main__":
    wrong = [same for _, a, b, same in PAIRS if bare_math_verify(a, b) != same]
    print(f"math-verify: {1 - len(wrong) / len(PAIRS):.3f} of {len(PAIRS)}; ")
    print(f"{wrong.count(False)} wrong answers accepted, {wrong.count(True)} right ones refused")
