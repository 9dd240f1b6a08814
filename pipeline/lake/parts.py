"""Part files: the assignments of one slice, in one file, written once.

The name and content of a part depend on slice, model and run alone, and its footer has its
statistics. A part with the right identity is complete, so an interrupted assignment resumes from
the parts that exist. Where nights carry parts over, they do not depend on the run: an unchanged
slice has the part that an earlier night wrote (``pipeline.labelling.carrying``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import fingerprint_of
from pipeline.errors import TransientError
from pipeline.schema import ASSIGNMENT_FIELDS, classes_in
from pipeline.storage import Store, open_input, parquet_bytes

# Folder of the Delta table: it must have the part files, and nothing else (pipeline.lake.tables).
DELTA_FOLDER = "delta"

_METADATA_KEY = b"dec_pipeline"
# Engines skip row groups by the range of cluster_id; small enough to skip, big enough to scan.
_ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True)
class PartStatistics:
    """Statistics of one part, stored in its footer."""

    identity: str  # identity by ``part_identity``
    rows_in: int  # rows of the slice
    rows: int  # rows written; fewer than rows_in only under ``source.nulls: drop``
    cluster_rows: list[list[int]]  # (cluster_id, rows) of each cluster that occurs
    confidence_sum: float
    # (cluster_id, class, rows) where the table has a label; classes as JSON values.
    contingency: list[list[Any]]
    # Number of rows of each feature in each bin of the champion's reference sample.
    bins: list[list[int]] = field(default_factory=list)
    binned_rows: int = 0  # number of rows that ``bins`` counts: every n-th row of the part


class BinnedRows:
    """Rows of all parts in each bin of the champion's reference sample, estimated from some.

    A part counts with all of its rows, however few of them were binned. Sums are of integers, so
    the order of the parts does not matter.
    """

    def __init__(self) -> None:
        self._rows = self._counted = 0
        self._counts_FB: NDArray[np.int64] | None = None

    def add(self, part: PartStatistics) -> None:
        """Add a part."""
        if not part.binned_rows:
            return
        counts_FB = np.array(part.bins, np.int64) * part.rows
        counts_FB = (counts_FB + part.binned_rows // 2) // part.binned_rows
        self._counts_FB = counts_FB if self._counts_FB is None else self._counts_FB + counts_FB
        self._rows += part.rows
        self._counted += part.binned_rows

    def counts(self) -> NDArray[np.int64] | None:
        """Rows in each bin, shape (features, bins); None without any.

        They add up to about the number of binned rows, on which chance differences depend.
        """
        if self._counts_FB is None:
            return None
        counts_FB: NDArray[np.int64] = np.rint(
            self._counts_FB * (self._counted / self._rows)
        ).astype(np.int64)
        return counts_FB


def part_identity(pieces: pa.Table, **of: str) -> str:
    """Identity of the part that holds these pieces' assignments.

    ``of`` has everything else that decides the content: model, schema; also run and ds, unless
    the part may be carried over.
    """
    content = pieces.select(["name", "version", "row_group", "row_start", "rows"]).to_pydict()
    return fingerprint_of({"pieces": content, **of})


def parts_folder(run_id: str, table_format: str) -> str:
    """Folder of a run's parts, below the output."""
    return f"{DELTA_FOLDER}/{run_id}" if table_format == "delta" else f"runs/{run_id}/assignments"


def part_path(folder: str, identity: str) -> str:
    """Path of the part of this identity, below the output."""
    return f"{folder}/part-{identity[:20]}.parquet"


def statistics_of(
    identity: str, rows_in: int, table: pa.Table, label: pa.Array | None
) -> PartStatistics:
    """Statistics of a part, to be stored with it.

    ``label`` has the true classes of the same rows, where there are any; null and NaN do not count.
    """
    cluster = table["cluster_id"]
    ids, counts = np.unique(cluster.to_numpy(), return_counts=True)
    contingency: list[list[Any]] = []
    if label is not None:
        pairs = pa.table({"cluster": cluster, "label": classes_in(label)}).drop_null()
        groups = pairs.group_by(["cluster", "label"]).aggregate([([], "count_all")])
        order = [("cluster", "ascending"), ("label", "ascending")]
        contingency = [
            [row["cluster"], _json_value(row["label"]), row["count_all"]]
            for row in groups.sort_by(order).to_pylist()
        ]
    return PartStatistics(
        identity=identity,
        rows_in=rows_in,
        rows=len(table),
        cluster_rows=np.stack([ids, counts], axis=1).tolist(),
        confidence_sum=float(np.sum(table["confidence"].to_numpy(), dtype=np.float64)),
        contingency=contingency,
    )


def write_part(lake: Store, path: str, table: pa.Table, statistics: PartStatistics) -> int:
    """Write a part in one upload, and verify the file; returns its size in bytes.

    Raises:
        TransientError: The file does not hold what was written.
    """
    metadata = {_METADATA_KEY: json.dumps(asdict(statistics)).encode()}
    table = table.replace_schema_metadata(metadata)
    content = parquet_bytes(table, _ROW_GROUP_ROWS)
    lake.write_bytes(path, content)
    there = read_statistics(lake, path, statistics.identity)
    if there is None or there[1] != len(content):
        raise TransientError(
            f"{lake.locate(path)} is not the file of {len(content):,} bytes and "
            f"{statistics.rows:,} rows that was just written; the same run id writes it again"
        )
    return len(content)


def wrong_parts(lake: Store, files: Iterable[PartFile]) -> list[str]:
    """Locations of files that are missing or of another size; each folder is listed once."""
    sizes: dict[str, dict[str, int]] = {}
    wrong = []
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if folder not in sizes:
            sizes[folder] = {found.name: found.bytes for found in lake.list(folder)}
        if sizes[folder].get(name) != file.bytes:
            wrong.append(lake.locate(file.path))
    return wrong


def read_statistics(lake: Store, path: str, identity: str) -> tuple[PartStatistics, int] | None:
    """Statistics and size of a part; None unless it is complete and has this identity."""
    try:
        with open_input(lake.locate(path)) as source:
            size = source.size()
            statistics = statistics_in(pq.read_metadata(source))
    except (OSError, pa.ArrowException):
        return None  # missing or cut short
    return (statistics, size) if statistics and statistics.identity == identity else None


def statistics_in(footer: pq.FileMetaData) -> PartStatistics | None:
    """The statistics in a footer; None where it is not that of a complete part."""
    try:
        statistics = PartStatistics(**json.loads((footer.metadata or {})[_METADATA_KEY]))
    except (KeyError, ValueError, TypeError):
        return None
    return statistics if footer.num_rows == statistics.rows else None


def _json_value(value: Any) -> Any:
    plain = isinstance(value, (int, str, bool)) or (isinstance(value, float) and isfinite(value))
    return value if plain else str(value)


def key_columns(schema: pa.Schema) -> list[str]:
    """Names of the key columns of an assignments table: those before ``cluster_id``."""
    names: list[str] = schema.names
    return names[: schema.get_field_index(ASSIGNMENT_FIELDS[0].name)]
