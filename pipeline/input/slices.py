"""Slices, training shares and samples: which row groups are read together, and by which worker.

A *piece* is some rows of one row group, a row of a table with these columns: slice, shard,
row_group, row_start (in its row group), rows, first_row (of its row group, in its shard).

Slices are a pure function of the input, but a night keeps those of the night before for shards that
did not change (``pipeline.labelling.kept_slices``).
"""

from __future__ import annotations

import itertools
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.input.columns import GOLDEN, splitmix64

# Maximum number of row groups that the sample is drawn from: each costs a read, and this many
# represent the table even when shards are sorted.
MAX_SAMPLED_ROW_GROUPS = 512
# Maximum number of pieces in a slice: tiny shards cost a request each, and one actor would open
# a hundred thousand of them one by one.
MOST_PIECES = 1024
# Column of a night's table of shards: an arbitrary number of the slice of each row group, with
# empty ones.
SLICES = pa.field("row_group_slices", pa.list_(pa.int32()))


def cut_slices(shards: pa.Table, target_bytes: int) -> pa.Table:
    """Cut the input into units of work: row groups of one large shard, or several small shards.

    A column ``SLICES`` of the shards decides the slices; else their selected columns have about
    ``target_bytes``. Pieces are one per row group with rows, in the order of the shards.
    """
    counts = pc.list_value_length(shards["row_group_rows"]).to_numpy()
    rows = shards["row_group_rows"].combine_chunks().flatten().to_numpy()
    shard = np.repeat(np.arange(len(counts)), counts)
    row_group = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shard_rows = np.bincount(shard, weights=rows, minlength=len(counts)).astype(np.int64)
    first_row = np.cumsum(rows) - rows - np.repeat(np.cumsum(shard_rows) - shard_rows, counts)
    if SLICES.name in shards.column_names:
        number = shards[SLICES.name].combine_chunks().flatten().to_numpy()
    else:
        number = slices_of_row_groups(shards, target_bytes)
    pieces = pa.table(
        {
            "shard": shard.astype(np.int32),
            "row_group": row_group.astype(np.int32),
            "row_start": np.zeros(len(rows), np.int64),
            "rows": rows.astype(np.int64),
            "first_row": first_row.astype(np.int64),
            "slice": number.astype(np.int32),
        }
    ).filter(pa.array(rows > 0))
    # Renumber without gaps, which slices of empty row groups leave.
    _, numbers = np.unique(pieces["slice"].to_numpy(), return_inverse=True)
    return pieces.set_column(5, "slice", pa.array(numbers.astype(np.int32)))


def slices_of_row_groups(shards: pa.Table, target_bytes: int) -> NDArray[np.int64]:
    """The slice of each row group, with empty ones, shape (row groups,); ascending."""
    counts = pc.list_value_length(shards["row_group_bytes"]).to_numpy()
    size = shards["row_group_bytes"].combine_chunks().flatten().to_numpy()
    shard = np.repeat(np.arange(len(counts)), counts)
    shard_bytes = np.bincount(shard, weights=size, minlength=len(counts))
    # Shards of at least one slice are cut on their own; smaller neighbours are packed together.
    large = shard_bytes >= target_bytes
    family = np.cumsum(large | np.roll(large, 1)) if len(large) else large.astype(np.int64)
    piece_family = family[shard]
    family_first = np.searchsorted(piece_family, piece_family)  # index of the family's first piece
    bytes_before = np.cumsum(size) - size
    within = (bytes_before - bytes_before[family_first]) // target_bytes if len(size) else size
    turn = (np.arange(len(size)) - family_first) // MOST_PIECES
    change = np.ones(len(size), dtype=bool)
    change[1:] = (np.diff(piece_family) != 0) | (np.diff(within) != 0) | (np.diff(turn) != 0)
    slices: NDArray[np.int64] = np.cumsum(change) - 1
    return slices


def by_slice(pieces: pa.Table) -> list[pa.Table]:
    """The pieces of each slice, in the order of the shards."""
    numbers = pieces["slice"].to_numpy()
    if (np.diff(numbers) < 0).any():  # late shards lie between others of a slice
        pieces = pieces.take(pa.array(np.argsort(numbers, kind="stable")))
        numbers = pieces["slice"].to_numpy()
    return cut_where_changed(pieces, numbers)


def cut_where_changed(pieces: pa.Table, numbers: NDArray[np.integer]) -> list[pa.Table]:
    """Cut pieces wherever their numbers, which are not negative, change."""
    edges = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))
    return [pieces.slice(a, b - a) for a, b in itertools.pairwise(edges)]


def training_share(
    pieces: pa.Table, rank: int, size: int, *, fit_rows: int | None, seed: int
) -> pa.Table:
    """The rows that one of `size` workers trains on, in reading order, one slice per piece.

    All row groups in a seeded order, cut to ``fit_rows``, are divided evenly to the row: shares
    differ by at most one row, so no row is dropped and no worker waits for another.
    """
    order = np.random.default_rng(seed).permutation(len(pieces))
    rows = pieces["rows"].to_numpy()[order]
    ends = np.cumsum(rows)
    total = int(ends[-1]) if len(ends) else 0
    total = min(total, fit_rows or total)
    start, stop = rank * total // size, (rank + 1) * total // size
    begin = np.clip(ends - rows, start, stop)
    taken = np.clip(ends, start, stop) - begin
    mine = taken > 0
    share = pieces.take(pa.array(order[mine]))
    offset = begin[mine] - (ends - rows)[mine]
    share = share.set_column(2, "row_start", pa.array(offset))
    share = share.set_column(3, "rows", pa.array(taken[mine]))
    return share.set_column(5, "slice", pa.array(np.arange(len(share), dtype=np.int32)))


# Smaller tables train on every row: a cluster may have only a few.
_LEAST_ROWS_TO_HOLD_OUT = 1_000


def held_out_share(wanted: float, total_rows: int) -> float:
    """The share of rows to hold out of a table of this size."""
    return wanted if total_rows >= _LEAST_ROWS_TO_HOLD_OUT else 0.0


def held_out(
    shard: int, row_numbers_B: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Which rows are held out of training, a share in [0, 1), to measure it on.

    A hash of the row's position in the shard decides, so every stage and any number of workers hold
    out the same rows.
    """
    place = np.random.SeedSequence([seed, shard]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):  # modulo 2^64
        state_B = place + (row_numbers_B.astype(np.uint64) - np.uint64(1)) * GOLDEN
    held: NDArray[np.bool_] = splitmix64(state_B) < np.uint64(share * 2.0**64)
    return held


def sample_share(pieces: pa.Table, sample_rows: int, seed: int) -> pa.Table:
    """The pieces to read for the sample, with a column ``draw``: rows to draw from each.

    A simple random sample of the rows where the table has few row groups; else of a seeded choice
    of row groups.
    """
    if len(pieces) > MAX_SAMPLED_ROW_GROUPS:
        order = random.Random(seed).sample(range(len(pieces)), len(pieces))
        # More of them where they are too small to hold the sample.
        held = np.cumsum(pieces["rows"].to_numpy()[order])
        needed = int(np.searchsorted(held, sample_rows)) + 1
        chosen = order[: max(MAX_SAMPLED_ROW_GROUPS, needed)]
        pieces = pieces.take(pa.array(sorted(chosen)))
    rows = pieces["rows"].to_numpy()
    total = int(rows.sum())
    draw: NDArray[np.int64] = rows.astype(np.int64)
    if total > sample_rows:
        # Draw row numbers, then count them by row group: exact at any size, and the memory is
        # that of the sample. (numpy's multivariate_hypergeometric stops at 1e9 rows.)
        drawn = np.sort(
            np.fromiter(random.Random(seed).sample(range(total), sample_rows), np.int64)
        )
        ends = np.cumsum(rows)
        draw = np.bincount(np.searchsorted(ends, drawn, side="right"), minlength=len(rows))
    return pieces.append_column("draw", pa.array(draw.astype(np.int64)))
