"""The tables ``cluster_profile`` and ``cluster_exemplars``, from the profile of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.clustering.profile import Contrast, GroupMoments, ranks
from pipeline.insight.profiles.merging import Profile, counted
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.schema import EXEMPLAR_KINDS, PROFILE_SCHEMA

QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
# Maximum rows per cluster for the values of a category and for the components of a vector.
_VALUES, _COMPONENTS = 32, 10


def profile_table(
    profile: Profile, origin: Mapping[str, str], ids: ClusterIds | None = None
) -> pa.Table:
    """One row per cluster and feature, ``PROFILE_SCHEMA``; by cluster, then by rank.

    ``origin`` has the columns ds, run_id and model_id, whose value is the same in all rows; ``ids``
    say how firm each cluster is, None: that is not known.
    """
    moments, layout = profile.moments, profile.layout
    contrast = Contrast.of(moments)
    scalars = _scalars(profile)
    rows = [scalars]
    vectors: list[_Rows] = []
    for start, column in zip(layout.starts, layout.measured, strict=False):
        if column.kind == "vector":
            of = slice(start, start + column.width)
            rows.append(_vector(moments, contrast, column.name, of))
            vectors.append(_components(moments, contrast, column.name, of))
    tables = []
    for some in (rows, vectors):
        if some:
            difference_KE = np.concatenate([r.difference_KE for r in some], axis=1)
            rank_KE = ranks(difference_KE)
            edges = np.cumsum([r.difference_KE.shape[1] for r in some])[:-1]
            parts = zip(some, np.split(rank_KE, edges, axis=1), strict=True)
            tables += [part.table(moments, rank, origin) for part, rank in parts]
    table = pa.concat_tables(tables).combine_chunks()
    if ids is not None and ids.firmness_K is not None:
        place = pc.index_in(table["cluster_id"], pa.array(ids.cluster_id_K))  # outliers: none
        column = table.schema.get_field_index("firmness")
        firmness = pa.array(ids.firmness_K).take(place)
        table = table.set_column(column, table.schema.field(column), firmness)
    component = pc.equal(table["kind"], "component")
    return table.take(pa.array(np.lexsort((table["rank"], component, table["cluster_id"]))))


def exemplars_table(profile: Profile, origin: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    """The exemplars, ``pipeline.schema.exemplar_schema``; by cluster, kind and rank."""
    found = profile.exemplars
    group_B = found["dec_cluster_id"].to_numpy().astype(np.int64) * len(EXEMPLAR_KINDS)
    group_B += found["dec_kind"].to_numpy()
    rank_B = np.arange(1, len(group_B) + 1) - np.searchsorted(group_B, group_B)
    kinds = pa.DictionaryArray.from_arrays(
        found["dec_kind"].combine_chunks(), pa.array(EXEMPLAR_KINDS)
    )
    columns = {
        **{name: pa.repeat(pa.scalar(v), len(found)) for name, v in origin.items()},
        "kind": kinds.cast(pa.string()),
        "rank": pa.array(rank_B, pa.int32()),
    }
    for field in schema:
        if field.name not in columns:
            ours = f"dec_{field.name}"
            columns[field.name] = found[ours if ours in found.column_names else field.name]
    return pa.table([columns[name] for name in schema.names], schema=schema)


@dataclass(frozen=True)
class _Rows:
    """The same entries for every cluster: arrays of shape (n_clusters, entries), NaN for null."""

    features: Sequence[str]  # column ``feature`` of each entry, as ``kinds`` and ``values``
    kinds: Sequence[str]
    values: Sequence[str | None]
    difference_KE: NDArray[np.float64]
    null_share_KE: NDArray[np.float64]
    # Columns mean, std, min, max and the quantiles, as far as there are any.
    numbers: dict[str, NDArray[np.float64]]
    component_KE: NDArray[np.int64] | None = None  # column ``component``; None where all are null
    # Columns mean_vector and difference_vector of a single entry, shape (n_clusters, width); NaN
    # where a component has no values.
    vectors: Mapping[str, NDArray[np.float64]] | None = None

    def table(
        self, moments: GroupMoments, rank_KE: NDArray[np.int32], origin: Mapping[str, str]
    ) -> pa.Table:
        clusters, entries = self.difference_KE.shape
        number = clusters * entries
        columns = {name: pa.repeat(pa.scalar(v), number) for name, v in origin.items()}
        columns["cluster_id"] = pa.array(np.repeat(moments.ids_K, entries), pa.int32())
        columns["rows"] = pa.array(np.repeat(moments.rows_K, entries), pa.int64())
        each = pa.array(np.tile(np.arange(entries), clusters))
        columns["feature"] = pa.array(self.features, pa.string()).take(each)
        columns["kind"] = pa.array(self.kinds, pa.string()).take(each)
        columns["value"] = pa.array(self.values, pa.string()).take(each)
        columns["difference"] = pa.array(self.difference_KE.ravel())
        columns["null_share"] = pa.array(self.null_share_KE.ravel())
        columns["rank"] = pa.array(rank_KE.ravel())
        for name, values in self.numbers.items():
            columns[name] = pa.array(values.ravel(), pa.float64(), mask=np.isnan(values.ravel()))
        if self.component_KE is not None:
            columns["component"] = pa.array(self.component_KE.ravel(), pa.int32())
        for name, values in (self.vectors or {}).items():
            numbers = values.astype(np.float32).ravel()
            flat = pa.array(numbers, mask=np.isnan(numbers))
            lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            columns[name] = lists.cast(pa.list_(pa.float32()))
        return pa.table(
            [columns.get(f.name, pa.nulls(number, f.type)) for f in PROFILE_SCHEMA],
            schema=PROFILE_SCHEMA,
        )


def _scalars(profile: Profile) -> _Rows:
    """Entries of number columns and of values of categories."""
    layout, moments = profile.layout, profile.moments
    numbers = _chosen(moments, layout.scalars)
    names = [column.name for column in layout.measured if column.kind == "number"]
    of_categories, features, values = _indicators(profile)
    both = numbers.beside(of_categories)
    with_shares = _measures(both)
    quantiles = np.full((*both.count_KF.shape, len(QUANTILES)), np.nan)
    if layout.points and names:
        place = np.searchsorted(moments.ids_K, profile.points.ids_K)
        count_KS = numbers.count_KF[place]
        quantiles[place, : len(names)] = profile.points.quantiles([*QUANTILES.values()], count_KS)
    return _Rows(
        features=[*names, *features],
        kinds=["number"] * len(names) + ["category"] * len(features),
        values=[None] * len(names) + values,
        difference_KE=Contrast.of(both).differences(),
        null_share_KE=_null_share(both),
        numbers=with_shares | {name: quantiles[..., q] for q, name in enumerate(QUANTILES)},
    )


def _chosen(moments: GroupMoments, places: Sequence[int]) -> GroupMoments:
    arrays = ("count_KF", "mean_KF", "m2_KF", "min_KF", "max_KF")
    some = {name: getattr(moments, name)[:, list(places)] for name in arrays}
    return GroupMoments(moments.ids_K, moments.rows_K, **some)


def _indicators(profile: Profile) -> tuple[GroupMoments, list[str], list[str | None]]:
    """Moments of the indicators of categories' values; the column and the value of each."""
    layout, moments = profile.layout, profile.moments
    counts = counted([profile.categories], min(_VALUES, layout.values))
    names = ["dec_column", "dec_value"]
    # A column without any value has one entry, too.
    every = range(len(layout.categories))
    empty = pa.array(sorted({*every} - {*counts["dec_column"].to_pylist()}), pa.int32())
    nothing = pa.table([empty, pa.nulls(len(empty), pa.string())], names)
    pairs = pa.concat_tables([counts.select(names), nothing]).group_by(names)
    entries = pairs.aggregate([]).sort_by([(name, "ascending") for name in names])
    column_E = entries["dec_column"].to_numpy()
    values: list[str | None] = entries["dec_value"].to_pylist()
    place = {pair: n for n, pair in enumerate(zip(column_E.tolist(), values, strict=True))}
    entry = [
        place[pair]
        for pair in zip(
            counts["dec_column"].to_pylist(), counts["dec_value"].to_pylist(), strict=True
        )
    ]
    rows_KE = np.zeros((len(moments.ids_K), len(values)))
    cluster = np.searchsorted(moments.ids_K, counts["dec_cluster_id"].to_numpy())
    rows_KE[cluster, np.array(entry, np.int64)] = counts["dec_rows"].to_numpy()
    _, starts_C, of_column_E = np.unique(column_E, return_index=True, return_inverse=True)
    known_KC = np.add.reduceat(rows_KE, starts_C, axis=1) if len(starts_C) else rows_KE
    count_KE = known_KC[:, of_column_E]  # rows with any value of the same column
    mean_KE = rows_KE / np.maximum(count_KE, 1)
    found = GroupMoments(
        ids_K=moments.ids_K,
        rows_K=moments.rows_K,
        count_KF=count_KE.astype(np.int64),
        mean_KF=mean_KE,
        m2_KF=rows_KE * (1 - mean_KE),
        min_KF=(rows_KE == count_KE).astype(np.float64),
        max_KF=(rows_KE > 0).astype(np.float64),
    )
    return found, [layout.categories[n].name for n in column_E], values


def _measures(moments: GroupMoments) -> dict[str, NDArray[np.float64]]:
    nothing = moments.count_KF == 0
    found = {
        "mean": moments.mean_KF,
        "std": np.sqrt(moments.m2_KF / np.maximum(moments.count_KF, 1)),
        "min": moments.min_KF,
        "max": moments.max_KF,
    }
    return {name: np.where(nothing, np.nan, values) for name, values in found.items()}


def _null_share(moments: GroupMoments) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 - moments.count_KF / moments.rows_K[:, None]
    return found


def _vector(moments: GroupMoments, contrast: Contrast, name: str, of: slice) -> _Rows:
    missing_KF = _null_share(moments)[:, of]
    count_KF = moments.count_KF[:, of]
    nothing_KF = (count_KF == 0) | (count_KF == count_KF.sum(axis=0))  # here, or elsewhere
    return _Rows(
        features=[name],
        kinds=["vector"],
        values=[None],
        difference_KE=contrast.lengths(of)[:, None],
        null_share_KE=missing_KF.max(axis=1, keepdims=True),
        numbers={},
        vectors={
            "mean_vector": _measures(moments)["mean"][:, of],
            "difference_vector": np.where(nothing_KF, np.nan, contrast.away_KF[:, of]),
        },
    )


def _components(moments: GroupMoments, contrast: Contrast, name: str, of: slice) -> _Rows:
    """Entries of the strongest components of a vector, in each cluster."""
    difference_KF = contrast.differences()[:, of]
    order_KF = np.argsort(-np.abs(difference_KF), axis=1, kind="stable")
    strongest_KE = order_KF[:, :_COMPONENTS]

    def chosen(values_KF: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.take_along_axis(values_KF, strongest_KE, axis=1)

    entries = strongest_KE.shape[1]
    return _Rows(
        features=[name] * entries,
        kinds=["component"] * entries,
        values=[None] * entries,
        difference_KE=chosen(difference_KF),
        null_share_KE=chosen(_null_share(moments)[:, of]),
        numbers={n: chosen(values[:, of]) for n, values in _measures(moments).items()},
        component_KE=strongest_KE,
    )
