"""Who reads which rows: each exactly once, evenly, and the same ones for the same seed."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.input import slices
from pipeline.input.slices import (
    by_slice,
    cut_slices,
    held_out,
    held_out_share,
    sample_share,
    training_share,
)


def shard_table(*shards: list[tuple[int, int]]) -> pa.Table:
    """A manifest's table from each shard's row groups as (rows, bytes)."""
    kind = pa.list_(pa.int64())
    return pa.table(
        {
            "row_group_rows": pa.array([[rows for rows, _ in s] for s in shards], kind),
            "row_group_bytes": pa.array([[size for _, size in s] for s in shards], kind),
        }
    )


def places(pieces: pa.Table) -> list[list[tuple[int, int]]]:
    """(shard, row group) of the pieces of each slice."""
    return [
        list(zip(part["shard"].to_pylist(), part["row_group"].to_pylist(), strict=True))
        for part in by_slice(pieces)
    ]


def row_ids(pieces: pa.Table) -> list[tuple[int, int]]:
    """(shard, row number) of every row of the pieces."""
    return [
        (piece["shard"], piece["first_row"] + piece["row_start"] + row)
        for piece in pieces.to_pylist()
        for row in range(piece["rows"])
    ]


SHAPES = {
    "one": [[(5, 10)]],
    "one large": [[(4, 60), (4, 60), (4, 60), (2, 30)]],
    "many small": [[(3, 20)]] * 9,
    "large between small": [[(1, 30)], [(2, 70), (2, 70), (2, 70)], [(1, 30)], [(1, 30)]],
    "empty row groups": [[(0, 0), (3, 50)], [(2, 40), (0, 0), (4, 80)], [(0, 0)]],
    "empty shards": [[], [(3, 50)], [], [], [(4, 200)], []],
}


# --------------------------------------------------------------------------------- cut_slices


@pytest.mark.parametrize("target", [1, 100, 10**9])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_is_in_exactly_one_slice(shape: str, target: int) -> None:
    shards = SHAPES[shape]
    pieces = cut_slices(shard_table(*shards), target)
    expected = [
        (s, row) for s, groups in enumerate(shards) for row in range(sum(r for r, _ in groups))
    ]
    assert row_ids(pieces) == expected
    assert all(rows > 0 for rows in pieces["rows"].to_pylist())
    numbers = pieces["slice"].to_pylist()
    assert sorted(set(numbers)) == list(range(max(numbers) + 1))
    assert numbers == sorted(numbers)


def test_large_shard_is_cut_by_itself() -> None:
    # Target 100: shard 1 has 210 bytes. Its groups begin at 0, 70 and 140 bytes, so two and one.
    pieces = cut_slices(shard_table(*SHAPES["large between small"]), 100)
    assert places(pieces) == [[(0, 0)], [(1, 0), (1, 1)], [(1, 2)], [(2, 0), (3, 0)]]


def test_small_shards_are_packed() -> None:
    # Shards of 20 bytes into slices of 100: five, then the remaining four.
    pieces = cut_slices(shard_table(*SHAPES["many small"]), 100)
    assert [len(part) for part in by_slice(pieces)] == [5, 4]


def test_a_slice_of_tiny_shards_has_a_bounded_number_of_them() -> None:
    counts = [len(slice_) for slice_ in places(cut_slices(shard_table(*[[(1, 1)]] * 2500), 10**9))]
    assert counts == [1024, 1024, 452]


def test_neighbouring_large_shards_do_not_share_a_slice() -> None:
    pieces = cut_slices(shard_table([(1, 90), (1, 20)], [(1, 90), (1, 20)]), 100)
    assert places(pieces) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]


def test_row_groups_know_where_they_begin_in_their_shard() -> None:
    pieces = cut_slices(shard_table([(3, 1), (0, 0), (4, 1)], [(5, 1), (1, 1)]), 100)
    assert pieces["row_group"].to_pylist() == [0, 2, 0, 1]
    assert pieces["first_row"].to_pylist() == [0, 3, 0, 5]


@pytest.mark.parametrize("shards", [[], [[]], [[(0, 0)], []]])
def test_no_rows_are_no_slices(shards: list[list[tuple[int, int]]]) -> None:
    pieces = cut_slices(shard_table(*shards), 100)
    assert len(pieces) == 0
    assert by_slice(pieces) == []


# ----------------------------------------------------------------------------- training_share

PIECES = cut_slices(shard_table([(7, 10), (1, 10)], [(12, 10)], [(3, 10), (3, 10), (5, 10)]), 25)
ALL_ROWS = 31


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("fit_rows", [None, 1, 10, 31, 1000])
def test_shares_cover_every_row_once_and_evenly(size: int, fit_rows: int | None) -> None:
    shares = [training_share(PIECES, r, size, fit_rows=fit_rows, seed=3) for r in range(size)]
    taken = [row for share in shares for row in row_ids(share)]
    assert len(taken) == min(fit_rows or ALL_ROWS, ALL_ROWS)
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(row_ids(PIECES))
    counts = [sum(share["rows"].to_pylist()) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_share_stays_inside_its_row_groups() -> None:
    whole = {(p["shard"], p["row_group"]): p["rows"] for p in PIECES.to_pylist()}
    for rank in range(3):
        for piece in training_share(PIECES, rank, 3, fit_rows=None, seed=1).to_pylist():
            assert piece["rows"] > 0
            assert piece["row_start"] + piece["rows"] <= whole[piece["shard"], piece["row_group"]]


def test_same_seed_same_share() -> None:
    first, again, other = (
        training_share(PIECES, 1, 3, fit_rows=20, seed=seed) for seed in (5, 5, 6)
    )
    assert first.equals(again)
    assert set(row_ids(first)) != set(row_ids(other))


def test_fit_rows_are_the_same_rows_for_any_number_of_workers() -> None:
    one = row_ids(training_share(PIECES, 0, 1, fit_rows=15, seed=2))
    three = [training_share(PIECES, rank, 3, fit_rows=15, seed=2) for rank in range(3)]
    assert sorted(row for share in three for row in row_ids(share)) == sorted(one)


def test_share_of_nothing_is_empty() -> None:
    nothing = training_share(PIECES.slice(0, 0), 0, 2, fit_rows=None, seed=0)
    assert len(nothing) == 0


# ------------------------------------------------------------------------------- sample_share


@pytest.mark.parametrize("sample_rows", [1, 10, 31, 1000])
def test_sample_has_exactly_the_rows_asked_for(sample_rows: int) -> None:
    sample = sample_share(PIECES, sample_rows, seed=0)
    assert sum(sample["draw"].to_pylist()) == min(sample_rows, ALL_ROWS)
    for piece in sample.to_pylist():
        assert 0 <= piece["draw"] <= piece["rows"]


def test_sample_is_seeded() -> None:
    first, again, other = (sample_share(PIECES, 12, seed)["draw"].to_pylist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_row_is_as_likely_as_any_other() -> None:
    # 4,000 draws of 1 of 31 rows: a piece of r rows is hit 4000·r/31 times, deviation below 40.
    hits = sum(np.array(sample_share(PIECES, 1, seed)["draw"]) for seed in range(4000))
    np.testing.assert_allclose(hits, 4000 * np.array(PIECES["rows"]) / ALL_ROWS, atol=160)


def test_sample_reads_a_limited_number_of_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MAX_SAMPLED_ROW_GROUPS", 8)
    many = cut_slices(shard_table(*[[(10, 10)] for _ in range(50)]), 25)
    chosen = [sample_share(many, 40, seed)["shard"].to_pylist() for seed in (1, 1, 2)]
    assert len(set(chosen[0])) == 8
    assert chosen[0] == chosen[1] != chosen[2]
    assert sum(sample_share(many, 40, 1)["draw"].to_pylist()) == 40


def test_many_tiny_row_groups_still_fill_the_sample() -> None:
    # The limit on row groups must not leave k-means with fewer rows than the config promised it.
    pieces = cut_slices(shard_table(*[[(1, 10)] for _ in range(2000)]), 10**6)
    assert sum(sample_share(pieces, 1000, seed=0)["draw"].to_pylist()) == 1000


def test_sample_of_more_rows_than_memory_would_hold() -> None:
    # 10^10 rows: only the drawn row numbers may be held.
    pieces = cut_slices(shard_table(*[[(10**9, 10)] for _ in range(10)]), 25)
    assert sum(sample_share(pieces, 500, seed=0)["draw"].to_pylist()) == 500


# ----------------------------------------------------------------------------------- held out


def test_held_out_rows_are_that_share_and_look_random() -> None:
    rows = np.arange(100_000)
    held = held_out(3, rows, 0.02, seed=1)
    assert 1_800 < held.sum() < 2_200
    gaps = np.diff(np.flatnonzero(held))
    assert gaps.min() == 1  # neighbours are as likely as any other pair
    assert 45 < gaps.mean() < 55
    assert not held_out(3, rows, 0.0, seed=1).any()


def test_held_out_rows_depend_on_place_and_seed_alone() -> None:
    rows = np.arange(10_000)
    held = held_out(3, rows, 0.1, seed=1)
    assert np.array_equal(held[5_000:6_000], held_out(3, rows[5_000:6_000], 0.1, seed=1))
    assert np.array_equal(held[[7, 3]], held_out(3, rows[[7, 3]], 0.1, seed=1))
    for other in (held_out(4, rows, 0.1, seed=1), held_out(3, rows, 0.1, seed=2)):
        assert (held & other).sum() < 0.3 * held.sum()
    # Of a larger share, the smaller is a part.
    assert not (held & ~held_out(3, rows, 0.2, seed=1)).any()


@pytest.mark.parametrize(("rows", "share"), [(999, 0.0), (1_000, 0.02)])
def test_small_tables_are_learnt_from_in_full(rows: int, share: float) -> None:
    assert held_out_share(0.02, rows) == share
