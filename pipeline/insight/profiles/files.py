"""Files of profiles: one per part, written before it, in ``runs/<run_id>/profiles/``.

A file has three row groups, see ``dec_section``: a row per cluster (moments and quantile
points of all measured columns), a row per cluster and value of a category, a row per exemplar.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.clustering.profile import GroupMoments, Points
from pipeline.errors import PipelineError, TransientError
from pipeline.insight.profiles.layout import CATEGORY_SCHEMA, EXEMPLAR_FIELDS, Layout
from pipeline.insight.profiles.merging import Profile
from pipeline.lake.parts import DELTA_FOLDER
from pipeline.lake.receipts import read_receipts, replacements
from pipeline.storage import Store, open_input, parquet_bytes, why

log = logging.getLogger(__name__)

FOLDER = "profiles"
# Where the latest publish of each ds has its tables, for readers that look in folders.
COPIES = ("cluster_profile", "cluster_exemplars")

_METADATA_KEY = b"dec_pipeline"
_CLUSTER_FIELDS = (
    pa.field("dec_section", pa.string()),  # cluster, category or exemplar
    pa.field("dec_cluster_id", pa.int32()),
    pa.field("dec_rows", pa.int64()),
    pa.field("dec_count", pa.list_(pa.int64())),
    pa.field("dec_mean", pa.list_(pa.float64())),
    pa.field("dec_m2", pa.list_(pa.float64())),
    pa.field("dec_min", pa.list_(pa.float64())),
    pa.field("dec_max", pa.list_(pa.float64())),
    pa.field("dec_point_number", pa.list_(pa.int64())),
    pa.field("dec_points", pa.list_(pa.float64())),
)
_MOMENTS = ("count", "mean", "m2", "min", "max")


def profile_path(part: str) -> str:
    """Path of a part's profile below the output, which no glob of a run's parts matches."""
    root, run, *rest = part.split("/")
    if root != DELTA_FOLDER:
        rest = rest[1:]  # without "assignments"
    return "/".join(("runs", run, FOLDER, *rest))


def copy_path(table: str, ds: str) -> str:
    """Path of one of ``COPIES`` for a ds, below the output."""
    return f"{table}/ds={ds}/{table.removeprefix('cluster_')}.parquet"


def withdraw_copies(lake: Store, ds: str, run_id: str, serves: Callable[[], bool]) -> None:
    """Empty the copies that an earlier run left for a ds which now has another run's rows.

    A copy that cannot be emptied stays, with a warning: publishing does not depend on it.
    ``serves`` says whether the ds still has the rows of the run ``run_id``, whose copies stay.
    """
    for table in COPIES:
        path = copy_path(table, ds)
        try:
            with open_input(lake.locate(path)) as source:
                copy = pq.ParquetFile(source)
                batches = copy.iter_batches(columns=["run_id"])
                others = any(pc.any(pc.not_equal(b[0], run_id)).as_py() for b in batches)
            if others and serves():
                lake.write_bytes(path, parquet_bytes(copy.schema_arrow.empty_table()))
        except FileNotFoundError:
            continue
        except (OSError, pa.ArrowException, LookupError, PipelineError) as error:
            log.warning("%s could not be emptied: %s", lake.locate(path), why(error))


def gone_profiles(lake: Store, paths: Sequence[str]) -> list[str]:
    """Locations of missing profiles; lists each folder once."""
    folders = {path.rpartition("/")[0] for path in paths}
    there = {f"{folder}/{file.name}" for folder in folders for file in lake.list(folder)}
    return [lake.locate(path) for path in paths if path not in there]


def write_profile(lake: Store, path: str, profile: Profile, identity: str) -> None:
    """Write a profile, and verify it.

    Raises:
        TransientError: The file does not hold what was written.
    """
    lake.write_bytes(path, profile_bytes(profile, identity))
    if not is_profile(lake, path, identity):
        raise TransientError(
            f"{lake.locate(path)} does not hold the profile that was just written; the same run id "
            "writes it again"
        )


def is_profile(lake: Store, path: str, identity: str) -> bool:
    """Whether a complete profile of this identity exists."""
    try:
        with open_input(lake.locate(path)) as source:
            metadata = pq.read_metadata(source).metadata or {}
        return bool(json.loads(metadata[_METADATA_KEY])["identity"] == identity)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return False


def profile_bytes(profile: Profile, identity: str) -> bytes:
    """A profile as a Parquet file with a row group per section."""
    content = {"identity": identity, "layout": profile.layout.model_dump(mode="json")}
    sections = [_clusters(profile), profile.categories, profile.exemplars]
    names = ("cluster", "category", "exemplar")
    fields = {field.name: field for field in _CLUSTER_FIELDS}
    fields |= {field.name: field for table in sections[1:] for field in table.schema}
    schema = pa.schema(list(fields.values()), metadata={_METADATA_KEY: json.dumps(content)})
    sink = pa.BufferOutputStream()
    # Values of one kind differ mostly in their last bytes: split from them, the others compress.
    split = [f"{f.name}.list.element" for f in schema if f.type == pa.list_(pa.float64())]
    options = {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": split}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for name, table in zip(names, sections, strict=True):
            table = table.append_column("dec_section", pa.repeat(pa.scalar(name), len(table)))
            own = dict(zip(table.column_names, table.columns, strict=True))
            columns = [own.get(f.name, pa.nulls(len(table), f.type)) for f in schema]
            writer.write_table(pa.table(columns, schema=schema), max(1, len(table)))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _clusters(profile: Profile) -> pa.Table:
    moments, points = profile.moments, profile.points
    columns: dict[str, Any] = {
        "dec_cluster_id": pa.array(moments.ids_K, pa.int32()),
        "dec_rows": pa.array(moments.rows_K, pa.int64()),
    }
    for name in _MOMENTS:
        columns[f"dec_{name}"] = _lists(getattr(moments, f"{name}_KF"))
    place = np.searchsorted(moments.ids_K, points.ids_K)
    number_KS = np.zeros((len(moments.ids_K), points.number_KS.shape[1]), np.int64)
    number_KS[place] = points.number_KS
    columns["dec_point_number"] = _lists(number_KS)
    ends = np.concatenate([[0], np.cumsum(number_KS.sum(axis=1))]).astype(np.int32)
    columns["dec_points"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(points.values))
    return pa.table(columns)


def _lists(values_KF: NDArray[np.generic]) -> pa.ListArray:
    ends = np.arange(len(values_KF) + 1, dtype=np.int32) * np.int32(values_KF.shape[1])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values_KF.ravel()))


def read_profile(lake: Store, path: str) -> Profile:
    """Read the profile in a file.

    Raises:
        OSError: The file does not exist or cannot be read.
        pyarrow.ArrowException: The file is damaged.
    """
    content = lake.read_bytes(path)  # one request: all of it is needed
    try:
        parquet = pq.ParquetFile(pa.BufferReader(content))
        metadata = json.loads(parquet.metadata.metadata[_METADATA_KEY])
        clusters, categories, exemplars = (parquet.read_row_group(n) for n in range(3))
    except OSError as error:  # of content in memory: no fault of the storage
        raise pa.ArrowInvalid(str(error)) from None
    layout = Layout.model_validate(metadata["layout"])
    ids_K = clusters["dec_cluster_id"].to_numpy().astype(np.int64)
    arrays = {f"{n}_KF": _matrix(clusters[f"dec_{n}"], layout.starts[-1]) for n in _MOMENTS}
    rows_K = clusters["dec_rows"].to_numpy().astype(np.int64)
    number_KS = _matrix(clusters["dec_point_number"], len(layout.scalars) * bool(layout.points))
    keys = [name for name in exemplars.column_names if not name.startswith("dec_")]
    names = [*(field.name for field in EXEMPLAR_FIELDS), *keys]
    return Profile(
        layout=layout,
        moments=GroupMoments(ids_K, rows_K, **arrays),
        points=Points(ids_K, number_KS, _flat(clusters["dec_points"])),
        categories=categories.select(CATEGORY_SCHEMA.names).cast(CATEGORY_SCHEMA),
        exemplars=exemplars.select(names).replace_schema_metadata(None),
    )


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    if not len(column):
        return np.zeros(0)
    flat: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat


def _matrix(column: pa.ChunkedArray, width: int) -> NDArray[Any]:
    kind = np.int64 if column.type == pa.list_(pa.int64()) else np.float64
    return _flat(column).astype(kind, copy=False).reshape(len(column), width)


def as_it_is_now(lake: Store, path: str) -> str:
    """Path of the file itself, or of its replacement when rows were forgotten."""
    instead = replacements(read_receipts(lake))
    while path in instead and (new := instead[path].new):
        path = new
    return path
