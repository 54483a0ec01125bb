"""What a model's config.json says, asked for by name and type; a fault is a `UserError`."""

import json
import math
from pathlib import Path
from typing import Any

from magistral_jax.types import UserError

_MISSING = object()


class Said:
    """The values of a config.json, or of a part of it."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, default: Any = _MISSING) -> int:
        return self._number(key, default, (int,))

    def number(self, key: str, default: Any = _MISSING) -> float:
        return float(self._number(key, default, (int, float)))

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(f"{key} is {value!r}; it must be true or false")
        return value

    def whole(self, key: str, default: int) -> int:
        """As `count`, but 0 is a number, too, and null is none."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refusal(f"{key} is {value!r}; it must be a whole number")
        return value

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse a value that would change the network; unsaid, null and `allowed` do not."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.refusal(f"{key} is {value!r}, and only {allowed[0]!r} can be computed here")

    def refusal(self, why: str) -> UserError:
        return UserError(
            f"model.source: {self.path} describes a network we cannot run: {why}. "
            "Name another model."
        )

    def _number(self, key: str, default: Any, kinds: tuple[type, ...]) -> Any:
        value = self.values.get(key)
        if value is None and default is not _MISSING:
            return default
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if value is None or not is_number or not 0 < value < math.inf:
            found = "missing" if value is None else repr(value)
            raise self.refusal(f"{key} is {found}; it must be a number above 0")
        return value


def parsed(path: Path) -> dict[str, Any]:
    """The JSON object in the file; a `UserError` if there is none."""
    try:
        return an_object(json.loads(path.read_text("utf-8")), path)
    except FileNotFoundError:
        raise UserError(f"model.source: there is no {path}.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"model.source: {path} is not JSON that can be read: {error}.") from None


def an_object(value: Any, path: Path) -> dict[str, Any]:
    """`value`, which was found in the file at `path`; a `UserError` if it is no object."""
    if not isinstance(value, dict):
        raise UserError(f"model.source: {path} holds no object where a network's config should be.")
    return value
