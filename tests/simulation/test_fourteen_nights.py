"""Fourteen nights of the digits: the short form of ``python -m tests.simulation.full``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from . import checks
from .living import Night, cost_table, live
from .nights import (
    CORRECTION,
    CORRUPT,
    DIGITS,
    DRIFT,
    GARBAGE,
    LATE,
    MOVES,
    NIGHTS,
    QUIET,
    REPAIRED,
    SOUND,
    Table,
    World,
    ds_of,
)

CAST = DIGITS.cast


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, the lake and the config."""
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def nights(ray_address: str, folder: Path) -> list[Night]:
    """All nights, finished."""
    # Refits that are killed have a test of their own: faults/test_driver.py.
    lived = list(live(DIGITS, folder, ray_address, kills={10: "assign"}))
    print(f"\n{cost_table(lived)}")
    return lived


@pytest.mark.slow
class TestFourteenNights:
    """Read from top to bottom: each check takes the ones before for granted."""

    def test_every_key_is_there_once(self, nights: list[Night]) -> None:
        checks.every_key_is_there_once(nights)

    def test_nights_do_what_is_due(self, nights: list[Night]) -> None:
        checks.nights_do_what_is_due(nights)

    def test_assign_nights_read_new_rows_alone(self, nights: list[Night]) -> None:
        checks.assign_nights_read_new_rows_alone(nights)

    def test_a_quiet_night_changes_nothing(self, nights: list[Night]) -> None:
        checks.a_quiet_night_changes_nothing(nights)

    def test_classes_are_found(self, nights: list[Night]) -> None:
        checks.classes_are_found(CAST, nights)

    def test_ids_stay(self, nights: list[Night]) -> None:
        checks.ids_stay(CAST, nights)

    def test_transitions_say_what_happened(self, nights: list[Night]) -> None:
        checks.transitions_say_what_happened(CAST, nights)

    def test_the_bad_night_is_refused(self, nights: list[Night]) -> None:
        checks.the_bad_night_is_refused(nights)

    def test_models_change_on_refits_alone(self, nights: list[Night]) -> None:
        checks.models_change_on_refits_alone(nights)

    def test_diff_says_the_same(self, nights: list[Night], folder: Path) -> None:
        checks.diff_says_the_same(folder, nights)


# ------------------------------------------------------------------------------------ the world


@pytest.fixture(scope="module")
def world() -> World:
    return World(DIGITS)


def test_classes_come_and_go_as_the_cast_says(world: World) -> None:
    def there(day: int) -> set[str]:
        return set(world.known(day).values())

    start = {str(label) for label in CAST.all} - {str(CAST.appears)}
    assert there(1) == there(DRIFT - 1) == start
    assert there(DRIFT) == there(MOVES - 1) == start - {str(CAST.vanishes)} | {str(CAST.appears)}
    kept = {str(label) for label in (*CAST.stay, CAST.appears)}
    assert there(MOVES) == there(SOUND) == kept | {CAST.merged(), *CAST.parts()}
    assert all(len(there(day)) == CAST.clusters for day in NIGHTS)


def test_shards_hold_each_known_row_once(world: World) -> None:
    for day in NIGHTS:
        shards = world.shards(day)
        keys = np.concatenate([shard["id"].to_numpy() for shard in shards.values()])
        assert len(np.unique(keys)) == len(keys)
        if day == CORRUPT:
            shards.pop(f"{ds_of(day)}.parquet")
            keys = np.concatenate([shard["id"].to_numpy() for shard in shards.values()])
        assert sorted(keys.tolist()) == sorted(world.known(day))


def test_the_table_changes_as_the_events_say(world: World, tmp_path: Path) -> None:
    table = Table(world, tmp_path / "table")
    changes = {day: table.become(day) for day in NIGHTS}
    assert set(changes[1].values()) == {"new"}
    assert list(changes[LATE].values()) == ["new", "new"]
    assert min(changes[LATE]) < ds_of(1)
    assert changes[QUIET] == {}
    assert sorted(changes[CORRECTION].values()) == ["deleted", "new", "replaced"]
    assert changes[CORRUPT] == {f"{ds_of(CORRUPT)}.parquet": "new"}
    assert changes[REPAIRED] == {
        f"{ds_of(CORRUPT)}.parquet": "replaced",
        f"{ds_of(REPAIRED)}.parquet": "new",
    }
    for day in (2, 5, 9, 10):
        assert changes[day] == {f"{ds_of(day)}.parquet": "new"}
    for day in (GARBAGE, SOUND):  # all shards, and one that is new
        assert list(changes[day].values()).count("new") == 1
    assert changes[SOUND].keys() == table.shards.keys()
    assert changes[GARBAGE].keys() == table.shards.keys() - {f"{ds_of(SOUND)}.parquet"}
    names = {path.name for path in table.folder.iterdir()}
    assert names == table.shards.keys()
    packed = [name for pack in table.packs for name in pack]
    assert sorted(packed) == sorted(names)


def test_merging_and_splitting_move_those_classes_alone(world: World) -> None:
    before, after = world.shards(MOVES - 1), world.shards(MOVES)
    for name in before.keys() & after.keys():
        labels = before[name]["label"].to_numpy()
        moved = np.array(
            [
                one != other
                for one, other in zip(*(_x(t[name]) for t in (before, after)), strict=True)
            ]
        ).any(axis=1)
        assert set(labels[moved].tolist()) <= {*CAST.merge, CAST.splits}
        assert moved[np.isin(labels, [*CAST.merge, CAST.splits])].all()


def _x(shard: pa.Table) -> np.ndarray:
    values = shard["x"].combine_chunks().flatten().to_numpy()
    return values.reshape(len(shard), -1)
