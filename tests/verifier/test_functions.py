import copy
import gzip
import json
import os
import time
from pathlib import Path

import pytest

from magistral_jax.verifier.functions import Call, calls_in, mistake_in, tools_prompt

SPECIAL = {
    # A required argument whose first accepted value is "": it must be there all the same.
    "bfcl-simple_python_200",
    # An accepted argument that the function's schema does not have.
    "bfcl-parallel_multiple_26",
    # No accepted value where the empty list is meant.
    "bfcl-live_simple_106-63-0",
    "bfcl-live_simple_112-68-0",
}
"""Rows of which the first accepted values alone make no right call."""


def schema(name="area.of", required=("base",), **properties):
    described = {
        key: {"type": kind} if isinstance(kind, str) else kind for key, kind in properties.items()
    }
    parameters = {"type": "dict", "properties": described, "required": list(required)}
    return {"name": name, "description": "", "parameters": parameters}


def judged(arguments, accepted, *, required=(), name="f", **properties):
    """What is wrong with `f(**arguments)`."""
    functions = [schema(name, required, **properties)]
    return mistake_in([Call(name, arguments)], functions, json.dumps([{name: accepted}]))


# Reading


F1 = [Call("f", {"a": 1})]
TWO = [Call("f", {"a": 1}), Call("g.h", {"c": [1, 2], "b": "x"})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', F1),
        ('[{"name": "f", "parameters": {"a": 1}}]', F1),
        ('{"f": {"a": 1}}', F1),
        ('{"name": {"a": 1}}', [Call("name", {"a": 1})]),
        ('{"name": "f"}', [Call("f", {})]),
        ('[{"f": {"a": 1}}, {"g.h": {"c": [1, 2], "b": "x"}}]', TWO),
        ('{"f": {"a": 1}}\n{"g.h": {"c": [1, 2], "b": "x"}}\n', TWO),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', F1),
        ("Here: <tool_call>\n[f(a=1)]\n</tool_call> Done.", F1),
        ("<tool_call>f(a=1)</tool_call><tool_call>g.h(c=[1, 2], b='x')</tool_call>", TWO),
        ('So:\n```json\n[{"name": "f", "arguments": {"a": 1}}]\n```\nDone.', F1),
        ("```python\n[f(a=1), g.h(c=[1, 2], b='x')]\n```", TWO),
        ("```python\nf(a=1)\ng.h(c=[1, 2], b='x')\n```", TWO),
        ("```\nf(a=1)\n```", F1),
        ("```f(a=1)```", F1),
        ("```json\n" + '{"f": {"a": 1}}', F1),  # a block that is never closed
        ("```bash\nls(1)\n```\n```py\nf(a=1)\n```", F1),
        ("[f(a=1)]", F1),
        ("f(a=1), g.h(c=[1, 2], b='x')", TWO),
        ("I shall call this:\n  [f(a=1)]", F1),
        ("I shall call this:\n[\n  {\n" + '"f": {"a": 1}}]', F1),
        ("<think>[g(b=2)]</think>[f(a=1)]", F1),
        ("<think>a</think> b </think>f(a=1)", F1),
        ("[f(a=-1, b=+2.5, c=None, d=True, e=false, g=null, h={'k': (1, 'x')})]",
         [Call("f", {"a": -1, "b": 2.5, "c": None, "d": True, "e": False, "g": None,
                     "h": {"k": (1, "x")}})]),
        (r"[f(a='\d')]", [Call("f", {"a": r"\d"})]),  # Python warns of that
        ("f()", [Call("f", {})]),
    ],
)  # fmt: skip
def test_calls_are_read_in_json_and_python_in_tags_blocks_and_bare(text, calls):
    assert calls_in(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "<tool_call>[]</tool_call>",
        "<tool_call></tool_call>",
        "```json\n[]\n```",
        "None of the functions can do this.",
        "Function(s) that compute areas are missing.",
        "You could call [f(a=1)] if you had it.",
        "- [ ] ask\n[1] a note",
        "```bash\nf(a=1)\n```",
        "```python\narea = 10 * 5 / 2\n```",
        "<think>f(a=1)</think>Sorry.",
    ],
)
def test_where_nothing_is_called_there_are_no_calls(text):
    assert calls_in(text) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"a": 1}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}',
        '{"f": {"a": 1}, "g": {"a": 1}}',
        '{"f": 1}',
        '[{"f": {"a": 1}}, 2]',
        '[[{"f": {"a": 1}}]]',
        '{"f": {"a": 1}} and so on',
        '<tool_call>{"f": {"a": 1}}',
        "<tool_call>f(a=1)</tool_call><tool_call>f(a=</tool_call>",
        "<tool_call>no call</tool_call>",
        "```json\n{'f'\n```",
        "[f(1)]",
        "[f(a=x)]",
        "[f(a=1, a=2)]",
        "[f(a=1, **{'b': 2})]",
        "[f(a={**{'b': 2}})]",
        "[f(a={1: 2})]",
        "[f(a=__import__('os').getcwd())]",
        "[f(a=1 + 1)]",
        "[f(a=b'x')]",
        "[f(a={1, 2})]",
        "[f(a=2j)]",
        "[f(a=-True)]",
        "[f(a=...)]",
        "[f()(a=1)]",
        "[f(a=1), 2]",
        "f(a=1, b=)",
        "<think>f(a=1)",
        "<tool_call>x = f(a=1)</tool_call>",
        "f(a=" + "[" * 33 + "]" * 33 + ")",
        '{"f": {"a": ' + "[" * 33 + "]" * 33 + "}}",
    ],
)
def test_an_attempt_that_cannot_be_read_is_told_from_none(text):
    assert calls_in(text) is None


def test_an_answer_without_end_cannot_be_read_but_thoughts_may_be_long():
    assert calls_in("<think>" + "a" * 100_000 + "</think>f(a=1)") == F1
    assert calls_in("f(a=1)" + " " * 100_000) == F1
    assert calls_in("a" * 20_000) == []
    assert calls_in("a" * 20_001) is None


def test_thirty_levels_are_read():
    deep = "[" * 30 + "]" * 30
    assert (
        calls_in(f"f(a={deep})")
        == calls_in(f'{{"f": {{"a": {deep}}}}}')
        == [Call("f", {"a": json.loads(deep)})]
    )


HOSTILE = {
    "brackets": "[" * 19_000,
    "brackets within": '{"f": {"a": ' + "[" * 9_000 + "]" * 9_000 + "}}",
    "braces": '{"a":' * 3_800,
    "parentheses": "f(" * 9_000,
    "python lists": "f(a=" + "[" * 9_000 + "]" * 9_000 + ")",
    "minuses": "f(a=" + "-" * 19_000 + "1)",
    "attributes": "[f" + ".f" * 9_000 + "(a=1)]",
    "calls of calls": "[f" + "()" * 9_000 + "]",
    "sums": "[f(a=1" + "+1" * 9_000 + ")]",
    "nots": "[f(a=" + "not " * 4_900 + "1)]",
    "tags": "<tool_call>" * 90_000,
    "closed tags": "<tool_call>f(</tool_call>" * 700,
    "fences": "```" * 6_600,
    "fenced calls": "```f(a=1)```" * 1_600,
    "lines of brackets": "[\n" * 9_900,
    "blank lines": "[" + "\n" * 19_900,
    "names": ("a." * 30 + "\n") * 300,
    "one name": "[" + "a" * 19_900,
    "a number": "[f(a=" + "9" * 19_000 + ")]",
    "a number in JSON": '{"f": {"a": ' + "9" * 19_000 + "}}",
    "a number in base 16": "[f(a=0x" + "9" * 19_000 + ")]",
    "many calls": "[" + "f(a=1)," * 2_800 + "]",
    "many objects": '{"f":{}}' * 2_400,
    "many arguments": "[f(" + ",".join(f"a{i}=1" for i in range(2_500)) + ")]",
    "thoughts": "</think>" * 125_000 + "[f(a=1)]",
    "a million": "[f(a=1), " * 111_111,
    "a million letters": "a" * 1_000_000,
    "a surrogate": "[f(a='\ud800')]",
    "a surrogate in JSON": '{"f": {"a": "\\ud800"}}',
    "surrogates": '{"\udcff": {"\udcff": "\udcff"}}',
    "zeros": "[f(a=1)\0]",
    "endless": '{"f": {"a": NaN, "b": 1e999}}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_response_is_judged_at_once(text):
    start = time.monotonic()
    calls = calls_in(text)
    wrong = mistake_in(calls, [schema("f", a="string")], '[{"f": {"a": ["x"], "b": [1]}}]')
    assert wrong and wrong.isprintable()
    wrong.encode()
    assert time.monotonic() - start < 1


# Judging


TOOLS = [
    schema("area.of", ("base",), base="integer", unit="string", sides="array"),
    schema("volume", ("edge",), edge="float"),
]
ONE = '[{"area.of": {"base": [10, 12], "unit": ["cm", "centimeters", ""]}}]'


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("area.of(base=10)", ""),
        ("area_of(base=12, unit='CM')", ""),
        ("area.of(base=10, unit='')", ""),
        ("areaof(base=10)", "calls areaof instead of area.of"),
        ("volume(edge=10)", "calls volume instead of area.of"),
        ("area.of(unit='cm')", "base is missing, which is required"),
        ("area.of(base=10, height=5)", "height is no argument that is wanted"),
        ("area.of(base=10, sides=[])", "sides is no argument that is wanted"),
        ("area.of(base=11)", "base has a wrong value"),
        ("area.of(base=10.0)", "base has the wrong type"),
        ("area.of(base='10')", "base has the wrong type"),
        ("area.of(base='')", "base has the wrong type"),
        ("area.of(base=None)", "base has the wrong type"),
        ("area.of(base=10, unit='mm')", "unit has a wrong value"),
        ("area.of(base=10), area.of(base=10)", "calls: 2 instead of 1"),
        ("", "calls: 0 instead of 1"),
        ("[area.of(10)]", "a call that cannot be read"),
    ],
)  # fmt: skip
def test_a_single_call_is_judged(call, wrong):
    assert mistake_in(calls_in(call), TOOLS, ONE) == wrong


def test_an_argument_that_is_accepted_without_a_way_out_must_be_there():
    accepted = {"a": [1], "b": [2]}
    assert judged({"a": 1}, accepted, a="integer", b="integer") == "b is missing"
    assert judged({"a": 1}, {"a": [1], "b": [2, ""]}, a="integer", b="integer") == ""
    assert judged({"a": 1}, {"a": [1]}, a="integer", b="integer") == ""


def test_a_required_argument_must_be_there_though_the_row_would_let_it_out():
    assert judged({}, {"a": [1, ""]}, required=["a"], a="integer") != ""


def test_an_argument_that_the_schema_lacks_is_unknown_though_the_row_has_it():
    assert judged({"a": 1}, {"a": [1, ""]}, b="integer") == "a is no argument that is wanted"
    assert judged({}, {"a": [1, ""]}, b="integer") == ""


def array_of(kind):
    return {"type": "array", "items": {"type": kind}}


@pytest.mark.parametrize(
    ("kind", "accepted", "right", "wrong"),
    [
        ("integer", [5], [5], [5.0, 6, True, "5", [5], None]),
        ("integer", [1], [1], [True, 1.0]),
        ("float", [5.0], [5.0, 5], [5.1, "5.0", True]),
        ("float", [0], [0, 0.0], [False, ""]),
        ("float", [None, ""], [None], [0, ""]),
        ("boolean", [True], [True], [1, "true", "True", False, None]),
        ("boolean", [False, ""], [False], [0, ""]),
        ("string", ["New York, NY"], ["new york ny", "New_York-NY", "'New York', NY."], ["NY", 1]),
        ("string", ["*"], ["*", " * "], ["/", "-", ""]),
        ("string", [True, ""], [True, ""], ["True", 1]),
        ("string", ["a", "b"], ["A", "b."], ["ab", ["a"]]),
        ("any", ["data", 3], ["data", "DATA", 3, 3.0], [True, "3", None]),
        (array_of("integer"), [[1, 2]], [[1, 2]], [[2, 1], [1], [1, 2, 2], [1.0, 2], (1, 2), 1]),
        (array_of("float"), [[1.0, 2.5]], [[1, 2.5]], [["1", 2.5], [True, 2.5]]),
        (array_of("string"), [["a b"], ["c"]], [["A-B"], ["C"]], [["ab", "c"], "ab", [1], [["c"]]]),
        (array_of("float"), ["data['x']"], ["data['x']"], [["data['x']"], "data['y']", 1]),
        (array_of("integer"), [], [[]], [[1], "", None]),
        ({"type": "array", "items": array_of("integer")}, [[[1], [2]]], [[[1], [2]]], [[[1, 2]]]),
        ({"type": "tuple", "items": {"type": "float"}}, [[1.5, 2]], [[1.5, 2], (1.5, 2)],
         [[2, 1.5], 1.5, ("1.5", 2)]),
    ],
)  # fmt: skip
def test_a_value_has_the_type_of_the_schema_and_is_one_of_those_accepted(
    kind, accepted, right, wrong
):
    for value in right:
        assert judged({"a": value}, {"a": accepted}, a=kind) == "", value
    for value in wrong:
        assert judged({"a": value}, {"a": accepted}, a=kind) != "", value


RANGE = {"type": "dict", "properties": {"min": {"type": "float"}, "max": {"type": "float"}}}
CARDS = {"type": "dict"}
CONDITIONS = {
    "type": "array",
    "items": {"type": "dict", "properties": {"of": {"type": "string"}, "at": {"type": "integer"}}},
}


@pytest.mark.parametrize(
    ("kind", "accepted", "right", "wrong"),
    [
        (RANGE, {"min": [1.0, 2.0], "max": [9]}, [{"min": 1, "max": 9}, {"max": 9.0, "min": 2}],
         [{"min": 1}, {"min": 3, "max": 9}, {"min": "1", "max": 9}, {"min": 1, "max": 9, "a": 1},
          {}, [], [1, 9], "", None]),
        (RANGE, {"min": [1.0], "max": ["", 9]}, [{"min": 1}, {"min": 1, "max": 9}],
         [{"max": 9}, {"min": 1, "max": ""}, {"min": 1, "max": 8}]),
        (CARDS, {"Al": [["2 of hearts"]]}, [{"Al": ["2 OF hearts"]}],
         [{"Al": "2 of hearts"}, {"Al": [["2 of hearts"]]}, {"al": ["2 of hearts"]}]),
        (CARDS, {}, [{}], [{"a": 1}, []]),
        (CONDITIONS, [{"of": ["a", "b"], "at": [1]}, {"of": ["c"], "at": ["", 2]}],
         [[{"of": "B", "at": 1}, {"of": "c"}], [{"of": "a", "at": 1}, {"of": "c", "at": 2}]],
         [[{"of": "c"}, {"of": "a", "at": 1}], [{"of": "a", "at": 1}],
          [{"of": "a", "at": 1.0}, {"of": "c"}], {"of": "a", "at": 1}, [1, 2]]),
        (CONDITIONS, [], [[]], [[{}], {}]),
    ],
)  # fmt: skip
def test_a_dict_has_accepted_values_of_its_own(kind, accepted, right, wrong):
    for value in right:
        assert judged({"a": value}, {"a": [accepted]}, a=kind) == "", value
    for value in wrong:
        assert judged({"a": value}, {"a": [accepted]}, a=kind) != "", value


def test_an_empty_text_leaves_out_and_is_no_number():
    assert judged({"a": ""}, {"a": ["", 3]}, a="integer") == "a has the wrong type"
    assert judged({"a": ""}, {"a": ["", "x"]}, a="string") == ""
    assert judged({"a": "-"}, {"a": ["", "x"]}, a="string") == "a has a wrong value"


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        ("[volume(edge=1), area.of(base=2), area.of(base=3)]", ""),
        ("[area.of(base=3), area.of(base=2), volume(edge=1.0)]", ""),
        ("[area.of(base=3), area.of(base=3), volume(edge=1)]", "base has a wrong value"),
        ("[area.of(base=3), area.of(base=2)]", "calls: 2 instead of 3"),
        ("[area.of(base=3), area.of(base=4), volume(edge=1)]", "base has a wrong value"),
        ("[area.of(base=3), area.of(base=2), area.of(base=2)]", "too few calls of volume"),
        ("area.of(base=3), volume(edge=1), volume(edge=1), f()", "calls: 4 instead of 3"),
    ],
)  # fmt: skip
def test_several_calls_are_matched_in_any_order(calls, wrong):
    accepted = (
        '[{"area.of": {"base": [2]}}, {"area.of": {"base": [3]}}, {"volume": {"edge": [1.0]}}]'
    )
    assert mistake_in(calls_in(calls), TOOLS, accepted) == wrong


def test_a_matching_is_found_where_the_first_fit_is_not_the_right_one():
    accepted = (
        '[{"volume": {"edge": [1, 2, 3]}}, {"volume": {"edge": [1, 2]}}, {"volume": {"edge": [1]}}]'
    )
    for order in ([1, 2, 3], [3, 2, 1], [2, 1, 3]):
        calls = [Call("volume", {"edge": edge}) for edge in order]
        assert mistake_in(calls, TOOLS, accepted) == ""
    calls = [Call("volume", {"edge": edge}) for edge in (3, 3, 1)]
    assert mistake_in(calls, TOOLS, accepted) != ""


def test_where_nothing_fits_only_no_call_is_right():
    assert mistake_in([], TOOLS, "[]") == ""
    assert mistake_in(calls_in("No function fits."), TOOLS, "[]") == ""
    assert mistake_in(calls_in("area.of(base=1)"), TOOLS, "[]") == "calls: 1 instead of 0"
    assert mistake_in(None, TOOLS, "[]") == "a call that cannot be read"


def test_the_prompt_shows_the_schemas_and_a_form_that_is_read():
    prompt = tools_prompt(TOOLS)
    assert all(json.dumps(function) in prompt.split("\n") for function in TOOLS)
    form = next(line for line in prompt.split("\n") if line.startswith("<tool_call>"))
    assert calls_in(form.replace("{...}", '{"a": 1}')) == [Call("...", {"a": 1})]


# The rows


@pytest.fixture(scope="module")
def rows():
    folder = os.environ.get("MAGISTRAL_DATA")
    if not folder:
        pytest.skip("MAGISTRAL_DATA is not set")
    with gzip.open(Path(folder) / "bfcl_v4_single_turn.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    assert len(found) == 1_498
    return found


def first(accepted):
    """The first accepted value, of a dict's members too; "" stays, for it leaves out."""
    return chosen(accepted[0])


def chosen(value):
    if isinstance(value, dict):
        return {k: first(v) for k, v in value.items() if v[0] != ""}
    return [chosen(item) for item in value] if isinstance(value, list) else value


def calls_of(row, *, special):
    """A call of each function with the first accepted values, and what special rows need."""
    schemas = {function["name"]: function["parameters"] for function in row["functions"]}
    found = []
    for pair in json.loads(row["answer"]):
        ((name, accepted),) = pair.items()
        arguments = {}
        for argument, values in accepted.items():
            if special:
                if argument in schemas[name]["required"]:
                    values = [value for value in values if value != ""] or [[]]
                elif argument not in schemas[name]["properties"]:
                    continue
            if values and first(values) != "":
                arguments[argument] = first(values)
        found.append(Call(name, arguments))
    return found


def in_json(calls):
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])


def in_python(calls):
    made = (f"{n}({', '.join(f'{key}={value!r}' for key, value in a.items())})" for n, a in calls)
    return f"[{', '.join(made)}]"


def wrong_in(row, text):
    return mistake_in(calls_in(text), row["functions"], row["answer"])


def test_the_first_accepted_values_of_each_row_are_right(rows):
    for row in rows:
        calls = calls_of(row, special=True)
        for text in (in_json(calls), in_python(calls)):
            assert calls_in(text) == calls, row["id"]
            for form in (
                "{}",
                "<tool_call>{}</tool_call>",
                "So:\n```\n{}\n```",
                "<think>a</think>{}",
            ):
                assert wrong_in(row, form.replace("{}", text)) == "", (row["id"], form)
        underscored = [Call(name.replace(".", "_"), arguments) for name, arguments in calls]
        assert wrong_in(row, in_json(underscored[::-1])) == "", row["id"]


def test_few_rows_need_special_treatment(rows):
    plain = [(row, in_json(calls_of(row, special=False))) for row in rows]
    assert {row["id"] for row, text in plain if wrong_in(row, text)} == SPECIAL


def changed(value):
    """A value of the same type that no row accepts."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 98_765
        case str():
            return value + "qx"
        case list():
            return [changed(value[0]), *value[1:]] if value else ["qx"]
        case dict():
            return {key: changed(inner) for key, inner in value.items()} or {"qx": 1}
    return "qx"


def mutations(row, calls):
    """What was done to the calls, and the calls."""
    schemas = {function["name"]: function["parameters"] for function in row["functions"]}
    others = [*schemas, calls[0].name + "x"] if calls else [*schemas]
    yield "one too many", [*calls, calls[0] if calls else Call(others[0], {})]
    accepted = [value for pair in json.loads(row["answer"]) for value in pair.values()]
    for at, (name, arguments) in enumerate(calls):

        def instead(call, at=at):
            return [*calls[:at], call, *calls[at + 1 :]]

        yield "one too few", calls[:at] + calls[at + 1 :]
        yield "another name", instead(Call(name + "x", arguments))
        for other in others:
            if other != name:
                yield "another function", instead(Call(other, arguments))
        yield "unknown", instead(Call(name, {**arguments, "qx": 1}))
        for argument, value in arguments.items():
            if argument in schemas[name]["required"]:
                rest = {key: kept for key, kept in arguments.items() if key != argument}
                yield "a required one dropped", instead(Call(name, rest))
            new = changed(copy.deepcopy(value))
            if isinstance(value, bool) and new in accepted[at][argument]:
                new = "qx"  # both truths are accepted
            yield "a value", instead(Call(name, {**arguments, argument: new}))
            wrong_type = {"not": "this"} if not isinstance(value, dict) else [value]
            yield "a type", instead(Call(name, {**arguments, argument: wrong_type}))


def test_each_mutation_of_each_row_is_wrong(rows):
    tried = dict.fromkeys(
        ["one too many", "one too few", "another name", "another function", "unknown",
         "a required one dropped", "a value", "a type"], 0,
    )  # fmt: skip
    for row in rows:
        for what, calls in mutations(row, calls_of(row, special=True)):
            tried[what] += 1
            wrong = mistake_in(calls, row["functions"], row["answer"])
            assert wrong, (row["id"], what, calls)
    assert min(tried.values()) > 1_000, tried
