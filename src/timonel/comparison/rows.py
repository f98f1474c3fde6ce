"""Rows as a table of pyarrow, for export and for reports of before sqlite.

Nothing else needs pyarrow.
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
# the table of before sqlite, and its name once it was read
BEFORE, KEPT = "results.parquet", "results.parquet.read"
COLUMNS = {
    "string": [
        "id", "kind", "status", "reason", "reference", "model", "prompt", "image", "sampler",
        "grid", "noise", "recipe",
    ],
    "int64": [
        "nfe", "evaluations", "evaluations_saved", "frames", "previews", "width", "height", "seed",
        "steps",
    ],
    "float64": ["seconds", "change", "guidance", "guidance_until", *MEASURES],
    "bool_": ["stochastic"],
}  # fmt: skip


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
    columns = [(name, getattr(pa, kind)()) for kind, names in COLUMNS.items() for name in names]
    columns += [(name, pa.list_(pa.float64())) for name in ("levels", "times")]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(columns))


def exportable(path: str | PathLike[str]) -> Path:
    """The path of a table. Raises `ArgumentError` for another suffix, or without pyarrow."""
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
    """The rows of a report of before sqlite; none where there is no such table.

    Raises:
        ArgumentError: the table cannot be read.
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
        for batch in file.iter_batches(batch_size=8):  # one value may stand for many rows
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
    """Rename the table of before sqlite, once its rows are in the new one."""
    with suppress(FileNotFoundError):  # as nearly always, or another process did it
        (root / BEFORE).replace(root / KEPT)
