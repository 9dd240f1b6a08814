"""Part files: the assignments of one slice, in one file, written once.

Name and content are a function of slice, model and run alone, and the footer carries the part's
statistics. So a part that is already there with the right identity is done: that is all the state
that resuming an interrupted assignment needs. Where nights carry parts, the run is none of it: the
part of an unchanged slice is the one that an earlier night wrote (``pipeline.labelling.carrying``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import fingerprint_of
from pipeline.errors import TransientError
from pipeline.schema import ASSIGNMENT_FIELDS, decoded
from pipeline.storage import Store, open_input, parquet_bytes

# The Delta table: its part files have to lie in it, and nothing else may (pipeline.lake.tables).
DELTA_FOLDER = "delta"

_METADATA_KEY = b"dec_pipeline"
# Engines skip row groups by the range of cluster_id; small enough to skip, big enough to scan.
_ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True)
class PartStatistics:
    """What one part holds.

    Attributes:
        identity: From ``part_identity``.
        rows_in: Rows of the slice.
        rows: Rows written; fewer than rows_in only under ``source.nulls: drop``.
        cluster_rows: (cluster_id, rows) of each cluster that occurs.
        contingency: (cluster_id, class, rows) where the table has a label; the class as JSON value.
        bins: Of each feature, rows in each bin of the champion's reference; empty without one.
        binned_rows: Rows that ``bins`` counts: an even choice of them.
    """

    identity: str
    rows_in: int
    rows: int
    cluster_rows: list[list[int]]
    confidence_sum: float
    contingency: list[list[Any]]
    bins: list[list[int]] = field(default_factory=list)
    binned_rows: int = 0


class BinnedRows:
    """How the rows of all parts lie in the bins of the champion's reference, from some of each.

    A slice of many rows tells as few of them as a small one does, and counts for all of its own.
    Sums are of integers, and the same in whatever order parts come.
    """

    def __init__(self) -> None:
        self._rows = self._counted = 0
        self._counts_FB: NDArray[np.int64] | None = None

    def add(self, part: PartStatistics) -> None:
        """One more part."""
        if not part.binned_rows:
            return
        counts_FB = np.array(part.bins, np.int64) * part.rows
        counts_FB = (counts_FB + part.binned_rows // 2) // part.binned_rows
        self._counts_FB = counts_FB if self._counts_FB is None else self._counts_FB + counts_FB
        self._rows += part.rows
        self._counted += part.binned_rows

    def counts(self) -> NDArray[np.int64] | None:
        """Rows in each bin, shape (features, bins); about as many as were counted.

        As many, since how much of a difference is chance depends on that. None without any.
        """
        if self._counts_FB is None:
            return None
        counts_FB: NDArray[np.int64] = np.rint(
            self._counts_FB * (self._counted / self._rows)
        ).astype(np.int64)
        return counts_FB


def part_identity(pieces: pa.Table, **of: str) -> str:
    """Identity of the part that holds these pieces' assignments.

    ``of`` is whatever else decides the content: model, schema; run and ds, unless it may be
    carried.
    """
    content = pieces.select(["name", "version", "row_group", "row_start", "rows"]).to_pydict()
    return fingerprint_of({"pieces": content, **of})


def parts_folder(run_id: str, table_format: str) -> str:
    """Where a run's parts lie, below the output."""
    return f"{DELTA_FOLDER}/{run_id}" if table_format == "delta" else f"runs/{run_id}/assignments"


def part_path(folder: str, identity: str) -> str:
    """Where that part lies, below the output."""
    return f"{folder}/part-{identity[:20]}.parquet"


def statistics_of(
    identity: str, rows_in: int, table: pa.Table, label: pa.Array | None
) -> PartStatistics:
    """Statistics of a part, to be stored with it.

    ``label`` has the true classes of the same rows, where there are any; nulls do not count.
    """
    cluster = table["cluster_id"]
    ids, counts = np.unique(cluster.to_numpy(), return_counts=True)
    contingency: list[list[Any]] = []
    if label is not None:
        pairs = pa.table({"cluster": cluster, "label": decoded(label)}).drop_null()
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
    """Write a part in one completed upload, and look at what is there then.

    Returns:
        Its size in bytes.

    Raises:
        TransientError: What is there is not what was written.
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
    """Locations of those that are not there, or not in their size; one listing a folder."""
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
    """Statistics and size of the part at this path; None unless it is whole and the right one."""
    try:
        with open_input(lake.locate(path)) as source:
            size = source.size()
            statistics = statistics_in(pq.read_metadata(source))
    except (OSError, pa.ArrowException):
        return None  # absent or cut short: to be written (again)
    return (statistics, size) if statistics and statistics.identity == identity else None


def statistics_in(footer: pq.FileMetaData) -> PartStatistics | None:
    """The statistics in a footer; None where it is not that of a whole part of ours."""
    try:
        statistics = PartStatistics(**json.loads((footer.metadata or {})[_METADATA_KEY]))
    except (KeyError, ValueError, TypeError):
        return None
    return statistics if footer.num_rows == statistics.rows else None


def _json_value(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def key_columns(schema: pa.Schema) -> list[str]:
    """Names of the key columns of an assignments table: those before the first of ours."""
    names: list[str] = schema.names
    return names[: schema.get_field_index(ASSIGNMENT_FIELDS[0].name)]
