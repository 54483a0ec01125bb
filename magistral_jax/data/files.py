"""Rows from where data lie: files, folders of them, and data sets of the Hugging Face hub.

    problems.jsonl, problems.jsonl.gz    one JSON object a line
    problems.parquet                     (extra `data`)
    a folder                             all of these in it, in the order of their names
    hf:org/name, hf:org/name:split       a data set of the hub (extra `data`); split "train" unless
                                         told, and its configuration after another colon

A row that cannot be read comes as the `UserError` that says so, with its place; what cannot be
opened at all is raised.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magistral_jax.rows import row_of
from magistral_jax.types import UserError

Row = tuple[str, Mapping[str, Any] | UserError]
"""(its place, what it holds or what is wrong with it)."""

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def rows_from(source: str | Path, *, field: str = "data.path", columns: str = "") -> Iterator[Row]:
    """The rows of a source, in order; blank lines are none.

    Args:
        field: What the source is called in messages.
        columns: Its columns under our names: "problem=question, answer=solution".
    """
    renamed = _columns(columns)
    for place, row in _rows(str(source), field):
        if not isinstance(row, UserError) and renamed:
            row = {
                **row,
                **{ours: row[theirs] for ours, theirs in renamed.items() if theirs in row},
            }
        yield place, row


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for ours, equals, theirs in pairs:
        if not equals or not ours.strip() or not theirs.strip():
            raise UserError(
                f"data.columns is {text!r}; it must be pairs: problem=question, answer=solution."
            )
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _rows(source: str, field: str) -> Iterator[Row]:
    if source.startswith("hf:"):
        yield from _hub_rows(source, field)
        return
    path = Path(source)
    if not path.is_dir():
        yield from _file_rows(path, field)
        return
    files = sorted(file for file in path.iterdir() if file.name.endswith(_ENDINGS))
    if not files:
        raise UserError(f"{field} is {source!r}; the folder holds no {', '.join(_ENDINGS)} file.")
    for file in files:
        yield from _file_rows(file, field)


def _file_rows(path: Path, field: str) -> Iterator[Row]:
    if path.suffix == ".parquet":
        for number, row in enumerate(_table(path, field), 1):
            yield f"{path}:{number}", row
        return
    for number, line in enumerate(_lines(path, field), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, row_of(place, line)
        except UserError as fault:
            yield place, fault


def _lines(path: Path, field: str) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield from stream
    except FileNotFoundError:
        raise UserError(f"{field} is {str(path)!r}; there is no such file.") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{field} is {str(path)!r}; the name ends in .gz, but it is not a whole gzip file: "
            f"{error}"
        ) from error
    except OSError as error:
        raise UserError(f"{field} is {str(path)!r}; it cannot be read: {error.strerror}") from error


def _table(path: Path, field: str) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError as lack:
        raise UserError(
            f"{field} is {str(path)!r}, and pyarrow is not installed. Install the extra `data`."
        ) from lack
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise UserError(f"{field} is {str(path)!r}; there is no such file.") from None
    except (ArrowException, OSError) as error:
        raise UserError(f"{field} is {str(path)!r}; it cannot be read: {error}") from error


def _hub_rows(source: str, field: str) -> Iterator[Row]:
    name, _, rest = source.removeprefix("hf:").partition(":")
    split, _, configuration = rest.partition(":")
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as lack:
        raise UserError(
            f"{field} is {source!r}, and the package datasets is not installed. Install the extra "
            "`data`, or name a file."
        ) from lack
    try:
        rows = load_dataset(name, configuration or None, split=split or "train")
    except Exception as error:  # of the network, of the hub, of the data set's own code
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{field} is {source!r}; it cannot be loaded: {said}") from error
    for number, row in enumerate(rows, 1):
        # What a data set leaves open has a plain meaning here.
        yield f"{source}:{number}", {"id": f"{name}-{number}", "domain": "math", **row}
