"""Single-turn function calls: what a response calls, and whether it is right, as BFCL judges it.

Where a response can be read in two ways, the stricter one counts:
- what follows the last `</think>` is read, and none of it if it is longer than 20,000 characters;
- calls stand in `<tool_call>` tags; without tags, in blocks of code; without those, bare, from the
  first line on that opens like calls. A call in the midst of a sentence is prose;
- they are JSON, or Python's call syntax with literal arguments, all of them named.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from magistral_jax.verifier.grade import shown

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MOST_CHARS = 20_000
_DEEPEST = 32
"""Levels of brackets in an argument: more than any schema has, and no trouble for recursion."""

_BLOCKS = {"", "json", "jsonc", "python", "py", "python3", "tool_call", "tool_code"}
_WORD = re.compile(r"[A-Za-z_]\w*")
# How calls open, at the start of a line. A bracket makes it sure; `f(` may be prose: "Function(s)".
_SURE = re.compile(r"^[ \t]*(?:\{|(?:\[\s*){1,2}(?:\{|[A-Za-z_][\w.]*\())", re.MULTILINE)
_MAYBE = re.compile(r"[A-Za-z_][\w.]*\(")

_IDLE = str.maketrans("", "", " ,./-_*^'\"")
_WORDS = {"true": True, "false": False, "null": None}


class Call(NamedTuple):
    """A function's name and its arguments; tuples are found only where Python wrote them."""

    name: str
    arguments: dict[str, Any]


def tools_prompt(functions: Sequence[Mapping[str, Any]]) -> str:
    """The instruction that stands before the user's question: what can be called, and how."""
    schemas = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    return (
        "You can call functions. These are their schemas, one a line, as JSON:\n"
        f"{schemas}\n\n"
        "Answer with all the calls that the question needs, as one JSON list between tags:\n"
        f'{_OPEN}[{{"name": "...", "arguments": {{...}}}}]{_CLOSE}\n'
        "If no function fits the question, or the question lacks a required argument, write no "
        "such tags, and say so."
    )


def calls_in(text: str) -> list[Call] | None:
    """The calls that a response makes, [] if none; None if it tries to, and cannot be read.

    Linear in the text, which may be hostile. Thoughts that never end, and an answer of more than
    20,000 characters, cannot be read.
    """
    answer = text.rpartition("</think>")[2].strip()
    if len(answer) > _MOST_CHARS or answer.startswith("<think>"):
        return None
    if _OPEN in answer:
        pieces = [piece.partition(_CLOSE) for piece in answer.split(_OPEN)[1:]]
        if not all(closing for _, closing, _ in pieces):
            return None
        return _all_read([body for body, _, _ in pieces])
    parts = answer.split("```")
    blocks = [
        body for body in map(_in_fence, parts[1::2]) if _SURE.match(body) or _MAYBE.match(body)
    ]
    if blocks:
        return _all_read(blocks)
    return _bare("\n".join(parts[::2]))


def mistake_in(
    calls: list[Call] | None, functions: Sequence[Mapping[str, Any]], accepted: str
) -> str:
    """What is wrong with the calls, in a few words; "" if nothing is.

    `accepted` is a JSON list of {function: {argument: [accepted values]}}, "[]" where no call is
    right. Calls may come in any order. Raises KeyError if `accepted` names no given function.
    """
    wanted = [pair for function in json.loads(accepted) for pair in function.items()]
    if calls is None:
        return "a call that cannot be read"
    if len(calls) != len(wanted):
        return f"calls: {len(calls)} instead of {len(wanted)}"
    schemas = {function["name"]: function["parameters"] for function in functions}
    # One row for each call that is wanted, one column for each that was made.
    mistakes = [
        [_mistake(call, name, schemas[name], arguments) for call in calls]
        for name, arguments in wanted
    ]
    unmet = _unmatched([[not mistake for mistake in row] for row in mistakes])
    if unmet is None:
        return ""
    name, row = wanted[unmet][0], mistakes[unmet]
    if len(wanted) == 1:
        return row[0]
    pairs = zip(calls, row, strict=True)
    reasons = [mistake for call, mistake in pairs if mistake and _named(call, name)]
    return reasons[0] if reasons else f"too few calls of {name}"


# Reading


def _all_read(pieces: Sequence[str]) -> list[Call] | None:
    """The calls of all pieces, or None if one cannot be read."""
    found: list[Call] = []
    for piece in pieces:
        calls = _read(piece)
        if calls is None:
            return None
        found += calls
    return found


def _in_fence(part: str) -> str:
    """The content of a block of code; empty if it is in a language that calls are not in."""
    word = _WORD.match(part)
    name = word[0] if word else ""
    after = part[len(name) :]
    if name and after and not after[0].isspace():
        return part.strip()  # no language: ```f(a=1)```
    return after.strip() if name.lower() in _BLOCKS else ""


def _bare(text: str) -> list[Call] | None:
    """The calls of a text without tags and blocks."""
    sure = _SURE.search(text)
    if sure:
        return _read(text[sure.start() :])
    text = text.strip()
    if not _MAYBE.match(text):
        return []
    calls = _read(text)
    return [] if calls is None and not text.endswith(")") else calls


def _read(text: str) -> list[Call] | None:
    """The calls of a text that should hold nothing else."""
    text = text.strip()
    if not text:
        return []
    try:
        calls = _json_calls(text)
    except (ValueError, RecursionError):
        try:
            calls = _python_calls(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return calls if all(_is_shallow(call.arguments, _DEEPEST) for call in calls) else None


def _json_calls(text: str) -> list[Call]:
    """The calls of JSON values, one after another. Raises ValueError, RecursionError."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found += [_json_call(item) for item in (value if isinstance(value, list) else [value])]
        while text[at : at + 1].isspace():
            at += 1
    return found


def _json_call(value: Any) -> Call:
    """{"name": ..., "arguments": {...}}, or "parameters", or {name: {...}}. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    name = value.get("name")
    if isinstance(name, str):
        given = [value[key] for key in ("arguments", "parameters") if key in value]
        arguments = given[0] if given else {}
        if len(given) > 1:
            raise ValueError("two sets of arguments")
    elif len(value) == 1:
        ((name, arguments),) = value.items()
    else:
        raise ValueError("no name")
    if not isinstance(arguments, dict):
        raise ValueError("arguments without names")
    return Call(name, arguments)


def _python_calls(text: str) -> list[Call]:
    """The calls of Python expressions: calls, and lists of calls. Raises what parsing raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape in a string is the response's own affair
        body = ast.parse(text).body
    found = []
    for statement in body:
        if not isinstance(statement, ast.Expr):
            raise ValueError("a program")
        value = statement.value
        several = isinstance(value, ast.List | ast.Tuple)
        found += [_python_call(node) for node in (value.elts if several else [value])]
    return found


def _python_call(node: ast.expr) -> Call:
    """`a.b(c=1)`. Raises ValueError if it is anything else."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call by names")
    names, function = [], node.func
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("a function without a name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("`**`, or an argument twice")
        arguments[keyword.arg] = _literal(keyword.value, _DEEPEST)
    return Call(".".join([function.id, *reversed(names)]), arguments)


def _literal(node: ast.expr | None, levels: int) -> Any:
    """The value of a literal that JSON could write, or a tuple of such. Raises ValueError."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=number)):
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=items) if levels:
            return [_literal(item, levels - 1) for item in items]
        case ast.Tuple(elts=items) if levels:
            return tuple(_literal(item, levels - 1) for item in items)
        case ast.Dict(keys=keys, values=values) if levels:
            made = [_literal(key, 0) for key in keys]  # a `**` has no key
            if not all(isinstance(key, str) for key in made):
                raise ValueError("a key that is no text")
            items = [_literal(value, levels - 1) for value in values]
            return dict(zip(made, items, strict=True))
    raise ValueError("no literal")


def _is_shallow(value: Any, levels: int) -> bool:
    """Whether a value has at most so many levels of brackets."""
    if not isinstance(value, dict | list | tuple):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


# Judging. All recursion below follows the accepted values, which are ours, not the response's.


def _unmatched(fits: Sequence[Sequence[bool]]) -> int | None:
    """The first row that finds no column of its own, or None: a matching by augmenting paths."""
    row_of: dict[int, int] = {}
    return next((row for row in range(len(fits)) if not _place(row, fits, row_of, set())), None)


def _place(
    row: int, fits: Sequence[Sequence[bool]], row_of: dict[int, int], tried: set[int]
) -> bool:
    """Whether the row gets a column, be it by moving the row that has it to another one."""
    for column, fit in enumerate(fits[row]):
        if fit and column not in tried:
            tried.add(column)
            if column not in row_of or _place(row_of[column], fits, row_of, tried):
                row_of[column] = row
                return True
    return False


def _named(call: Call, name: str) -> bool:
    """Whether a call is of the function: some write underscores, as APIs forbid dots."""
    return call.name in (name, name.replace(".", "_"))


def _mistake(
    call: Call, name: str, parameters: Mapping[str, Any], wanted: Mapping[str, Sequence[Any]]
) -> str:
    """Why a call is not the wanted one; "" if it is."""
    if not _named(call, name):
        return f"calls {shown(call.name)} instead of {name}"
    properties = parameters.get("properties", {})
    for argument in parameters.get("required", ()):
        if argument not in call.arguments:
            return f"{argument} is missing, which is required"
    for argument, value in call.arguments.items():
        if argument not in properties or argument not in wanted:
            return f"{shown(argument)} is no argument that is wanted"
        if not _is_accepted(value, wanted[argument], properties[argument]):
            fault = "a wrong value" if _has_type(value, properties[argument]) else "the wrong type"
            return f"{argument} has {fault}"
    for argument, values in wanted.items():
        if argument not in call.arguments and "" not in values:
            return f"{argument} is missing"
    return ""


def _is_accepted(value: Any, accepted: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of those accepted. Some rows have [] where they mean [[]]."""
    return any(_is_same(value, one, schema) for one in (accepted or [[]]))


def _is_same(value: Any, wanted: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value has its type, and is the wanted one.

    Its type is the schema's or, where these differ, that of the wanted value: rows have None, and
    names of variables for lists. "" in place of a number is no such value, but leaves it out.
    """
    stands_in = type(value) is type(wanted) and wanted != ""
    if not (stands_in or _has_type(value, schema)):
        return False
    match wanted:
        case str():
            return isinstance(value, str) and _is_same_text(value, wanted)
        case list():
            items = schema.get("items", {})
            return (
                isinstance(value, list | tuple)
                and len(value) == len(wanted)
                and all(_is_same(*pair, items) for pair in zip(value, wanted, strict=True))
            )
        case dict():
            return isinstance(value, dict) and _is_same_dict(value, wanted, schema)
        case bool() | None:
            return value is wanted
    return _is_number(value) and value == wanted


def _is_same_dict(
    value: Mapping[str, Any], wanted: Mapping[str, Any], schema: Mapping[str, Any]
) -> bool:
    """Whether each key has a value that is accepted; a key of which "" is may be left out."""
    properties = schema.get("properties", {})
    if not value.keys() <= wanted.keys():
        return False
    return all(
        _is_accepted(value[key], accepted, properties.get(key, {}))
        if key in value
        else "" in accepted
        for key, accepted in wanted.items()
    )


def _is_same_text(value: str, wanted: str) -> bool:
    """Whether two texts differ only in case, blanks, quotes and idle marks; "*" is not "/"."""
    ours, theirs = (text.lower().translate(_IDLE) for text in (value, wanted))
    return ours == theirs if theirs else value.strip() == wanted.strip()


def _has_type(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is of the schema's type, not regarding what it holds."""
    match schema.get("type"):
        case "integer":
            return _is_number(value) and isinstance(value, int)
        case "float" | "number":
            return _is_number(value)
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "tuple":
            return isinstance(value, list | tuple)
        case "dict" | "object":
            return isinstance(value, dict)
    return True  # "any", or a value whose type no schema says


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
