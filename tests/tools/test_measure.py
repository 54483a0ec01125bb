"""Benchmarks: figures from stored answers, going on, and an endpoint that is a real server."""

import itertools
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from magistral_jax.evaluate import interval
from magistral_jax.recipes.benchmarks import BENCHMARKS, figures
from magistral_jax.settings import load
from magistral_jax.tools.answering import Who
from magistral_jax.tools.measure import Store, Wanted, measure_on
from magistral_jax.types import RunFailed, UserError
from tests.tools.tiny import TINY

MATH = [
    {"id": f"m{i}", "problem": f"{i}+1?", "answer": str(i + 1), "domain": "math", "language": lang}
    for i, lang in enumerate(("en", "fr", "en"))
]
CODE = [
    {
        "id": "c0",
        "problem": "Write twice(x).",
        "domain": "code",
        "asserts": ["assert twice(2) == 4"],
        "entry_point": "twice",
    }
]
RULES = [
    {
        "id": "r0",
        "problem": "No commas, two bullets.",
        "domain": "instruction",
        "instruction_id_list": [
            "en:punctuation:no_comma",
            "en:detectable_format:number_bullet_lists",
        ],
        "kwargs": [{}, {"num_bullets": 2}],
    }
]
CALLS = [
    {
        "id": "f0",
        "problem": "Play Adele.",
        "domain": "tool",
        "functions": [
            {
                "name": "play",
                "parameters": {"properties": {"who": {"type": "string"}}, "required": ["who"]},
            }
        ],
        "answer": '[{"play": {"who": ["Adele"]}}]',
    }
]
ANSWERS = {
    "0+1?": [r"<think>one</think>\boxed{1}", "the answer is 1", "2"],
    "1+1?": ["3", r"\boxed{2}", "3"],
    "2+1?": ["5", "4", ""],
    "twice": ["```python\ndef twice(x):\n    return 2 * x\n```", "twice", "```python\nx\n```"],
    "bullets": ["* a\n* b", "* a, b", "* a\n* b, c"],
    "Adele": ['{"name": "play", "arguments": {"who": "adele"}}', "Sure!", "play(who='Bach')"],
}


class Server(BaseHTTPRequestHandler):
    """Says the next of the scripted answers to a question; fails first when told to."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((asked, self.headers.get("Authorization")))
        if self.server.faults:
            self.send_error(self.server.faults.pop())
            return
        question = asked["messages"][-1]["content"]
        name = next(name for name in ANSWERS if name in question)
        with self.server.lock:
            place = self.server.counts[name]
            self.server.counts[name] += 1
        choice = {"message": {"content": ANSWERS[name][place % 3]}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.asked, server.faults, server.counts, server.lock = [], [], Counter(), threading.Lock()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def files(tmp_path):
    paths = {}
    for name, rows in (("gsm8k", MATH), ("mbpp", CODE), ("ifeval", RULES), ("bfcl", CALLS)):
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def config(**more):
    fields = {**dict(field.split("=") for field in TINY), **more}
    return load(None, list(fields.items()))


def table_of(path):
    return {row["benchmark"]: row for row in json.loads(path.read_text())["rows"]}


def test_an_endpoint_is_asked_judged_and_its_figures_printed(files, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving() as (server, url):
        server.faults = [503, 429]  # both pass
        wanted = Wanted(
            on=tuple(f"{name}={path}" for name, path in files.items()),
            out=tmp_path / "out",
            samples=3,
            who=Who(endpoint=url, endpoint_model="m", at_once=1),
        )
        assert measure_on(config(), wanted, json_path=tmp_path / "t.json") == 0
        bodies = [body for body, _ in server.asked]
        assert {key for _, key in server.asked} == {"Bearer secret"}
    assert len(bodies) == 2 + 3 * 6
    assert {body["temperature"] for body in bodies} == {0.7}
    assert {body["model"] for body in bodies} == {"m"}
    # The paper's top-p: 0.95 for programs, 1 for all else.
    tops = {"twice" in body["messages"][-1]["content"]: body["top_p"] for body in bodies}
    assert tops == {True: 0.95, False: 1.0}
    found = table_of(tmp_path / "t.json")
    math = found["gsm8k"]
    assert math["accuracy"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert math["pass@3"] == pytest.approx(2 / 3)
    # m0: 1 and 1 against 2; m1: 3 twice; m2: 5, 4, nothing.
    assert math["maj@3"] == pytest.approx(1 / 3)
    assert (math["95% low"], math["95% high"]) == pytest.approx(interval([2 / 3, 1 / 3, 0.0]))
    assert found["gsm8k (fr)"]["accuracy"] == pytest.approx(1 / 3)
    assert found["gsm8k (en)"]["problems"] == 2
    assert found["mbpp"]["accuracy"] == pytest.approx(1 / 3)
    assert found["ifeval"]["accuracy"] == pytest.approx(1 / 3)
    assert found["ifeval"]["followed"] == pytest.approx((2 + 0 + 1) / 6)
    assert found["bfcl"]["accuracy"] == pytest.approx(1 / 3)
    assert found["bfcl"]["length"] == 7 and found["bfcl"]["errored"] == 0


def test_what_is_stored_is_not_asked_again_and_a_torn_line_is(files, tmp_path):
    on = (f"gsm8k={files['gsm8k']}",)
    with serving() as (server, url):
        who = Who(endpoint=url, at_once=1)
        wanted = Wanted(on=on, out=tmp_path / "out", samples=3, who=who)
        measure_on(config(), wanted, json_path=tmp_path / "one.json")
        asked = len(server.asked)
        measure_on(config(), wanted, json_path=tmp_path / "two.json")
        assert len(server.asked) == asked == 9
        stored = tmp_path / "out" / "answers.jsonl"
        lines = stored.read_bytes().splitlines(keepends=True)
        stored.write_bytes(b"".join(lines[:2]) + lines[2][:30])
        measure_on(config(), wanted, json_path=tmp_path / "three.json")
        assert len(server.asked) == 9 + 3
        with pytest.raises(UserError, match=r"holds answers with temperature 0\.7, and now it is"):
            measure_on(config(**{"eval.temperature": "0.5"}), wanted, json_path=None)
    one, two, three = (table_of(tmp_path / f"{n}.json") for n in ("one", "two", "three"))
    assert one == two == three


def test_a_server_that_refuses_is_told(files, tmp_path):
    with serving() as (server, url):
        server.faults = [401]
        on, who = (f"gsm8k={files['gsm8k']}",), Who(endpoint=url)
        wanted = Wanted(on=on, out=tmp_path / "out", who=who)
        with pytest.raises(RunFailed, match="answered 401"):
            measure_on(config(), wanted, json_path=None)
    with pytest.raises(UserError, match="--endpoint is 'localhost'"):
        wanted = Wanted(on=on, out=tmp_path / "o2", who=Who(endpoint="localhost"))
        measure_on(config(), wanted, json_path=None)


@pytest.mark.parametrize("on", ["gsm8k", "gsm8k=", "no_such=x.jsonl"])
def test_a_benchmark_has_a_known_name_and_a_path(on, tmp_path):
    with pytest.raises(UserError, match=r"--on is .*; it must be NAME=PATH, with a name of aime"):
        measure_on(config(), Wanted(on=(on,), out=tmp_path / "o", who=Who()), json_path=None)


def test_our_own_engine_answers_and_its_tokens_are_stored(files, tmp_path):
    """Bad rows are told and left out; the prompt's tokens are the run's own."""
    with files["gsm8k"].open("a") as file:
        file.write('{"id": "bad"}\n')
    on = (f"gsm8k={files['gsm8k']}",)
    wanted = Wanted(on=on, out=tmp_path / "out", who=Who(), samples=2, limit=2)
    small = config(**{"generator.max_tokens": "6", "generator.in_flight": "4"})
    assert measure_on(small, wanted, json_path=tmp_path / "t.json") == 0
    text = (tmp_path / "out" / "answers.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert sorted(row["id"] for row in rows) == ["m0", "m1"]
    for row in rows:
        first, second = row["answers"]
        assert first["prompt_tokens"] == second["prompt_tokens"] != []
        assert first["tokens"] != second["tokens"] and len(first["tokens"]) <= 6
    found = table_of(tmp_path / "t.json")["gsm8k"]
    assert found["problems"] == 2 and found["samples"] == 2


def test_figures_are_those_of_an_independent_computation(rng):
    rows = []
    for problem in range(12):
        chance = rng.random()
        for sample in range(8):
            is_right = bool(rng.random() < chance)
            answer = "7" if is_right else str(rng.integers(1, 4))
            outcome = "error" if rng.random() < 0.05 else "right" if is_right else "wrong"
            rows.append(
                {
                    "id": f"p{problem}",
                    "sample": sample,
                    "outcome": outcome,
                    "answer": answer,
                    "length": int(rng.integers(1, 99)),
                    "finish": "length" if rng.random() < 0.3 else "stop",
                }
            )
    found = figures(rows)
    by = {p: [r for r in rows if r["id"] == p and r["outcome"] != "error"] for p in
          {r["id"] for r in rows}}  # fmt: skip
    shares = [np.mean([r["outcome"] == "right" for r in mine]) for mine in by.values()]
    n = min(map(len, by.values()))
    assert found["samples"] == n
    assert found["accuracy"] == pytest.approx(np.mean(shares))
    passed = [
        np.mean([any(s) for s in itertools.combinations([r["outcome"] == "right" for r in m], 4)])
        for m in by.values()
    ]
    assert found["pass@4"] == pytest.approx(np.mean(passed))
    votes = []
    for mine in by.values():
        blocks = [mine[i : i + 4] for i in range(0, len(mine) // 4 * 4, 4)]
        for block in blocks:
            names = ["R" if r["outcome"] == "right" else r["answer"] for r in block]
            best = max(names, key=lambda name: (names.count(name), -names.index(name)))
            votes.append((mine[0]["id"], best == "R"))
    per_problem = [np.mean([v for p, v in votes if p == problem]) for problem in by]
    assert found["maj@4"] == pytest.approx(np.mean(per_problem))
    assert found["length"] == pytest.approx(np.mean([r["length"] for r in rows]))
    assert found["truncated"] == pytest.approx(np.mean([r["finish"] == "length" for r in rows]))
    assert found["errored"] == sum(r["outcome"] == "error" for r in rows) > 0


def test_the_protocol_is_the_paper_s():
    assert BENCHMARKS["aime"].samples == 64 and BENCHMARKS["livecodebench"].samples == 16
    for name in ("aime", "livecodebench"):
        assert BENCHMARKS[name].max_tokens == 40_960
    programs = {name for name, b in BENCHMARKS.items() if b.top_p == 0.95}
    assert programs == {"livecodebench", "humaneval", "mbpp"}


def test_a_store_that_is_there_is_read(tmp_path):
    store = Store(tmp_path, {"who": "a"})
    store.add("gsm8k", "x", [{"sample": 0}])
    again = Store(tmp_path, {"who": "a"})
    assert again.has("gsm8k", "x") and not again.has("gsm8k", "y")
    assert again.rows("gsm8k", ["x"]) == [{"sample": 0}]
