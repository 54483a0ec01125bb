"""Where problems come from: data sets, procedural tasks, sums made on demand; and which are held
out.
"""

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from magistral_jax.config import RunConfig
from magistral_jax.data.files import rows_from
from magistral_jax.rows import problem_of, text_in
from magistral_jax.types import Problem, UserError

GENERATED_SUMS = "generated sums"
"""The source of every problem of `Sums`."""

PROCEDURAL = "reasoning-gym/"
"""How the source of every problem of reasoning-gym begins."""
LONGEST = 200_000
"""Characters of a problem or an answer beyond which a row is a mistake."""

_KEYS = ("id", "problem", "answer", "domain", "language", "source")
_MOST_SUMS = 2**31  # grain shuffles 32-bit positions
_HASH_RANGE = 2**64


@runtime_checkable
class Problems(Protocol):
    """A list of problems, or whatever can be asked for its i-th."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Problem: ...


def problems_of(config: RunConfig, tell: Callable[[str], None] = lambda fault: None) -> Problems:
    """What a run asks: its mixture, its data, or generated sums."""
    data = config.data
    if config.mixture:
        return Mixture(
            [
                (read_problems(part.path, columns=data.columns, tell=tell), part.weight)
                for part in config.mixture
            ]
        )
    if not data.path:
        return Sums(data.digits)
    return read_problems(data.path, columns=data.columns, tell=tell)


def read_problems(
    source: str | Path,
    *,
    columns: str = "",
    tell: Callable[[str], None] = lambda fault: None,
) -> list[Problem]:
    """The problems of a source (`files.rows_from`), or of a procedural task: "gym:NAME:COUNT", of
    reasoning-gym.

    Keys a row needs: id, problem, answer, domain, language, source, each a text. Others are
    ignored. A row that is no problem is told, with its place, and left out.
    """
    if str(source).startswith("gym:"):
        return _procedural(str(source))
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for place, row in rows_from(source, columns=columns):
        try:
            if isinstance(row, UserError):
                raise row
            problem = _problem(place, row)
            if problem.id in first_seen:
                raise UserError(
                    f"{place}: id {problem.id!r} is taken by {first_seen[problem.id]}; ids must "
                    "differ."
                )
        except UserError as fault:
            tell(str(fault))
            continue
        first_seen[problem.id] = place
        problems.append(problem)
    if not problems:
        raise UserError(f"data.path is {str(source)!r}; it holds no problem.")
    return problems


def _problem(place: str, row: Mapping[str, Any]) -> Problem:
    for key in _KEYS:
        text = text_in(place, row, key, None if key in ("id", "problem", "domain") else "")
        if not text.strip() and key in ("id", "problem"):
            raise UserError(f"{place}: {key} is empty; a problem needs it.")
        if len(text) > LONGEST:
            raise UserError(f"{place}: {key} has {len(text)} characters; {LONGEST} is the limit.")
    return problem_of(place, row)


def _procedural(source: str) -> list[Problem]:
    """Problems of a task of reasoning-gym, made here; its own scorer judges them
    (`verifier.own.ReasoningGym`)."""
    _, name, count, *rest = [*source.split(":"), "", ""]
    size = int(count) if count.isdecimal() else 0
    if not name or any(rest) or size < 1:
        raise UserError(
            f"data.path is {source!r}; a procedural task is gym:NAME:COUNT, as gym:chain_sum:1000."
        )
    try:
        import reasoning_gym
    except ImportError as lack:
        raise UserError(
            f"data.path is {source!r}, and reasoning-gym is not installed. Install the extra "
            "`reasoning-gym`."
        ) from lack
    try:
        entries: Any = reasoning_gym.create_dataset(name, size=size, seed=0)
    except ValueError as fault:
        raise UserError(f"data.path is {source!r}; {fault}") from fault
    return [
        Problem(
            id=f"{name}-{number}",
            domain="math",
            question=entry["question"],
            answer=json.dumps(entry, default=str),
            source=f"{PROCEDURAL}{name}",
        )
        for number, entry in enumerate(entries)
    ]


class Mixture:
    """Several lists of problems as one, and how often each is asked."""

    def __init__(self, parts: Sequence[tuple[list[Problem], float]]) -> None:
        self.parts = parts
        self._all = [problem for problems, _ in parts for problem in problems]
        names = Counter(problem.id for problem in self._all)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise UserError(
                f"mixture: {len(twice)} ids are in more than one part, as {twice[0]!r}; ids must "
                "differ."
            )

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> Problem:
        return self._all[index]


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
        return self._of(*(self._smallest + part for part in divmod(place, self._numbers)))

    def named(self, name: str) -> Problem:
        """The sum of this id."""
        _, a, b = name.split("-")
        return self._of(int(a), int(b))

    def _of(self, a: int, b: int) -> Problem:
        return Problem(
            id=f"sum-{a}-{b}",
            domain="math",
            question=f"{a}+{b}=?",
            answer=str(a + b),
            source=GENERATED_SUMS,
        )


def is_heldout(question: str, percent: float) -> bool:
    """Whether evaluation owns this question: the same on every machine, in every run and order.

    Equal questions are held out together, whatever their ids: Unicode's form (NFKC), case and
    white space aside. A larger percent holds out all that a smaller one does.
    """
    text = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * _HASH_RANGE
