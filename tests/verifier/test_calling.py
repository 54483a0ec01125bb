"""Function calls: what is one, what is right, and that every row's own answer is."""

import gzip
import json
import time

import pytest

from magistral_jax.verifier.calling import Call, calls_in, mistake_in, tools_prompt

PLAY = {
    "name": "spotify.play",
    "description": "Plays.",
    "parameters": {
        "type": "dict",
        "properties": {
            "artist": {"type": "string"},
            "minutes": {"type": "integer"},
            "volume": {"type": "float"},
            "loud": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "who": {"type": "dict", "properties": {}},
        },
        "required": ["artist", "minutes"],
    },
}
STOP = {"name": "stop", "parameters": {"type": "dict", "properties": {}, "required": []}}
WANTED = {"artist": ["Taylor Swift", "T. Swift"], "minutes": [20], "volume": [0.5, ""]}


def accepted(*calls):
    return json.dumps([{name: arguments} for name, arguments in calls])


def fault(arguments, wanted=WANTED, name="spotify.play"):
    return mistake_in([Call(name, arguments)], [PLAY, STOP], accepted(("spotify.play", wanted)))


GOOD = {"artist": "Taylor Swift", "minutes": 20}


@pytest.mark.parametrize(
    "arguments",
    [
        GOOD,
        GOOD | {"volume": 0.5},
        GOOD | {"artist": "taylor-swift"},
        GOOD | {"artist": "T Swift"},
    ],
)
def test_right_calls(arguments):
    assert fault(arguments) == ""
    assert fault(arguments, name="spotify_play") == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"artist": "Taylor Swift"}, "'minutes' is missing"),
        (GOOD | {"minutes": 21}, "minutes has a wrong value"),
        (GOOD | {"minutes": "20"}, "minutes has the wrong type"),
        (GOOD | {"minutes": True}, "minutes has the wrong type"),
        (GOOD | {"artist": "Adele"}, "artist has a wrong value"),
        (GOOD | {"volume": 1}, "volume has a wrong value"),
        (GOOD | {"colour": "red"}, "'colour' is not expected"),
        (GOOD | {"loud": True}, "'loud' is not expected"),
    ],
)
def test_wrong_calls(arguments, told):
    assert told in fault(arguments)


def test_an_integer_is_a_float_and_a_flag_is_a_flag():
    wanted = {"artist": ["a"], "minutes": [1], "volume": [2.0], "loud": [True]}
    assert fault({"artist": "a", "minutes": 1, "volume": 2, "loud": True}, wanted) == ""
    assert "loud" in fault({"artist": "a", "minutes": 1, "volume": 2, "loud": 1}, wanted)
    assert "loud" in fault({"artist": "a", "minutes": 1, "volume": 2, "loud": False}, wanted)


def test_lists_and_dicts_are_compared_member_by_member():
    wanted = {
        "artist": ["a"],
        "minutes": [1],
        "tags": [["Rock", "pop"], []],
        "who": [{"name": ["Ann"], "age": [30, 31], "town": ["", "Rome"]}],
    }
    good = {"artist": "a", "minutes": 1, "tags": ["rock", "Pop"], "who": {"name": "ann", "age": 31}}
    assert fault(good, wanted) == ""
    assert fault(good | {"tags": []}, wanted) == ""
    assert fault(good | {"who": {"name": "ann", "age": 31, "town": "rome"}}, wanted) == ""
    for wrong in (
        {"tags": ["pop", "rock"]},
        {"tags": ["rock"]},
        {"tags": [1, 2]},
        {"who": {"name": "ann"}},
        {"who": {"name": "ann", "age": 32}},
        {"who": {"name": "ann", "age": 31, "pet": "cat"}},
        {"who": ["ann", 31]},
    ):
        assert fault(good | wrong, wanted), wrong


def test_marks_alone_are_compared_as_they_are():
    wanted = {"artist": [","], "minutes": [1]}
    assert fault({"artist": ",", "minutes": 1}, wanted) == ""
    assert fault({"artist": ";", "minutes": 1}, wanted)
    assert fault({"artist": ",.", "minutes": 1}, wanted)


def test_several_calls_in_any_order_each_for_one():
    first, second = ({"artist": ["a", "b"], "minutes": [1]}, {"artist": ["a"], "minutes": [1]})
    wanted = accepted(("spotify.play", first), ("spotify.play", second))
    call = [Call("spotify.play", {"artist": artist, "minutes": 1}) for artist in "ab"]
    # "a" would do for either: taken greedily by the first, "b" would be left without.
    assert mistake_in([call[0], call[1]], [PLAY], wanted) == ""
    assert mistake_in([call[1], call[0]], [PLAY], wanted) == ""
    assert "two calls answer the same" in mistake_in([call[1], call[1]], [PLAY], wanted)
    assert "1 calls, and 2" in mistake_in([call[0]], [PLAY], wanted)
    assert "3 calls, and 2" in mistake_in([*call, call[0]], [PLAY], wanted)


def test_where_no_call_is_right():
    assert mistake_in(calls_in("None of these can tell."), [PLAY], "[]") == ""
    assert mistake_in([Call("stop", {})], [PLAY, STOP], "[]") == "1 calls, and 0 are wanted"
    assert mistake_in(None, [PLAY], "[]") == "it cannot be read"


CALL = Call("f.g", {"x": 1, "y": ["a", 2.5], "z": {"k": None}})
AS_JSON = json.dumps({"name": "f.g", "arguments": CALL.arguments})


@pytest.mark.parametrize(
    "text",
    [
        AS_JSON,
        f"[{AS_JSON}]",
        f"<think>hm {{}}</think>\n<tool_call>\n{AS_JSON}\n</tool_call>",
        f"I call it:\n```json\n{AS_JSON}\n```\nDone.",
        f"<tool_call>[{AS_JSON}]",
        json.dumps({"f.g": CALL.arguments}),
        json.dumps({"name": "f.g", "parameters": CALL.arguments}),
        json.dumps({"name": "f.g", "arguments": json.dumps(CALL.arguments)}),
        "[f.g(x=1, y=['a', 2.5], z={'k': None})]",
        "f.g(x=1, y=('a', 2.5), z={'k': None})",
        "```python\nf.g(x=1, y=['a', 2.5], z={'k': None})\n```",
    ],
)
def test_ways_to_write_a_call(text):
    assert calls_in(text) == [CALL]


def test_several_tags_are_several_calls():
    text = f"<tool_call>{AS_JSON}</tool_call> and <tool_call>{AS_JSON}</tool_call>"
    assert calls_in(text) == [CALL, CALL]
    assert calls_in("[f.g(x=1), h()]") == [Call("f.g", {"x": 1}), Call("h", {})]


@pytest.mark.parametrize(
    "text", ["", "No function fits.", "See [1] and {x}.", "[]", "```\nls\n```"]
)
def test_what_is_no_call(text):
    assert calls_in(text) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {',
        "<tool_call>f of x</tool_call>",
        "f(1, 2)",
        "f(x=open('secret'))",
        "f(**{'x': 1})",
        '[{"name": "f", "arguments": [1]}]',
        "f(x=1); g()",
        '{"name": "f", "arguments": "{"}',
    ],
)
def test_what_tries_to_be_one(text):
    assert calls_in(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        '{"a":' * 200_000,
        "f(" * 500_000,
        "f(x=" + "-" * 1_000_000 + "1)",
        "<tool_call>" * 90_000,
        "```" * 300_000,
        "\ud800" * 1_000_000,
        "f(x='" + "\ud800" * 100 + "')",
        "f(x=" + "(" * 19_000 + "1" + ")" * 19_000,
        "a" * 1_000_000 + "(",
        "f(x=9" + "9" * 15_000 + ")",
    ],
)
def test_hostile_answers_end_soon(text):
    began = time.monotonic()
    mistake_in(calls_in(text), [PLAY], accepted(("spotify.play", WANTED)))
    assert time.monotonic() - began < 1.0


def test_the_prompt_shows_every_function():
    text = tools_prompt([PLAY, STOP])
    assert json.dumps(PLAY) in text and json.dumps(STOP) in text and "<tool_call>" in text


def first_of(options):
    """A plain value out of accepted ones."""
    value = options[0] if options else ""
    if isinstance(value, dict):
        return {k: first_of(v) for k, v in value.items() if first_of(v) != ""}
    if isinstance(value, list):
        return [first_of([item]) for item in value]
    return value


def python_of(call):
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def test_every_row_s_own_answer_is_right_and_what_is_changed_in_it_is_wrong(data_dir):
    with gzip.open(data_dir / "bfcl_v4_single_turn.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 1498
    for number, row in enumerate(rows):
        functions, wanted = row["functions"], row["answer"]
        calls = [
            Call(name, {a: first_of(o) for a, o in arguments.items() if first_of(o) != ""})
            for call in json.loads(wanted)
            for name, arguments in call.items()
        ]
        written = json.dumps([{"name": c.name, "arguments": c.arguments} for c in calls])
        assert mistake_in(calls_in(written), functions, wanted) == "", row["id"]
        if calls and all(name.isidentifier() for call in calls for name in call.arguments):
            written = f"[{', '.join(map(python_of, calls))}]"
            assert mistake_in(calls_in(written), functions, wanted) == "", row["id"]
        extra = [*calls, Call(functions[0]["name"], {})]
        assert mistake_in(extra, functions, wanted), row["id"]
        for at, call in enumerate(calls if number % 3 == 0 else []):
            changes = [call._replace(name=call.name + "x")]
            changes.append(call._replace(arguments=call.arguments | {"no_such_argument": 1}))
            schema = next(
                f for f in functions if f["name"].replace(".", "_") == call.name.replace(".", "_")
            )
            options = json.loads(wanted)[at][call.name]
            for name, value in call.arguments.items():
                changes.append(call._replace(arguments=call.arguments | {name: ["no", "such"]}))
                if isinstance(value, str):
                    other = call.arguments | {name: value + " and something else"}
                    changes.append(call._replace(arguments=other))
                elif isinstance(value, int | float) and not isinstance(value, bool):
                    other = call.arguments | {name: value + 12345}
                    changes.append(call._replace(arguments=other))
                is_required = name in schema["parameters"].get("required", ())
                if is_required and "" not in options[name]:
                    rest = {k: v for k, v in call.arguments.items() if k != name}
                    changes.append(call._replace(arguments=rest))
            for changed in changes:
                wrong = [*calls[:at], changed, *calls[at + 1 :]]
                assert mistake_in(wrong, functions, wanted), (row["id"], changed)
