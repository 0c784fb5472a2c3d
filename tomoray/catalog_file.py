"""One Parquet file of the catalog: rows sorted by `series_id` and `part`, in groups of one size.

The same rows leave the same bytes, whatever was written before. A file is rewritten a group at a time, so that memory
does not grow with its rows.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Row = Mapping[str, Any]

_GROUP_ROWS = 1024


def read_rows(file: bytes, schema: pa.Schema) -> pa.Table:
    """All rows, in these columns; those that a later or earlier release has or lacks are dropped or null."""
    with pq.ParquetFile(io.BytesIO(file)) as opened:
        return _in_schema(
            opened.read(columns=[name for name in schema.names if name in opened.schema_arrow.names]), schema
        )


def with_rows(file: bytes, new: Mapping[str, Mapping[str, Row]], schema: pa.Schema) -> bytes:
    """The file with other rows for some series.

    Args:
        file: as it is; empty where there is none.
        new: rows by `series_id` and `part`; those of a series replace all that it had.
        schema: of the rows, old and new.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        rest = schema.empty_table()
        for rows in _merged(file, new, schema):
            rest = pa.concat_tables([rest, rows])
            while len(rest) >= _GROUP_ROWS:
                writer.write_table(rest.slice(0, _GROUP_ROWS).combine_chunks())
                rest = rest.slice(_GROUP_ROWS)
        if len(rest):
            writer.write_table(rest.combine_chunks())
    return sink.getvalue()


def _merged(file: bytes, new: Mapping[str, Mapping[str, Row]], schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows in their order, some at a time."""
    waiting = sorted(new)
    replaced = pa.array(waiting, pa.string())
    for rows in _groups(file, schema):
        kept = rows.filter(pc.invert(pc.is_in(rows["series_id"], value_set=replaced)))
        n_due = bisect_right(waiting, rows["series_id"][-1].as_py())
        yield _sorted(kept, (new[series_id] for series_id in waiting[:n_due]))
        waiting = waiting[n_due:]
    yield _sorted(schema.empty_table(), (new[series_id] for series_id in waiting))


def _groups(file: bytes, schema: pa.Schema) -> Iterator[pa.Table]:
    if file:
        with pq.ParquetFile(io.BytesIO(file)) as opened:
            for batch in opened.iter_batches(_GROUP_ROWS):
                yield _in_schema(pa.table(batch), schema)


def _sorted(kept: pa.Table, new: Iterable[Mapping[str, Row]]) -> pa.Table:
    added = pa.Table.from_pylist([row for parts in new for row in parts.values()], schema=kept.schema)
    return pa.concat_tables([kept, added]).sort_by([("series_id", "ascending"), ("part", "ascending")])


def _in_schema(stored: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = [
        stored[field.name].cast(field.type) if field.name in stored.column_names else pa.nulls(len(stored), field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
