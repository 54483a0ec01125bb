"""Function calls in an answer, and whether they are the right ones (single-turn, as in BFCL).

An answer is a list of JSON objects, in <tool_call> tags, in a block of code or bare, or the same in
Python's syntax. Nothing is called: arguments are literals. What a row accepts is a JSON list of
{function: {argument: [values]}}; "" among the values means that the argument may be left out.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MOST_CHARS = 20_000
_TAG, _END_TAG, _FENCE = "<tool_call>", "</tool_call>", "```"
_IDLE = str.maketrans("", "", " ,./-_*^'\"")
_JSON = re.compile(r"\[?\s*\{|\[\s*\]\s*$")
_PYTHON = re.compile(r"\[?\s*[A-Za-z_][\w.]{0,200}\s*\(")
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "float": (int, float),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "object": (dict,),
}


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]


def tools_prompt(functions: Sequence[Mapping[str, Any]]) -> str:
    """What stands before the question: the functions, and how to call them."""
    described = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    return (
        "You can call these functions:\n\n"
        f"{described}\n\n"
        "If they help to answer, call all that are needed, and say nothing else: a JSON list of "
        '{"name": ..., "arguments": {...}} between <tool_call> and </tool_call>. If none of them '
        "does, say so without a call."
    )


def calls_in(text: str) -> list[Call] | None:
    """The calls that an answer makes: none, or None where it tries to and cannot be read."""
    text = text.rpartition("</think>")[2].strip()[:MOST_CHARS]
    if _TAG in text:
        return _joined(_between(text, _TAG, _END_TAG))
    if _FENCE in text:
        blocks = [block.partition("\n")[2] for block in _between(text, _FENCE, _FENCE)]
        found = [block.strip() for block in blocks if _looks_like_calls(block.strip())]
        return _joined(found) if found else []
    return _read(text) if _looks_like_calls(text) else []


def mistake_in(
    calls: Sequence[Call] | None, functions: Sequence[Mapping[str, Any]], accepted: str
) -> str:
    """What is wrong with the calls, in a few words; "" if nothing is.

    Any order will do, and each call answers one of those wanted.
    """
    wanted = [
        (name, arguments) for call in json.loads(accepted) for name, arguments in call.items()
    ]
    if calls is None:
        return "it cannot be read"
    if len(calls) != len(wanted):
        return f"{len(calls)} calls, and {len(wanted)} are wanted"
    schemas = {_flat(function["name"]): function for function in functions}
    faults = [
        [_fault(call, name, arguments, schemas) for name, arguments in wanted] for call in calls
    ]
    if _can_be_matched([[not fault for fault in row] for row in faults]):
        return ""
    hopeless = [row for row in faults if all(row)]
    return min(hopeless[0], key=len) if hopeless else "two calls answer the same one"


def _between(text: str, begin: str, end: str) -> list[str]:
    """What stands between the marks; after the last one, up to the end."""
    found, at = [], text.find(begin)
    while at >= 0:
        start = at + len(begin)
        stop = text.find(end, start)
        found.append(text[start : stop if stop >= 0 else len(text)])
        at = text.find(begin, stop + len(end)) if stop >= 0 else -1
    return found


def _looks_like_calls(text: str) -> bool:
    return bool(_JSON.match(text) or _PYTHON.match(text))


def _joined(parts: Sequence[str]) -> list[Call] | None:
    found: list[Call] = []
    for part in parts:
        calls = _read(part.strip())
        if calls is None:
            return None
        found += calls
    return found


def _read(text: str) -> list[Call] | None:
    if not text or text == "[]":
        return []
    if _PYTHON.match(text):
        return _python_calls(text)
    try:
        return _json_calls(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _json_calls(value: Any) -> list[Call] | None:
    if isinstance(value, list):
        found = [_json_calls(item) for item in value]
        if any(calls is None or len(calls) != 1 for calls in found):
            return None
        return [call for calls in found if calls for call in calls]
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(name, str) and arguments is not None:
        if isinstance(arguments, str):  # some models write them as a text of JSON
            arguments = json.loads(arguments)
        return [Call(name, arguments)] if isinstance(arguments, dict) else None
    if len(value) == 1:
        ((name, arguments),) = value.items()
        return [Call(name, arguments)] if isinstance(arguments, dict) else None
    return None


def _python_calls(text: str) -> list[Call] | None:
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        found = [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return None if any(call is None for call in found) else [call for call in found if call]


def _python_call(node: ast.expr) -> Call | None:
    if not isinstance(node, ast.Call) or node.args or any(k.arg is None for k in node.keywords):
        return None
    parts: list[str] = []
    at: ast.expr = node.func
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    if not isinstance(at, ast.Name):
        return None
    name = ".".join([at.id, *reversed(parts)])
    return Call(name, {str(k.arg): _plain(ast.literal_eval(k.value)) for k in node.keywords})


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON has."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _flat(name: str) -> str:
    """Dots are written as underscores by models whose API knows no dots."""
    return name.replace(".", "_")


def _fault(
    call: Call, name: str, accepted: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]
) -> str:
    """Why this call is not the one that is wanted; "" if it is."""
    if _flat(call.name) != _flat(name):
        return f"it calls {call.name[:40]!r}, and {name!r} is wanted"
    parameters = schemas[_flat(name)]["parameters"]
    properties: Mapping[str, Any] = parameters.get("properties", {})
    for argument, value in call.arguments.items():
        if argument not in accepted:
            return f"argument {argument[:40]!r} is not expected"
        if not _has_type(value, properties.get(argument, {}), accepted[argument]):
            return f"{argument} has the wrong type"
        if not any(_is_same(value, option) for option in accepted[argument]):
            return f"{argument} has a wrong value"
    for argument in {*parameters.get("required", ()), *accepted} - call.arguments.keys():
        options = accepted.get(argument, (None,))
        if options and "" not in options:  # some rows accept no value at all: then none is asked
            return f"argument {argument!r} is missing"
    return ""


def _has_type(value: Any, schema: Mapping[str, Any], options: Sequence[Any]) -> bool:
    """Whether a value is of the schema's type or, where they disagree, of an accepted value's."""
    if any(type(option) is type(value) and option != "" for option in options):
        return True
    kinds = _TYPES.get(str(schema.get("type")), (object,))
    if isinstance(value, bool):
        return bool in kinds or object in kinds
    if not isinstance(value, kinds):
        return False
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, Mapping):
        return all(_has_type(item, items, ()) for item in value)
    return True


def _is_same(value: Any, option: Any) -> bool:
    """Whether a value is an accepted one: texts without case, blanks and marks; members of a dict
    have lists of accepted values of their own."""
    if isinstance(option, dict):
        if not isinstance(value, dict) or value.keys() - option.keys():
            return False
        for key, options in option.items():
            choices = options if isinstance(options, list) else [options]
            if key not in value:
                if "" not in choices:
                    return False
            elif not any(_is_same(value[key], choice) for choice in choices):
                return False
        return True
    if isinstance(option, list):
        return (
            isinstance(value, list)
            and len(value) == len(option)
            and all(_is_same(*pair) for pair in zip(value, option, strict=True))
        )
    if isinstance(option, str):
        # Of a text of marks alone nothing would be left to compare.
        is_bare = isinstance(value, str) and bool(_bare(option)) and _bare(value) == _bare(option)
        return is_bare or value == option
    if isinstance(option, bool) or isinstance(value, bool):
        return value is option
    return value == option and isinstance(value, int | float | type(None))


def _bare(text: str) -> str:
    return text.lower().translate(_IDLE)


def _can_be_matched(fits: Sequence[Sequence[bool]]) -> bool:
    """Whether every row can have a column of its own that fits (augmenting paths)."""
    taken: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, is_fit in enumerate(fits[row]):
            if is_fit and column not in seen:
                seen.add(column)
                if column not in taken or place(taken[column], seen):
                    taken[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))
