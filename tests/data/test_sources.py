import gzip
import json
import math
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from magistral_jax.config import MixtureConfig, RunConfig
from magistral_jax.data.sources import Sums, is_heldout, problems_of, read_problems
from magistral_jax.data.stream import PromptStream
from magistral_jax.types import Problem, UserError
from magistral_jax.verifier.reward import Judge, RewardRule

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
    assert read_problems(path) == [
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
    assert [p.id for p in read_problems(path)] == ["p1"]


@pytest.mark.parametrize(
    "content, message",
    [
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
        (line(problem="x" * 200_001), "p.jsonl:1: problem has 200001 characters"),
        (line(pass_rate=2), "p.jsonl:1: pass_rate is 2"),
    ],
)
def test_a_row_at_fault_is_told_with_file_and_line_and_the_rest_is_read(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(line(id="first") + content + b"\n" + line(id="last"))
    faults = []
    found = read_problems(path, tell=faults.append)
    message = re.sub(r":(\d+):", lambda at: f":{int(at[1]) + 1}:", message)
    message = message.replace("by line 3", f"by {path}:4")
    assert [fault for fault in faults if message in fault] and len(faults) == 1
    assert {"first", "last"} <= {problem.id for problem in found}


def test_a_file_without_problems_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    for content in (b"", b"\n \n", b"{\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="holds no problem"):
            read_problems(path)


WHOLE = gzip.compress(b"".join(line(id=f"p{i}") for i in range(50)))


@pytest.mark.parametrize(
    "content", [line(), WHOLE[: len(WHOLE) // 2], WHOLE[:10] + b"\xff" * 40, WHOLE[:-6]]
)
def test_a_gz_name_over_no_whole_gzip_file_is_refused(tmp_path, content):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.path.*not a whole gzip file"):
        read_problems(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.path.*no such file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"data\.path.*the folder holds no"):
        read_problems(tmp_path)


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
    assert len(read_problems(real_data() / name)) == rows


def test_real_files_of_other_domains_are_refused():
    faults = []
    with pytest.raises(UserError, match="holds no problem"):
        read_problems(real_data() / "ifeval_en_fr_es_ja.jsonl", tell=faults.append)
    assert len(faults) == 1063 and re.search("domain is .*can be judged: math, code", faults[0])


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(line(id="b1") + line(id="b2"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line(id="a")))
    (tmp_path / "notes.txt").write_text("no data")
    assert [p.id for p in read_problems(tmp_path)] == ["a", "b1", "b2"]


def test_a_parquet_file_is_read_like_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{**ROW, "question": f"q{i}", "id": f"p{i}"} for i in range(3)]
    rows[1]["answer"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    faults = []
    found = read_problems(tmp_path / "p.parquet", columns="problem = question", tell=faults.append)
    assert [(p.id, p.question) for p in found] == [("p0", "q0"), ("p2", "q2")]
    assert "p.parquet:2: answer is null" in faults[0]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"bad\.parquet.*cannot be read"):
        read_problems(tmp_path / "bad.parquet")


def test_columns_must_be_pairs(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(line())
    with pytest.raises(UserError, match=r"data\.columns is 'problem'; it must be pairs"):
        read_problems(tmp_path / "p.jsonl", columns="problem")


def test_a_hub_data_set_wants_its_package_or_is_loaded(monkeypatch):
    """The package is not here: a stand-in with its one function shows what is asked of it."""
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return [{"question": "1+1?", "answer": "2"}, {"question": "", "answer": "2"}]

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="datasets is not installed"):
        read_problems("hf:org/name")
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    faults = []
    found = read_problems("hf:org/name:test:main", columns="problem=question", tell=faults.append)
    assert asked == [(("org/name", "main"), {"split": "test"})]
    assert [(p.id, p.question, p.answer) for p in found] == [("org/name-1", "1+1?", "2")]
    assert "hf:org/name:test:main:2: problem is empty" in faults[0]


def test_procedural_tasks_are_made_and_judged_by_their_own_scorer():
    pytest.importorskip("reasoning_gym")
    problems = read_problems("gym:chain_sum:5")
    assert problems == read_problems("gym:chain_sum:5") and len(problems) == 5
    rule = RewardRule(soft_tokens=9, max_tokens=9)
    entry = json.loads(problems[0].answer)
    judge = Judge(rule)
    for answer, outcome in ((entry["answer"], "right"), ("no number", "wrong")):
        verdict = judge(problems[0], rf"<think>x</think>\boxed{{{answer}}}", 1)
        assert verdict.outcome == outcome, verdict
    for wrong in ("gym:chain_sum", "gym:chain_sum:0", "gym:no_such_task:3"):
        with pytest.raises(UserError, match=r"data\.path is 'gym:"):
            read_problems(wrong)


def test_a_mixture_is_asked_by_its_weights(tmp_path):
    for name, count in (("a", 30), ("b", 10)):
        rows = b"".join(line(id=f"{name}{i}") for i in range(count))
        (tmp_path / f"{name}.jsonl").write_bytes(rows)
    parts = tuple(
        MixtureConfig(path=str(tmp_path / f"{name}.jsonl"), weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    )
    problems = problems_of(RunConfig(mixture=parts))
    assert len(problems) == 40 and problems[39].id == "b9"

    def stream(position=0):
        return PromptStream(
            problems,
            lambda _: np.zeros(1, np.int32),
            seed=0,
            heldout_percent=0.0,
            position=position,
        )

    one = stream()
    names = [one.next().problem.id for _ in range(80)]
    assert sum(name.startswith("a") for name in names) == 60
    assert len(set(names[:40])) == 40  # an epoch of either before any comes again
    again = stream(position=30)
    assert [again.next().problem.id for _ in range(50)] == names[30:]
    with pytest.raises(UserError, match="ids must differ"):
        problems_of(RunConfig(mixture=(parts[0], parts[0])))


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
