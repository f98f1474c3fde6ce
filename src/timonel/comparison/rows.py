"""Rows as a table of pyarrow: for export, and to read the reports of before sqlite. Nothing else
needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import reading
from ..errors import ArgumentError
from ..files import replacing
from .measure import MEASURES

if TYPE_CHECKING:
    import pyarrow

MOST, TEXT = 1_000_000, 2**26  # rows, and bytes, of a table that is read
BEFORE, KEPT = (
    "results.parquet",
    "results.parquet.read",
)  # the table of before sqlite, and its name once it was read


def _pyarrow(why: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ArgumentError(
            f"{why} needs pyarrow: pip install pyarrow (or timonel[parquet])"
        ) from error
    return pyarrow


def table(rows: Sequence[dict[str, Any]]) -> pyarrow.Table:
    """The rows as a table. Raises `ArgumentError` without pyarrow."""
    pa = _pyarrow("a table")
    text = (
        "id",
        "kind",
        "status",
        "reason",
        "reference",
        "model",
        "prompt",
        "image",
        "sampler",
        "grid",
        "noise",
    )
    whole = (
        "nfe",
        "evaluations",
        "evaluations_saved",
        "frames",
        "previews",
        "width",
        "height",
        "seed",
        "steps",
    )
    real = ("seconds", "change", "guidance", "guidance_until", *MEASURES)
    kinds = (
        dict.fromkeys(text, pa.string())
        | dict.fromkeys(whole, pa.int64())
        | dict.fromkeys(real, pa.float64())
    )
    lists = dict.fromkeys(("levels", "times"), pa.list_(pa.float64()))
    columns = [*kinds.items(), *lists.items(), ("stochastic", pa.bool_()), ("recipe", pa.string())]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(columns))


def exportable(path: str | PathLike[str]) -> Path:
    """Where a table can be written. Raises `ArgumentError` for a name that it cannot have, or
    without pyarrow.
    """
    target = Path(path)
    if target.suffix.lower() != ".parquet":
        raise ArgumentError(f"a table is written as a .parquet file, got {str(path)!r}")
    if target.name == BEFORE:
        raise ArgumentError(
            f"{BEFORE!r} is the name of an earlier timonel's table: give the export another one"
        )
    _pyarrow("a Parquet file")
    return target


def export(rows: Sequence[dict[str, Any]], path: str | PathLike[str]) -> Path:
    """Write the rows as a Parquet file; see `exportable`."""
    target, content = exportable(path), table(rows)
    import pyarrow.parquet as parquet

    with replacing(target) as temporary:
        parquet.write_table(content, temporary)
    return target


def before(root: Path) -> list[dict[str, Any]]:
    """The rows of a report that was written before sqlite. Raises `ArgumentError` where they cannot
    be read.
    """
    path = root / BEFORE
    if not path.is_file():
        return []
    pa = _pyarrow(f"{str(path)!r}, the table of an earlier timonel,")
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(reading.content(path, most=TEXT)))
        about = file.metadata
        size = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
        if about.num_rows > MOST or size > TEXT or path.is_symlink():
            raise ValueError(f"{about.num_rows} rows of {size} bytes, or a link")
        rows: list[dict[str, Any]] = []
        for batch in file.iter_batches(
            batch_size=8
        ):  # a value that is written once may stand for many
            size += batch.nbytes
            if size > 4 * TEXT:
                raise ValueError(f"more than {4 * TEXT:,} bytes")
            rows += batch.to_pylist()
    except Exception as error:
        raise ArgumentError(
            f"{str(path)!r} cannot be read: {error}; delete it to begin anew"
        ) from error
    return rows


def put_away(root: Path) -> None:
    """Give the table of before sqlite another name: its rows are in the new one, and it no longer
    grows.
    """
    with suppress(FileNotFoundError):  # as nearly always, or another process did it
        (root / BEFORE).replace(root / KEPT)
