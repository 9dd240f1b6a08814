"""Keep slices from night to night, so that the parts of unchanged shards can be carried over.

A new cut depends on all shards: one that is added, removed or grows would move the edges of all
slices after it. So a night keeps the slices of the night before, by row group. New and changed
shards are cut among themselves; slices that lose a shard keep their other shards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine import Context
from pipeline.errors import PipelineError
from pipeline.input.slices import MOST_PIECES, SLICES, slices_of_row_groups
from pipeline.lake.snapshots import latest_snapshot
from pipeline.storage import Store

log = logging.getLogger(__name__)

_TARGET_KEY = b"target_slice_bytes"  # metadata of the shards: target size of their slices
# Nights with few new shards leave slices that are not half full. Where there are more of them than
# this, in addition to twice the number that a new cut would make of their shards, they are packed
# together: each row is labelled once more in about as many nights, and never all rows in one night.
_MOST_SMALL_SLICES = 64


def keep_slices(shards: pa.Table, nights: Sequence[pa.Table], target_bytes: int) -> pa.Table:
    """Tonight's table of shards with the column ``SLICES``, and ``target_bytes`` in its metadata.

    ``nights`` are tables of shards of earlier nights. Slices are kept from the first one with most
    of tonight's shards, among those that have the column and were cut for ``target_bytes``.
    """
    counts = pc.list_value_length(shards["row_group_bytes"]).to_numpy()
    slice_of = np.zeros(int(counts.sum()), np.int64)
    new = np.ones(len(shards), dtype=bool)
    usable = [(_places(shards, night), night) for night in nights if _cut_for(night, target_bytes)]
    if usable:
        place, before = max(usable, key=lambda night: int((night[0] >= 0).sum()))
        new = place < 0
        of_before = before[SLICES.name].take(pa.array(place[~new], pa.int64()))
        slice_of[np.repeat(~new, counts)] = of_before.combine_chunks().flatten().to_numpy()
        again = _in_small_slices(shards, slice_of, ~new, target_bytes)
        if again.any():
            log.info("%d shards of slices that are not half full are packed anew", again.sum())
        new |= again
    next_number = slice_of[np.repeat(~new, counts)].max(initial=-1) + 1
    fresh = slices_of_row_groups(shards.filter(pa.array(new)), target_bytes)
    slice_of[np.repeat(new, counts)] = fresh + next_number
    slice_of = np.unique(slice_of, return_inverse=True)[1]  # or numbers would grow for ever
    edges = np.append(0, np.cumsum(counts)).astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(edges), pa.array(slice_of.astype(np.int32)))
    metadata = (shards.schema.metadata or {}) | {_TARGET_KEY: str(target_bytes)}
    return shards.append_column(SLICES, column).replace_schema_metadata(metadata)


def new_share(lake: Store, shards: pa.Table, model_id: str) -> float:
    """Share of the rows in shards that are new or changed since the newest night of a model."""
    latest = latest_snapshot(lake)
    served = latest.partitions if latest else {}
    nights = [ds for ds in served if served[ds].model_id == model_id]
    if not nights:
        return 1.0
    context = Context(served[max(nights)].run_id, max(nights), lake)
    try:
        before = lake.read_table(context.stage_path("pin", "shards.parquet"))
    except (OSError, pa.ArrowException, PipelineError):
        return 1.0  # gone or damaged: everything is labelled anew
    rows = shards["rows"].to_numpy()
    return float(rows[_places(shards, before) < 0].sum() / max(1, rows.sum()))


def _cut_for(shards: pa.Table, target_bytes: int) -> bool:
    cut_for = (shards.schema.metadata or {}).get(_TARGET_KEY)
    return SLICES.name in shards.column_names and cut_for == b"%d" % target_bytes


def _places(shards: pa.Table, before: pa.Table) -> NDArray[np.int64]:
    """Row of each shard in the earlier table; -1 for a new or changed shard.

    Endpoints without entity tags give no version. Such a shard counts as changed, because a new
    file looks like the old one.
    """
    places = pc.index_in(_versions(shards), value_set=_versions(before)).fill_null(-1)
    place: NDArray[np.int64] = places.to_numpy().astype(np.int64)
    place[pc.equal(shards["version"], "").to_numpy()] = -1
    groups, groups_before = (
        pc.list_value_length(table["row_group_bytes"]).to_numpy() for table in (shards, before)
    )
    same = place >= 0
    same[same] = groups_before[place[same]] == groups[same]
    place[~same] = -1
    return place


def _versions(shards: pa.Table) -> pa.Array:
    """Version, size and URL of each shard as one string; no version has a line break."""
    columns = (shards["version"], pc.cast(shards["bytes"], pa.string()), shards["url"])
    return pc.binary_join_element_wise(*columns, "\n").combine_chunks()


def _in_small_slices(
    shards: pa.Table, slice_of: NDArray[np.int64], kept: NDArray[np.bool_], target_bytes: int
) -> NDArray[np.bool_]:
    """Mask of the kept shards that are packed anew, because their slices are too small."""
    counts = pc.list_value_length(shards["row_group_bytes"]).to_numpy()
    size = shards["row_group_bytes"].combine_chunks().flatten().to_numpy()
    shard = np.repeat(np.arange(len(counts)), counts)
    of_kept = kept[shard]
    slice_bytes = np.bincount(slice_of[of_kept], weights=size[of_kept])
    slice_pieces = np.bincount(slice_of[of_kept])
    small = (slice_bytes < target_bytes / 2) & (slice_pieces < MOST_PIECES / 2)
    in_full = of_kept.copy()
    in_full[of_kept] = ~small[slice_of[of_kept]]
    chosen: NDArray[np.bool_] = kept & (counts > 0)
    chosen &= np.bincount(shard, weights=in_full, minlength=len(counts)) == 0
    now = len(np.unique(slice_of[chosen[shard]]))
    fresh = slices_of_row_groups(shards.filter(pa.array(chosen)), target_bytes)
    pays = now > 2 * len(np.unique(fresh)) + _MOST_SMALL_SLICES
    return chosen if pays else np.zeros_like(chosen)
