"""A TOML file and overrides become a `RunConfig`, and back; config.py alone says which fields.

Nothing is half-applied: every fault of the file and of the command line is collected and told at
once, and only a config without a fault and without a broken rule is returned.
"""

import ast
import functools
import inspect
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from magistral_jax import config as config_module
from magistral_jax.config import RunConfig
from magistral_jax.rules import broken_rules
from magistral_jax.types import UserError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def load(path: str | Path | None, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """The config a file and the overrides ask for, with no rule broken; the last override wins.

    Without a file it starts from the defaults.
    """
    path = None if path is None else Path(path)
    faults: list[str] = []
    values: dict[str, Any] = {}

    def take(name: str, key: str, value: Any) -> None:
        try:
            values[key] = _checked(name, _field_type(key), value)
        except UserError as fault:
            faults.append(str(fault))

    table = _parse(path, faults) if path else {}
    # Fields outside any table are the run's own; a file may gather them under [run].
    if isinstance(own := table.get("run"), dict):
        faults += [
            f"{name} is in [run] and outside it; say it once." for name in own if name in table
        ]
        table = {**own, **{name: value for name, value in table.items() if name != "run"}}
    for key, value in _leaves(table, "", faults):
        take(key, key, value)
    for key, text in overrides:
        take(f"--{key}", key, _Typed(text))
    opening = f"config {path.stem!r} cannot run:" if path else "the options cannot be used:"
    _raise_all(opening, faults)
    config = _replaced(RunConfig(), values)
    _raise_all(opening, broken_rules(config))
    return config


def parse_overrides(args: Sequence[str]) -> list[tuple[str, str]]:
    """Dotted keys and their texts, from `--trainer.learning-rate 3e-7` or `--seed=1`."""
    overrides: list[tuple[str, str]] = []
    faults: list[str] = []
    rest = iter(args)
    waiting = ""
    for arg in rest:
        if waiting and not arg.startswith("--"):
            overrides.append((waiting, arg))
            waiting = ""
            continue
        if waiting:
            faults.append(_without_value(waiting))
            waiting = ""
        key, equals, text = arg.partition("=")
        key = key.removeprefix("--").replace("-", "_").removeprefix("run.")
        if not arg.startswith("--") or not key:
            faults.append(f"{arg!r} is not an override; write --trainer.steps 10.")
        elif equals:
            overrides.append((key, text))
        else:
            waiting = key
    if waiting:
        faults.append(_without_value(waiting))
    _raise_all("the command line cannot be read:", faults)
    return overrides


def dump(config: RunConfig) -> str:
    """The whole config as TOML, each field under its documentation; `load` gives it back equal."""
    return "\n".join(_dumped(config, "")) + "\n"


def dotted_fields() -> dict[str, Any]:
    """Every field a user can set: dotted path -> type, in the order of config.py."""
    return {
        _join(table, name): hint
        for table, hints in _tables().items()
        for name, hint in hints.items()
        if not is_dataclass(hint)
    }


def field_docs() -> dict[str, str]:
    """Dotted path -> the text under the field in config.py; a field without one is left out."""
    by_class = _docs_by_class()
    return {
        _join(table, name): text
        for table, cls in _classes().items()
        for name, text in by_class[cls.__name__].items()
    }


class _Typed(str):
    """Text from the command line: it still has to become the field's type."""


def _parse(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        beside = get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")])
        also = _or(str(path.parent / name) for name in beside)
        faults.append(f"{path} does not exist" + (f"; did you mean {also}?" if beside else "."))
    except OSError as fault:
        faults.append(f"{path} cannot be read: {fault.strerror}.")
    except ValueError as fault:  # TOMLDecodeError, UnicodeDecodeError, an absurdly long integer
        faults.append(f"{path} is not TOML: {fault}.")
    return {}


def _leaves(table: Mapping[str, Any], where: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """The values of a parsed file with their dotted paths; tables out of place become faults."""
    known = _tables()[where]
    for name, value in table.items():
        path = _join(where, name)
        if name not in known:
            # `"trainer.steps" = 3` is one name with a dot in it, not the path it looks like.
            missing = f'"{name}"' if "." in name else path
            faults.append(_unknown(missing, is_table=isinstance(value, dict)))
        elif not is_dataclass(known[name]):
            yield path, value
        elif isinstance(value, dict):
            yield from _leaves(value, path, faults)
        else:
            faults.append(f"{path} is {value!r}; it is a table: write its fields under [{path}].")


def _field_type(key: str) -> Any:
    """The type of a field, which must exist."""
    known = dotted_fields()
    if key in known:
        return known[key]
    if key in _tables():
        inside = ", ".join(path for path in known if path.rpartition(".")[0] == key)
        raise UserError(f"--{key} is a table, not a field; its fields are {inside}.")
    raise UserError(_unknown(key, is_table=False))


def _unknown(key: str, *, is_table: bool) -> str:
    """What to say of a name that is not there: the one likely meant, or what there is."""
    table, _, leaf = key.rpartition(".")
    tables = [name for name in _tables() if name]
    if is_table:
        close = [f"[{name}]" for name in get_close_matches(key, tables, n=1)]
        missing, there_is = f"table [{key}]", f"the tables are {', '.join(tables)}"
    else:
        paths = list(dotted_fields())
        beside = [path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == table]
        close = (
            get_close_matches(key, paths, n=1, cutoff=0.85)
            or [path for path in paths if path.rpartition(".")[2] == leaf]
            or [_join(table, name) for name in get_close_matches(leaf, beside, n=1)]
        )
        missing = f"field {key}"
        there_is = (
            f"beside it are {', '.join(beside)}" if beside else f"tables: {', '.join(tables)}"
        )
    return f"there is no {missing}; " + (f"did you mean {_or(close)}?" if close else f"{there_is}.")


def _checked(name: str, hint: Any, value: Any) -> Any:
    """The value as the field's type, or a UserError that says what is allowed."""
    if get_origin(hint) is tuple:
        return _rows(name, get_args(hint)[0], value)
    if get_origin(hint) is Literal:
        found = [choice for choice in get_args(hint) if type(choice) is str and choice == value]
        if found:
            return found[0]
        allowed = ", ".join(json.dumps(choice) for choice in get_args(hint))
        raise UserError(f"{name} is {_shown(value)}; it must be one of {allowed}.")
    parsed = _from_text(hint, value) if isinstance(value, _Typed) else value
    if hint is float and type(parsed) is int and abs(parsed) < 2**63:
        parsed = float(parsed)
    # `type is`, not isinstance: true is an int to Python, and not to the user.
    if type(parsed) is not hint:
        raise UserError(f"{name} is {_shown(value)}; it must be {_KINDS[hint]}.")
    if hint is float and not math.isfinite(parsed):
        raise UserError(f"{name} is {parsed}; it must be a finite number.")
    if hint is int and not -(2**63) <= parsed < 2**63:
        raise UserError(f"{name} is {parsed}; it must fit 64 bits.")
    return parsed


def _rows(name: str, cls: Any, value: Any) -> tuple[Any, ...]:
    """The tables of a [[list]], each as its dataclass."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        table = name.removeprefix("--")
        raise UserError(f"{name} is a list of tables; write each as [[{table}]] in the file.")
    hints = get_type_hints(cls)
    unknown = sorted({key for row in value for key in row} - hints.keys())
    if unknown:
        close = get_close_matches(unknown[0], hints, n=1)
        hint = f"did you mean {close[0]}?" if close else f"its fields are {', '.join(hints)}."
        raise UserError(f"there is no field {unknown[0]} in [[{name}]]; {hint}")
    return tuple(
        cls(**{k: _checked(f"{name}[{i}].{k}", hints[k], v) for k, v in row.items()})
        for i, row in enumerate(value)
    )


def _from_text(hint: Any, text: str) -> Any:
    """The text read as the type, or unchanged where it cannot be."""
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint is str:
            text.encode()  # a byte of the command line that is no UTF-8 arrives as a surrogate
        return hint(text)
    except (ValueError, KeyError):
        return text


def _replaced(config: Any, values: Mapping[str, Any], where: str = "") -> Any:
    changes: dict[str, Any] = {}
    for field in fields(config):
        path, old = _join(where, field.name), getattr(config, field.name)
        if is_dataclass(old):
            changes[field.name] = _replaced(old, values, path)
        elif path in values:
            changes[field.name] = values[path]
    return replace(config, **changes)


def _dumped(config: Any, where: str) -> Iterator[str]:
    inner, listed = [], []
    for field in fields(config):
        path, value = _join(where, field.name), getattr(config, field.name)
        if is_dataclass(value):
            inner.append((value, path))  # TOML wants a table's own fields before its tables
        elif isinstance(value, tuple) and value:
            listed += [(row, path) for row in value]
        else:
            yield from _comment(path)
            yield f"{field.name} = {_toml(value)}"
    for value, path in inner:
        yield from ("", *_comment(path), f"[{path}]")
        yield from _dumped(value, path)
    for i, (row, path) in enumerate(listed):
        yield from ("", *(_comment(path) if i == 0 else []), f"[[{path}]]")
        yield from (f"{f.name} = {_toml(getattr(row, f.name))}" for f in fields(row))


def _comment(path: str) -> list[str]:
    return [f"# {line}".rstrip() for line in field_docs().get(path, "").splitlines()]


def _toml(value: bool | int | float | str | tuple[()]) -> str:
    if value == ():
        return "[]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, and for the surrogate pairs of ensure_ascii.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


@functools.cache
def _classes() -> dict[str, type]:
    """Dotted path of each table ("" is the top) -> its dataclass."""
    found: dict[str, type] = {}

    def visit(cls: Any, where: str) -> None:
        found[where] = cls
        for name, hint in get_type_hints(cls).items():
            if is_dataclass(hint):
                visit(hint, _join(where, name))

    visit(RunConfig, "")
    return found


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    """Dotted path of each table -> its fields' types."""
    return {where: get_type_hints(cls) for where, cls in _classes().items()}


@functools.cache
def _docs_by_class() -> dict[str, dict[str, str]]:
    """Class -> field -> the string literal that follows the field in config.py."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(config_module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found = docs.setdefault(node.name, {})
        for field, after in zip(node.body, node.body[1:], strict=False):
            match field, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return docs


def _join(table: str, name: str) -> str:
    return f"{table}.{name}" if table else name


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _shown(value: Any) -> str:
    return "a table" if isinstance(value, dict) else repr(value)


def _without_value(key: str) -> str:
    return f"--{key} has no value; write --{key} VALUE."


def _raise_all(opening: str, faults: Sequence[str]) -> None:
    if faults:
        raise UserError("\n  - ".join([opening, *faults]))
