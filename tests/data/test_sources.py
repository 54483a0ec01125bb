import gzip
import json
import math
import os
from pathlib import Path

import pytest

from magistral_jax.data.sources import Sums, is_heldout, read_jsonl
from magistral_jax.types import Problem, UserError

ROW = {
    "id": "p1",
    "problem": "What is 2+2?",
    "answer": "4",
    "domain": "math",
    "language": "fr",
    "source": "a book",
    "year": 1999,
}


def line(**changes) -> bytes:
    row = {k: v for k, v in (ROW | changes).items() if v is not ...}
    return json.dumps(row).encode() + b"\n"


def test_a_row_becomes_a_problem_and_unknown_keys_are_ignored(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(line() + b"\n" + line(id="p2", problem="¿Qué?"))
    assert read_jsonl(path) == [
        Problem(
            id="p1", domain="math", question="What is 2+2?", answer="4", language="fr",
            source="a book",
        ),
        Problem(
            id="p2", domain="math", question="¿Qué?", answer="4", language="fr", source="a book"
        ),
    ]  # fmt: skip


def test_a_gz_file_is_read_alike(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(line()))
    assert [p.id for p in read_jsonl(path)] == ["p1"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no problem"),
        (b"\n \n", "holds no problem"),
        (line() + b"{", "p.jsonl:2: not JSON"),
        (line() + b"[" * 100_000, "p.jsonl:2: not JSON"),
        (line() + b"9" * 5000, "p.jsonl:2: not JSON"),
        (b"[1, 2]\n", "p.jsonl:1: [1, 2] is not an object"),
        (line() + line(id="p2", answer=...), "p.jsonl:2: key 'answer' is missing"),
        (line(answer=4), "p.jsonl:1: answer is 4; it must be a text"),
        (line(language=None), "p.jsonl:1: language is null; it must be a text"),
        (line(id="b") + b"\n" + line() + line(), "p.jsonl:4: id 'p1' is taken by line 3"),
        (line(domain="tool"), 'p.jsonl:1: domain is "tool"; the domains that can be judged'),
        (
            line(domain="code"),
            "p.jsonl:1: a code problem needs one of tests, asserts and test_code",
        ),
        (line(answer=" "), "p.jsonl:1: answer is empty"),
        (line(problem=""), "p.jsonl:1: problem is empty"),
        (line(problem="\ud800"), "p.jsonl:1: problem holds half a surrogate pair"),
        (line() + b'{"id": "\xff"}\n', "p.jsonl:2: not UTF-8"),
    ],
)
def test_a_fault_names_file_line_and_value(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as fault:
        read_jsonl(path)
    assert message in str(fault.value)


WHOLE = gzip.compress(b"".join(line(id=f"p{i}") for i in range(50)))


@pytest.mark.parametrize(
    "content", [line(), WHOLE[: len(WHOLE) // 2], WHOLE[:10] + b"\xff" * 40, WHOLE[:-6]]
)
def test_a_gz_name_over_no_whole_gzip_file_is_refused(tmp_path, content):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.path.*not a whole gzip file"):
        read_jsonl(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.path.*no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"data\.path.*cannot be read"):
        read_jsonl(tmp_path)


def real_data() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("MAGISTRAL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("the problem files are not here")
    return folder


@pytest.mark.parametrize(
    "name, rows",
    [
        ("gsm8k_train.jsonl.gz", 7473),
        ("math_train.jsonl.gz", 7451),
        ("math_extra_lvl3to5.jsonl.gz", 2942),
        ("deepmath_5k.jsonl.gz", 4984),
        ("aime_1983_2023.jsonl.gz", 968),
        ("aime_2024.jsonl", 30),
        ("mgsm.jsonl.gz", 2750),
        ("olympiadbench_en.jsonl", 675),
        ("mbpp.jsonl.gz", 974),
        ("mbpp_stdin.jsonl.gz", 317),
        ("humaneval_first82.jsonl", 82),
        ("code_contests_stdin.jsonl.gz", 153),
    ],
)
def test_real_files_are_read_whole(name, rows):
    assert len(read_jsonl(real_data() / name)) == rows


def test_real_files_of_other_domains_are_refused():
    with pytest.raises(UserError, match=r"domain is .*can be judged: math, code"):
        read_jsonl(real_data() / "ifeval_en_fr_es_ja.jsonl")


@pytest.mark.parametrize("digits", [1, 2])
def test_sums_are_every_pair_of_numbers_of_that_many_digits(digits):
    sums = Sums(digits)
    numbers = range(10 ** (digits - 1), 10**digits)
    assert {sums[i].id for i in range(len(sums))} == {
        f"sum-{a}-{b}" for a in numbers for b in numbers
    }
    assert len(sums) == len(numbers) ** 2


def test_a_sum_is_a_problem():
    sums = Sums(3)
    assert len(sums) == 810_000
    assert sums[0].question == "100+100=?" and sums[-1].question == "999+999=?"
    problem = sums[(347 - 100) * 900 + 285 - 100]
    assert (problem.id, problem.question, problem.answer) == ("sum-347-285", "347+285=?", "632")
    with pytest.raises(IndexError):
        sums[810_000]


@pytest.mark.parametrize("digits", [4, 5, 9, 30])
def test_sums_of_many_digits_stay_distinct_right_and_spread(digits):
    sums = Sums(digits)
    assert len(sums) <= 2**31
    sampled = [sums[i] for i in range(0, len(sums), len(sums) // 997)]
    assert len({p.id for p in sampled}) == len(sampled)
    for p in sampled:
        a, b = p.id.removeprefix("sum-").split("-")
        assert len(a) == len(b) == digits and int(p.answer) == int(a) + int(b)
    for place in (0, 1):
        assert {p.id.split("-")[1 + place][0] for p in sampled} == set("123456789")


@pytest.mark.parametrize("digits", range(1, 41))
def test_no_two_places_hold_the_same_sum(digits):
    sums = Sums(digits)
    assert math.gcd(sums._stride, sums._total) == 1


def test_heldout_is_the_same_on_every_machine():
    held = [f"sum-{i}-{i}" for i in range(100, 200) if is_heldout(f"sum-{i}-{i}", 5.0)]
    assert held == [f"sum-{i}-{i}" for i in (133, 146, 152, 167, 178, 194, 198)]


def test_heldout_share_is_as_asked():
    sums = Sums(2)
    held = sum(is_heldout(sums[i].id, 5.0) for i in range(len(sums)))
    assert held / len(sums) == pytest.approx(0.05, abs=0.01)
    assert is_heldout("sum-133-133", 4.641) and not is_heldout("sum-133-133", 4.639)
    assert not any(is_heldout(sums[i].id, 0.0) for i in range(len(sums)))


def test_a_larger_share_holds_out_all_that_a_smaller_one_does():
    ids = [f"p{i}" for i in range(2000)]
    few, more = ({i for i in ids if is_heldout(i, percent)} for percent in (2.5, 10.0))
    assert few < more
