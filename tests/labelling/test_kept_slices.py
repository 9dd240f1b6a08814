"""Slices that stay from night to night, whatever happens to the shards around them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.input.slices import SLICES, by_slice, cut_slices
from pipeline.labelling.kept_slices import keep_slices

TARGET = 100
Shard = tuple[str, str, list[tuple[int, int]]]  # name, version, (rows, bytes) of its row groups


def small(*names: str, version: str = "v1", size: int = 20) -> list[Shard]:
    return [(name, version, [(3, size)]) for name in names]


def shard_table(shards: list[Shard]) -> pa.Table:
    kind = pa.list_(pa.int64())
    groups = [shard[2] for shard in shards]
    return pa.table(
        {
            "url": pa.array([f"/in/{name}" for name, _, _ in shards], pa.string()),
            "version": pa.array([version for _, version, _ in shards], pa.string()),
            "bytes": pa.array([sum(size for _, size in some) for some in groups], pa.int64()),
            "row_group_rows": pa.array([[rows for rows, _ in some] for some in groups], kind),
            "row_group_bytes": pa.array([[size for _, size in some] for some in groups], kind),
        }
    )


def night(shards: list[Shard], *before: pa.Table, target: int = TARGET) -> pa.Table:
    """The table of a night, with its slices."""
    return keep_slices(shard_table(sorted(shards)), before, target)


def slices(table: pa.Table) -> set[tuple[tuple[str, int], ...]]:
    """What each slice consists of: (shard, row group)."""
    names = table["url"].to_pylist()
    return {
        tuple(
            (names[shard].removeprefix("/in/"), group)
            for shard, group in zip(
                part["shard"].to_pylist(), part["row_group"].to_pylist(), strict=True
            )
        )
        for part in by_slice(cut_slices(table, TARGET))
    }


def of(*names: str) -> tuple[tuple[str, int], ...]:
    return tuple((name, 0) for name in names)


# Shards of 20 bytes in slices of 100: five each.
TEN = [f"{n:02}" for n in range(0, 20, 2)]
FIRST = night(small(*TEN))
A, B = of(*TEN[:5]), of(*TEN[5:])


def test_the_first_night_cuts_as_a_run_does() -> None:
    shards = [*small(*TEN), ("large", "v1", [(2, 70), (0, 0), (2, 70), (2, 70)]), ("none", "v", [])]
    fresh = cut_slices(shard_table(sorted(shards)), TARGET)
    assert cut_slices(night(shards), TARGET).equals(fresh)
    assert slices(FIRST) == {A, B}


def test_no_change() -> None:
    assert night(small(*TEN), FIRST).equals(FIRST)


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        pytest.param(small(*TEN, "99"), {A, B, of("99")}, id="at the end"),
        pytest.param(small(*TEN, "03", "13"), {A, B, of("03", "13")}, id="late, in the middle"),
        pytest.param(small(*TEN[1:]), {A[1:], B}, id="the first is gone"),
        pytest.param(small(*TEN[5:]), {B}, id="a whole slice is gone"),
        pytest.param(
            [*small(TEN[0], version="v2"), *small(*TEN[1:])],
            {of(TEN[0]), A[1:], B},
            id="replaced",
        ),
        pytest.param(
            [*small(TEN[0], size=21), *small(*TEN[1:])],
            {of(TEN[0]), A[1:], B},
            id="other size, same version",
        ),
        pytest.param(
            [*small(*TEN), ("large", "v1", [(1, 60), (1, 60), (1, 60)])],
            {A, B, (("large", 0), ("large", 1)), (("large", 2),)},
            id="a large one",
        ),
    ],
)
def test_slices_of_unchanged_shards_stay(
    shards: list[Shard], expected: set[tuple[tuple[str, int], ...]]
) -> None:
    table = night(shards, FIRST)
    assert slices(table) == expected
    assert night(shards, table).equals(table)


def test_a_shard_that_straddles_two_slices_keeps_both() -> None:
    wide = ("05", "v1", [(3, 20), (0, 0), (3, 20), (3, 20)])
    shards = [*small("00", "01", "02", "03"), wide, *small("06")]
    before = night(shards)
    assert slices(before) == {
        (*of("00", "01", "02", "03"), ("05", 0)),
        (("05", 2), ("05", 3), ("06", 0)),
    }
    after = night([*shards[1:], *small("04")], before)
    assert slices(after) == {
        (*of("01", "02", "03"), ("05", 0)),
        (("05", 2), ("05", 3), ("06", 0)),
        of("04"),
    }


def test_without_versions_every_shard_counts_as_changed() -> None:
    before = night(small(*TEN, version=""))
    after = night(small(*TEN[1:], version=""), before)
    assert slices(after) == {of(*TEN[1:6]), of(*TEN[6:])}


def test_another_size_of_slices_cuts_anew() -> None:
    # Slices of a night that was cut for 40 bytes would never grow.
    assert slices(night(small(*TEN[1:]), night(small(*TEN), target=40))) == {
        of(*TEN[1:6]),
        of(*TEN[6:]),
    }
    plain = FIRST.drop_columns([SLICES.name])  # of a plain run
    assert slices(night(small(*TEN[1:]), plain)) == {of(*TEN[1:6]), of(*TEN[6:])}


def test_of_several_nights_the_most_alike_counts() -> None:
    other = night(small("zz"))
    assert slices(night(small(*TEN[1:]), other, FIRST)) == {A[1:], B}


def test_many_nights_of_one_small_shard() -> None:
    table, shards, sizes, moved = FIRST, small(*TEN), [], 0
    for number in range(150):
        shards = [*shards, *small(f"n{number:03}")]
        before, table = slices(table), night(shards, table)
        # Full slices never move; small ones do, together, and seldom.
        assert {A, B} <= slices(table)
        moved += not before <= slices(table)
        sizes.append(len(slices(table)))
    assert max(sizes) < 64 + 2 * 160 / 5
    assert 0 < moved <= 2
    # Then as few slices as 160 shards fit in, and those of the nights since.
    assert min(np.diff(sizes)) < -60


def test_packing_comes_to_an_end() -> None:
    # Between large shards, a fresh cut leaves them small; packed once, they are full.
    shards = [
        shard
        for n in range(120)
        for shard in (*small(f"{n:03}"), (f"{n:03}-large", "v1", [(1, 100)]))
    ]
    table = night(shards)
    assert len(slices(table)) == 240
    packed = night(shards, table)
    assert len(slices(packed)) == 120 + 24
    assert night(shards, packed).equals(packed)


def test_an_empty_night() -> None:
    assert len(cut_slices(night([]), TARGET)) == 0
    assert slices(night(small(*TEN), night([]))) == {A, B}
    assert slices(night([], FIRST)) == set()
