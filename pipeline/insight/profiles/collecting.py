"""Collect the profile of a slice from its rows while they are labelled."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.clustering.profile import GroupMoments, Points, first_of_each
from pipeline.input.profiled_columns import as_numbers, as_texts
from pipeline.input.reading import RowBlock
from pipeline.insight.profiles.layout import CATEGORY_SCHEMA, Layout, profiled_exemplar_schema
from pipeline.insight.profiles.merging import Profile, counted, first_exemplars
from pipeline.schema import EXEMPLAR_KINDS

# Minimum rows per batch of moments: some of each cluster, or merging costs more than adding.
_FEWEST_ROWS, _ROWS_PER_CLUSTER = 1_024, 32
_MOST_VALUES = 2**22  # in a batch
# Minimum values of a slice that quantile points are made of; otherwise its number of rows. A value
# takes 0.1 µs, at least a thirtieth of labelling a row.
_POINT_VALUES = 2**18
_WANTED = ("cluster_id", "confidence", "cluster_id_2", "confidence_2", "distance")
# Counts of values, and exemplars, that wait to be merged.
_WAITING_ROWS, _WAITING_EXEMPLARS = 2**16, 128


class SliceProfile:
    """Collects the profile of a slice, block by block, in the order of its rows.

    ``shards`` are the names of the slice's shards, by number.
    """

    def __init__(
        self, layout: Layout, clusters: int, rows: int, keys: pa.Schema, shards: Mapping[int, str]
    ) -> None:
        self._layout, self._keys, self._shards = layout, keys, shards
        self._features = layout.features_kept()
        width = max(1, layout.starts[-1])
        wanted = max(_FEWEST_ROWS, _ROWS_PER_CLUSTER * clusters)
        raw = sum(c.width for c in layout.columns if c.clustered and c.kind != "category")
        self._together = max(1, min(wanted, _MOST_VALUES // max(width, raw)))
        scalars = max(1, len(layout.scalars))
        self._every = max(1, math.ceil(rows * scalars / max(_POINT_VALUES, rows)))
        self._next = 0  # index of the next row that is sampled for points
        self._waiting: list[tuple[RowBlock, pa.Table]] = []
        self._rows_waiting = 0
        self._moments = GroupMoments.none(layout.starts[-1])
        self._chosen: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._counts: list[pa.Table] = [CATEGORY_SCHEMA.empty_table()]
        self._exemplars = _Exemplars(layout, profiled_exemplar_schema(keys))

    def add(self, block: RowBlock, found: pa.Table) -> None:
        """Add rows, and their assignments with the key columns."""
        self._waiting.append((block, found.select([*self._keys.names, *_WANTED])))
        self._rows_waiting += len(found)
        if self._rows_waiting >= self._together:
            self._add_waiting()

    def finished(self) -> Profile:
        """The profile of all added rows."""
        self._add_waiting()
        layout, points = self._layout, Points.none(0)
        if layout.points and layout.scalars and self._chosen:
            ids_B, x_BS = (np.concatenate(parts) for parts in zip(*self._chosen, strict=True))
            points = Points.of(ids_B, x_BS, layout.points)
        return Profile(
            layout=layout,
            moments=self._moments,
            points=points,
            categories=counted(self._counts, layout.values),
            exemplars=self._exemplars.first(),
        )

    def _add_waiting(self) -> None:
        waiting, self._waiting, self._rows_waiting = self._waiting, [], 0
        if not waiting:
            return
        found = pa.concat_tables([table for _, table in waiting]).combine_chunks()
        ids_B = found["cluster_id"].to_numpy().astype(np.int64)
        parts = [block.x_BF for block, _ in waiting]
        x_BF = parts[0] if len(parts) == 1 else np.concatenate(parts)
        extra_BE = np.column_stack(
            [
                np.concatenate([as_numbers(_column(b, c.name), len(b.x_BF)) for b, _ in waiting])
                for c in self._layout.extra
            ]
            or [np.zeros((len(ids_B), 0))]
        )
        moments = GroupMoments.of(ids_B, x_BF[:, self._features])
        if extra_BE.shape[1]:
            moments = moments.beside(GroupMoments.of(ids_B, extra_BE))
        self._moments = self._moments.merge(moments)
        self._choose(ids_B, x_BF, extra_BE)
        self._count(ids_B, [block for block, _ in waiting])
        shard_B = np.concatenate([np.full(len(t), block.shard) for block, t in waiting])
        row_B = np.concatenate([block.row_numbers_B for block, _ in waiting])
        numbers = np.unique(shard_B)
        names = pa.array([self._shards[number] for number in numbers.tolist()])
        shards = names.take(pa.array(np.searchsorted(numbers, shard_B)))
        self._exemplars.add(found.select(self._keys.names), found, x_BF, (shards, row_B))

    def _choose(
        self, ids_B: NDArray[np.int64], x_BF: NDArray[np.generic], extra_BE: NDArray[np.float64]
    ) -> None:
        if not (self._layout.points and self._layout.scalars):
            return
        every = slice(self._next, None, self._every)
        self._next = (self._next - len(ids_B)) % self._every
        own = self._layout.starts[-1] - extra_BE.shape[1]
        of_features = [place for place in self._layout.scalars if place < own]
        clustered_BF = x_BF[every][:, self._features][:, of_features].astype(np.float64)
        self._chosen.append((ids_B[every], np.concatenate([clustered_BF, extra_BE[every]], axis=1)))

    def _count(self, ids_B: NDArray[np.int64], blocks: list[RowBlock]) -> None:
        for place, column in enumerate(self._layout.categories):
            parts = [as_texts(_column(b, column.name), len(b.x_BF)) for b in blocks]
            table = pa.table(
                {
                    "dec_cluster_id": pa.array(ids_B, pa.int32()),
                    "dec_column": pa.array(np.full(len(ids_B), place), pa.int32()),
                    "dec_value": pa.chunked_array(parts, pa.string()),
                    "dec_rows": pa.array(np.ones(len(ids_B), np.int64)),
                }
            )
            self._counts.append(counted([table.filter(table["dec_value"].is_valid())], len(table)))
        if sum(map(len, self._counts)) > _WAITING_ROWS:
            self._counts = [counted(self._counts, _WAITING_ROWS)]


def _column(block: RowBlock, name: str) -> pa.ChunkedArray | None:
    table = block.stored
    return table[name] if table is not None and name in table.column_names else None


class _Exemplars:
    """The first rows of each cluster and kind so far.

    Features are kept outside of the table, which has their index: Arrow copies lists one by one.
    """

    def __init__(self, layout: Layout, schema: pa.Schema) -> None:
        self._layout, self._schema = layout, schema
        self._place = schema.get_field_index("dec_features")
        interim = schema.set(self._place, pa.field("dec_features", pa.int64()))
        self._tables = [interim.empty_table()]
        self._features: list[NDArray[np.float32]] = []
        self._rows = self._rows_before = self._featured = 0
        # Known clusters, and for each kind the order of the last exemplar kept.
        self._known = np.zeros(0, np.int64)
        self._last_2K = np.zeros((len(EXEMPLAR_KINDS), 1), np.float32)

    def first(self) -> pa.Table:
        """The exemplars of all added rows."""
        self._prune()
        (table,) = self._tables
        kind = self._schema.field(self._place)
        features = pa.nulls(len(table), kind.type)
        if self._features:
            (values,) = self._features
            flat = pa.array(values.ravel(), mask=~np.isfinite(values.ravel()))
            lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            features = lists.cast(kind.type).take(table["dec_features"].combine_chunks())
        return table.set_column(self._place, kind, features)

    def add(
        self,
        keys: pa.Table,
        found: pa.Table,
        x_BF: NDArray[np.generic],
        places: tuple[pa.Array, NDArray[np.int64]],
    ) -> None:
        """Add rows: keys, assignments, features, and shard with row number."""
        most = self._layout.exemplars
        if not most:
            return
        of_row = {name: found[name].to_numpy() for name in _WANTED}
        ids_B, confidence_B = of_row["cluster_id"], of_row["confidence"]
        orders = (of_row["distance"], -confidence_B, confidence_B - of_row["confidence_2"])
        own = len(self._schema) - keys.num_columns
        for kind, order_B in enumerate(orders):
            candidates = np.flatnonzero(order_B < self._last(kind, ids_B))
            first = first_of_each(ids_B[candidates], most, order_B[candidates])
            chosen_B = candidates[first]
            if not len(chosen_B):
                continue
            take = pa.array(chosen_B)
            columns = {f"dec_{name}": pa.array(v[chosen_B]) for name, v in of_row.items()}
            columns |= {
                "dec_kind": pa.array(np.full(len(chosen_B), kind, np.int8)),
                "dec_order": pa.array(order_B[chosen_B]),
                "dec_shard": places[0].take(take),
                "dec_row_number": pa.array(places[1][chosen_B]),
                "dec_features": self._keep_features(x_BF, ids_B, chosen_B),
            }
            taken = keys.take(take)
            for field, name in zip(list(self._schema)[own:], keys.column_names, strict=True):
                columns[field.name] = taken[name]
            schema = self._tables[0].schema
            self._tables.append(pa.table([columns[f.name] for f in schema], schema=schema))
            self._rows += len(chosen_B)
        if self._rows > 2 * self._rows_before + _WAITING_EXEMPLARS:
            self._prune()

    def _keep_features(
        self, x_BF: NDArray[np.generic], ids_B: NDArray[np.integer], chosen_B: NDArray[np.int64]
    ) -> pa.Array:
        """Keep the features of rows among the first of their cluster, and return their indices."""
        ids_B = ids_B[chosen_B]  # by cluster
        turn_B = np.arange(len(ids_B)) - np.searchsorted(ids_B, ids_B)
        with_B = turn_B < self._layout.features
        place_B = self._featured + np.cumsum(with_B) - 1
        self._features.append(x_BF[chosen_B[with_B]].astype(np.float32))
        self._featured += int(with_B.sum())
        return pa.array(place_B, mask=~with_B)

    def _last(self, kind: int, ids_B: NDArray[np.integer]) -> NDArray[np.float32]:
        """Order below which a row is among the first; infinite while there is room."""
        if not len(self._known):
            return np.full(len(ids_B), np.inf, np.float32)
        place_B = np.minimum(np.searchsorted(self._known, ids_B), len(self._known) - 1)
        last_B: NDArray[np.float32] = self._last_2K[kind][place_B]
        last_B[self._known[place_B] != ids_B] = np.inf
        return last_B

    def _prune(self) -> None:
        table = first_exemplars(self._tables, self._layout)
        if self._features:
            kept = table["dec_features"].combine_chunks()
            there = kept.is_valid().to_numpy(zero_copy_only=False)
            places = kept.drop_null().to_numpy()
            self._features = [np.concatenate(self._features)[places]]
            self._featured = len(places)
            places = pa.array(np.cumsum(there) - 1, mask=~there)
            table = table.set_column(self._place, table.schema.field(self._place), places)
        self._tables, self._rows, self._rows_before = [table], len(table), len(table)
        ids_N, kind_N = table["dec_cluster_id"].to_numpy(), table["dec_kind"].to_numpy()
        self._known, place_N = np.unique(ids_N, return_inverse=True)
        number = np.zeros((len(EXEMPLAR_KINDS), len(self._known)), np.int64)
        np.add.at(number, (kind_N, place_N), 1)
        last = np.full(number.shape, -np.inf, np.float32)
        np.maximum.at(last, (kind_N, place_N), table["dec_order"].to_numpy())
        self._last_2K = np.where(number < self._layout.exemplars, np.float32(np.inf), last)
