"""Profiles: what the clusters of some rows look like, in a file that others can be merged with.

Each part has one, written before it: ``runs/<run_id>/profiles/part-*.parquet``, under the name of
the part. It has three kinds of rows: one a cluster (moments and points of all numbers), one a
cluster and value of a category, and one an exemplar.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.explanations import Explanation, ProfiledColumn
from pipeline.artifacts.inputs import FeatureColumn
from pipeline.clustering.profile import GroupMoments, Points, first_of_each
from pipeline.errors import PipelineError, TransientError
from pipeline.lake.parts import DELTA_FOLDER
from pipeline.lake.receipts import read_receipts, replacements
from pipeline.schema import EXEMPLAR_KINDS, exemplar_key
from pipeline.storage import Store, open_input, parquet_bytes, why

log = logging.getLogger(__name__)

FOLDER = "profiles"
# Where the newest publish of each ds has its tables, for whoever reads by folder.
COPIES = ("cluster_profile", "cluster_exemplars")
VERSION = 1  # of what is in them: another one, and every slice is labelled anew

_METADATA_KEY = b"dec_pipeline"
# Clusters × features in a profile: about 20 bytes each as stored, so that one takes 10 MB at most,
# beside a slice of 64 MiB.
_MOST_CELLS = 2**19
# Points of all clusters and columns: sorted whenever profiles are merged.
_MOST_POINTS = 2**20
_POINTS, _FEWEST_POINTS = 64, 8  # of a cell
# Merged, they stand for more rows.
_MERGED = 4
# Categories: clusters × values of all columns, and values of one.
_MOST_VALUES, _VALUES = 2**22, 256
# Exemplars of all clusters, and numbers in their features.
_MOST_EXEMPLARS, _MOST_EXEMPLAR_VALUES = 2**20, 2**19

# Not names that a key column would have.
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
_CATEGORY_FIELDS = (
    pa.field("dec_cluster_id", pa.int32()),
    pa.field("dec_column", pa.int32()),
    pa.field("dec_value", pa.string()),  # null: all others
    pa.field("dec_rows", pa.int64()),
)
CATEGORY_SCHEMA = pa.schema(_CATEGORY_FIELDS)
_EXEMPLAR_FIELDS = (
    pa.field("dec_cluster_id", pa.int32()),
    pa.field("dec_kind", pa.int8()),  # place in EXEMPLAR_KINDS
    pa.field("dec_order", pa.float32()),  # the smallest is the first
    pa.field("dec_shard", pa.string()),  # of equals, the first by shard and place in it
    pa.field("dec_row_number", pa.int64()),
    pa.field("dec_cluster_id_2", pa.int32()),
    pa.field("dec_confidence", pa.float32()),
    pa.field("dec_confidence_2", pa.float32()),
    pa.field("dec_distance", pa.float32()),
    pa.field("dec_features", pa.list_(pa.float32())),
)


@dataclass(frozen=True)
class Layout:
    """What a profile holds, and in which order.

    Attributes:
        columns: All that is profiled: features in their order, then ``explain.columns``.
        kept: Of ``columns``, those that there is room for.
        points: Of each cell in a part's profile; 0: no quantiles.
        values: Of each category column, besides those that are counted together.
        exemplars: Of each kind, a cluster.
        features: Exemplars of each kind, a cluster, that have theirs: the first.
        left_out: What there is no room for, in words.
        version: Of the form.
    """

    columns: tuple[ProfiledColumn, ...]
    kept: tuple[int, ...]
    points: int
    values: int
    exemplars: int
    features: int
    left_out: tuple[str, ...] = ()
    version: int = VERSION

    @classmethod
    def of(
        cls,
        clusters: int,
        features: Sequence[FeatureColumn],
        explained: Sequence[ProfiledColumn],
        exemplars: int,
        dtype: str = "number",
    ) -> Layout:
        """What there is room for; the same for every slice of a table.

        Args:
            clusters: How many there are.
            features: Of the manifest.
            explained: From ``pipeline.input.profiled_columns``.
            exemplars: That are wanted.
            dtype: Of a raw row in memory.
        """
        columns = [_of_feature(column, dtype) for column in features]
        columns += explained
        room, left_out = _MOST_CELLS // max(1, clusters), []
        kept = [n for n, column in enumerate(columns) if column.kind == "category"]
        numbers = [n for n, column in enumerate(columns) if column.kind == "number"]
        vectors = [n for n, column in enumerate(columns) if column.kind == "vector"]
        for place in (*numbers, *vectors):
            if columns[place].width <= room:
                kept.append(place)
                room -= columns[place].width
        told = {columns[n].name for n in kept}
        if lost := [column.name for column in columns if column.name not in told]:
            named = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            left_out.append(f"profiles of {named}: too wide for {clusters:,} clusters")
        scalars = sum(n in kept for n in numbers)
        points = min(_POINTS, _MOST_POINTS // max(1, scalars * clusters))
        if scalars and points < _FEWEST_POINTS:
            points = 0
            left_out.append(f"quantiles of {scalars:,} columns in {clusters:,} clusters")
        categories = sum(column.kind == "category" for column in columns)
        values = max(8, min(_VALUES, _MOST_VALUES // max(1, categories * clusters)))
        of_kinds = len(EXEMPLAR_KINDS) * clusters
        fewer = min(exemplars, max(1, _MOST_EXEMPLARS // max(1, of_kinds)))
        if fewer < exemplars:
            left_out.append(f"exemplars but {fewer} of each kind of {clusters:,} clusters")
        width = sum(column.width for column in features)
        with_features = min(fewer, _MOST_EXEMPLAR_VALUES // max(1, of_kinds * width))
        if with_features < fewer:
            but = f" but the first {with_features} of each kind" if with_features else ""
            left_out.append(f"features of exemplars{but}")
        return cls(
            *(tuple(columns), tuple(sorted(kept)), points, values, fewer, with_features),
            left_out=tuple(left_out),
        )

    def _of_kind(self, *kinds: str) -> list[ProfiledColumn]:
        return [self.columns[n] for n in self.kept if self.columns[n].kind in kinds]

    @property
    def categories(self) -> list[ProfiledColumn]:
        """Columns of categories that are kept."""
        return self._of_kind("category")

    @property
    def measured(self) -> list[ProfiledColumn]:
        """Columns that have moments, in the order of the moments' features."""
        return self._of_kind("number", "vector")

    @property
    def extra(self) -> list[ProfiledColumn]:
        """Of those, the ones that rows are not clustered by: the last."""
        return [column for column in self.measured if not column.clustered]

    @property
    def starts(self) -> list[int]:
        """Where each measured column begins among the moments' features; and where they end."""
        widths = [column.width for column in self.measured]
        return [int(start) for start in np.cumsum([0, *widths])]

    @property
    def scalars(self) -> list[int]:
        """Places of numbers, which have points where any have, among the moments' features."""
        return [
            start
            for start, column in zip(self.starts, self.measured, strict=False)
            if column.kind == "number"
        ]

    def features_kept(self) -> slice | NDArray[np.int64]:
        """Which values of a raw row have moments."""
        clustered = [c for c in self.columns if c.clustered and c.kind != "category"]
        starts = np.cumsum([0, *(column.width for column in clustered)])
        kept = [n for n in self.kept if self.columns[n] in clustered]
        if len(kept) == len(clustered):
            return slice(None)
        places = [np.arange(starts[n], starts[n + 1]) for n in kept]
        return np.concatenate([np.zeros(0, np.int64), *places])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        columns = [column.model_dump(mode="json") for column in self.columns]
        return asdict(replace(self, columns=())) | {"columns": columns}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Layout:
        """What ``to_json`` gave."""
        columns = tuple(ProfiledColumn.model_validate(c) for c in content["columns"])
        lists = {name: tuple(content[name]) for name in ("kept", "left_out")}
        return cls(**content | lists | {"columns": columns})


def _of_feature(column: FeatureColumn, dtype: str) -> ProfiledColumn:
    """A feature as raw rows have it; what they have as a code is profiled by its own values."""
    kind: Literal["number", "vector", "code"] = "vector" if column.vector else "number"
    if column.type in ("category", "boolean"):
        kind = "code"
    return ProfiledColumn(
        name=column.name,
        kind=kind,
        type="timestamp[s]" if column.type == "timestamp" else dtype,
        clustered=True,
        width=column.width,
    )


@dataclass(frozen=True)
class Profile:
    """What the clusters of some rows look like.

    Attributes:
        layout: Which columns.
        moments: Of the measured columns.
        points: Of those that are numbers; without any where there are no quantiles.
        categories: Of ``CATEGORY_SCHEMA``: rows of each cluster, category column (its place among
            ``layout.categories``) and value.
        exemplars: Rows, their keys and what is known of them; see ``exemplars_of``.
    """

    layout: Layout
    moments: GroupMoments
    points: Points
    categories: pa.Table
    exemplars: pa.Table


def merged(profiles: Sequence[Profile]) -> Profile:
    """Profiles of several sets of rows as one of them all; their order matters to the last bit."""
    layout, moments = profiles[0].layout, profiles[0].moments
    for profile in profiles[1:]:
        moments = moments.merge(profile.moments)
    points, scalars = Points.none(0), layout.scalars
    if layout.points and scalars:
        pieces = [(profile.points, profile.moments) for profile in profiles]
        points = Points.merged(pieces, scalars, _MERGED * layout.points)
    return Profile(
        layout=layout,
        moments=moments,
        points=points,
        categories=counted([profile.categories for profile in profiles], _MERGED * layout.values),
        exemplars=first_exemplars([p.exemplars for p in profiles], layout),
    )


def counted(tables: Sequence[pa.Table], most: int) -> pa.Table:
    """Counts of values added up; of each column the most frequent, the others as one.

    Args:
        tables: Of ``CATEGORY_SCHEMA``.
        most: Values of a column that stay; of equals, the first by their text.
    """
    names = ["dec_cluster_id", "dec_column", "dec_value"]
    table = _summed(pa.concat_tables(tables), names)
    totals = _summed(table.filter(table["dec_value"].is_valid()), names[1:])
    if len(totals) > most:
        order = [
            ("dec_column", "ascending"),
            ("dec_rows", "descending"),
            ("dec_value", "ascending"),
        ]
        totals = totals.sort_by(order)
        column = totals["dec_column"].to_numpy()
        turn = np.arange(len(column)) - np.searchsorted(column, column)
        if (turn >= most).any():
            rare = totals.filter(pa.array(turn >= most)).select(names[1:])
            rare = rare.append_column("rare", pa.repeat(True, len(rare)))
            table = table.join(rare, names[1:], join_type="left outer")
            value = pc.if_else(
                table["rare"].is_valid(), pa.scalar(None, pa.string()), table[names[2]]
            )
            table = table.drop_columns(["rare", names[2]]).append_column(names[2], value)
            table = _summed(table, names)
    return table.sort_by([(name, "ascending") for name in names])


def _summed(table: pa.Table, by: list[str]) -> pa.Table:
    groups = table.group_by(by, use_threads=False).aggregate([("dec_rows", "sum")])
    groups = groups.rename_columns([*groups.column_names[:-1], "dec_rows"])
    return groups.select([n for n in CATEGORY_SCHEMA.names if n in groups.column_names])


def exemplars_of(keys: pa.Schema) -> pa.Schema:
    """Schema of a profile's exemplars; the key columns last, as the exemplars table calls them."""
    # Rows of the other kinds have no keys.
    fields = [field.with_name(exemplar_key(field.name)).with_nullable(True) for field in keys]
    return pa.schema([*_EXEMPLAR_FIELDS, *fields])


def first_exemplars(tables: Sequence[pa.Table], layout: Layout) -> pa.Table:
    """The first of each cluster and kind, in their order; features of as many as there is room."""
    table = pa.concat_tables(tables).combine_chunks()
    names = table["dec_shard"].combine_chunks().dictionary_encode()
    by_name = np.argsort(np.argsort(np.array(names.dictionary.to_pylist(), dtype="U")))
    place_B = by_name[names.indices.to_numpy()] if len(by_name) else np.zeros(0, np.int64)
    group_B = table["dec_cluster_id"].to_numpy().astype(np.int64) * len(EXEMPLAR_KINDS)
    group_B += table["dec_kind"].to_numpy()
    order_B = table["dec_order"].to_numpy()
    row_B = table["dec_row_number"].to_numpy()
    chosen = first_of_each(group_B, layout.exemplars, order_B, place_B, row_B)
    group_B = group_B[chosen]
    turn_B = np.arange(len(chosen)) - np.searchsorted(group_B, group_B)
    bare = pa.array(chosen, mask=turn_B >= layout.features)  # no features from there on
    place = table.schema.get_field_index("dec_features")
    features = table["dec_features"].take(bare)
    table = table.drop_columns(["dec_features"]).take(pa.array(chosen))
    return table.add_column(place, tables[0].schema.field(place), features)


# --------------------------------------------------------------------------------------- the file


def profile_path(part: str) -> str:
    """Where the profile of a part lies, below the output: no glob of a run's parts finds it."""
    root, run, *rest = part.split("/")
    if root != DELTA_FOLDER:
        rest = rest[1:]  # without "assignments"
    return "/".join(("runs", run, FOLDER, *rest))


def copy_path(table: str, ds: str) -> str:
    """Where the newest publish of a ds has one of ``COPIES``, below the output."""
    return f"{table}/ds={ds}/{table.removeprefix('cluster_')}.parquet"


def withdraw_copies(lake: Store, ds: str, run_id: str, serves: Callable[[], bool]) -> None:
    """Leave no rows in the copies that another run made of a ds: by now it consists of others.

    What is published does not hang on it: what cannot be withdrawn stays, and the log says so.

    Args:
        lake: The output folder.
        ds: The partition.
        run_id: Whose copies stay.
        serves: Whether the ds consists of this run's rows, still.
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
            log.warning("%s is left as it was: %s", lake.locate(path), why(error))


def gone_profiles(lake: Store, paths: Iterable[str]) -> list[str]:
    """Locations of those that are not there; one listing a folder."""
    names: dict[str, set[str]] = {}
    gone = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in names:
            names[folder] = {found.name for found in lake.list(folder)}
        if name not in names[folder]:
            gone.append(lake.locate(path))
    return gone


def write_profile(lake: Store, path: str, profile: Profile, identity: str) -> None:
    """Write a profile, and look at what is there then.

    Raises:
        TransientError: What is there is not what was written.
    """
    lake.write_bytes(path, profile_bytes(profile, identity))
    if not is_profile(lake, path, identity):
        raise TransientError(
            f"{lake.locate(path)} is not the profile that was just written; the same run id writes "
            "it again"
        )


def is_profile(lake: Store, path: str, identity: str) -> bool:
    """Whether a whole profile of this part is there."""
    try:
        with open_input(lake.locate(path)) as source:
            metadata = pq.read_metadata(source).metadata or {}
        return bool(json.loads(metadata[_METADATA_KEY])["identity"] == identity)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return False


def profile_bytes(profile: Profile, identity: str) -> bytes:
    """A profile as a Parquet file: a row group for each of its three kinds of rows."""
    content = {"identity": identity, "layout": profile.layout.to_json()}
    sections = [_clusters(profile), profile.categories, profile.exemplars]
    names = ("cluster", "category", "exemplar")
    fields = {field.name: field for field in _CLUSTER_FIELDS}
    fields |= {field.name: field for table in sections[1:] for field in table.schema}
    schema = pa.schema(list(fields.values()), metadata={_METADATA_KEY: json.dumps(content)})
    sink = pa.BufferOutputStream()
    # Values of a kind differ mostly in their last bytes; apart from those, zstd finds the others.
    split = [f"{f.name}.list.element" for f in schema if f.type == pa.list_(pa.float64())]
    options = {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": split}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for name, table in zip(names, sections, strict=True):
            table = table.append_column("dec_section", pa.repeat(pa.scalar(name), len(table)))
            columns = [
                table[field.name]
                if field.name in table.column_names
                else pa.nulls(len(table), field.type)
                for field in schema
            ]
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
    """The profile in a file.

    Raises:
        OSError: It is not there, or cannot be read.
        pyarrow.ArrowException: It is damaged.
    """
    content = lake.read_bytes(path)  # in one request: all of it is needed
    try:
        parquet = pq.ParquetFile(pa.BufferReader(content))
        told = json.loads(parquet.metadata.metadata[_METADATA_KEY])
        clusters, categories, exemplars = (parquet.read_row_group(n) for n in range(3))
    except OSError as error:  # of what is in memory: it is no storage's fault
        raise pa.ArrowInvalid(str(error)) from None
    layout = Layout.from_json(told["layout"])
    ids_K = clusters["dec_cluster_id"].to_numpy().astype(np.int64)
    arrays = {f"{n}_KF": _matrix(clusters[f"dec_{n}"], layout.starts[-1]) for n in _MOMENTS}
    rows_K = clusters["dec_rows"].to_numpy().astype(np.int64)
    number_KS = _matrix(clusters["dec_point_number"], len(layout.scalars) * bool(layout.points))
    keys = [name for name in exemplars.column_names if not name.startswith("dec_")]
    names = [*(field.name for field in _EXEMPLAR_FIELDS), *keys]
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


def read_exemplars(lake: Store, explanation: Explanation) -> pa.Table:
    """The exemplars table of a run, without rows that were forgotten since."""
    return lake.read_table(as_it_is_now(lake, explanation.exemplars.path))


def as_it_is_now(lake: Store, path: str) -> str:
    """The file itself, or what took its place when rows were forgotten."""
    instead = replacements(read_receipts(lake))
    while path in instead and (new := instead[path].new):
        path = new
    return path
