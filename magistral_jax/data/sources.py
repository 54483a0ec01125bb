"""Where problems come from: a JSONL file, or sums made on demand; and which are held out."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from magistral_jax.rows import problem_of, row_of, text_in
from magistral_jax.types import Problem, UserError

GENERATED_SUMS = "generated sums"
"""The source of every problem of `Sums`."""

_KEYS = ("id", "problem", "answer", "domain", "language", "source")
_MOST_SUMS = 2**31  # grain shuffles 32-bit positions
_HASH_RANGE = 2**64


@runtime_checkable
class Problems(Protocol):
    """A list of problems, or whatever can be asked for its i-th."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Problem: ...


def read_jsonl(path: str | Path) -> list[Problem]:
    """The problems of a file, one JSON object a line (gzip if its name ends in .gz).

    Keys it needs: id, problem, answer, domain, language, source, each a text. Others are ignored,
    and so are blank lines.
    """
    path = Path(path)
    problems: list[Problem] = []
    first_seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        problem = _problem(f"{path}:{number}", line)
        if problem.id in first_seen:
            raise UserError(
                f"{path}:{number}: id {problem.id!r} is taken by line {first_seen[problem.id]}; "
                "ids must differ."
            )
        first_seen[problem.id] = number
        problems.append(problem)
    if not problems:
        raise UserError(f"data.path is {str(path)!r}; the file holds no problem.")
    return problems


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield from stream
    except FileNotFoundError:
        raise UserError(f"data.path is {str(path)!r}; there is no such file.") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"data.path is {str(path)!r}; the name ends in .gz, but it is not a whole gzip file: "
            f"{error}"
        ) from error
    except OSError as error:
        raise UserError(
            f"data.path is {str(path)!r}; it cannot be read: {error.strerror}"
        ) from error


def _problem(place: str, line: bytes) -> Problem:
    row = row_of(place, line)
    for key in _KEYS:
        if not text_in(place, row, key).strip() and key in ("id", "problem"):
            raise UserError(f"{place}: {key} is empty; a problem needs it.")
    return problem_of(place, row)


class Sums:
    """Every sum of two numbers of `digits` digits, made when asked for.

    From 5 digits on there are more than a shuffle can index; then 2**31 of them, spread evenly,
    stand for all.

    Example: Problem(id="sum-347-285", question="347+285=?", answer="632", ...)
    """

    def __init__(self, digits: int) -> None:
        self._smallest = 10 ** (digits - 1)
        self._numbers = 9 * self._smallest
        self._total = self._numbers**2
        # Steps of the golden ratio spread any number of points evenly, and with no factor in
        # common with the total they meet no sum twice.
        golden = (math.isqrt(5 * self._total**2) - self._total) // 2
        self._stride = 1 if self._total <= _MOST_SUMS else golden
        while math.gcd(self._stride, self._total) > 1:
            self._stride += 1

    def __len__(self) -> int:
        return min(self._total, _MOST_SUMS)

    def __getitem__(self, index: int) -> Problem:
        place = range(len(self))[index] * self._stride % self._total
        a, b = (self._smallest + part for part in divmod(place, self._numbers))
        return Problem(
            id=f"sum-{a}-{b}",
            domain="math",
            question=f"{a}+{b}=?",
            answer=str(a + b),
            source=GENERATED_SUMS,
        )


def is_heldout(problem_id: str, percent: float) -> bool:
    """Whether evaluation owns this problem: the same on every machine, in every run and order.

    A larger percent holds out all that a smaller one does.
    """
    digest = hashlib.blake2b(problem_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * _HASH_RANGE
