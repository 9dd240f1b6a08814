"""Checks of the fourteen nights against the known classes."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from .living import Night, difference
from .nights import GARBAGE, KILLED, MOVES, QUIET, REFITS, SOUND, Cast

# F1 of a class and its cluster: below it nobody would say that the cluster is that class.
FOUND = 0.7
GATE_REFUSED = 5


def every_key_is_there_once(nights: list[Night]) -> None:
    """No key lost or doubled on any night, and none of a row that is not in the table."""
    for night in nights:
        np.testing.assert_array_equal(night.keys_N, night.expected_N, f"night {night.day}")
        assert night.summary["rows_out"] == len(night.expected_N)
        assert (night.ids_N >= 0).all()


def nights_do_what_is_due(nights: list[Night]) -> None:
    """A refit where the champion is old enough, and the champion's work on all other nights."""
    for night in nights:
        wanted = "refit" if night.day in REFITS else "assign"
        assert night.summary["action"] == wanted, (night.day, night.summary["why"])
        assert night.summary["why"]


def assign_nights_read_new_rows_alone(nights: list[Night]) -> None:
    """Changed shards are read once, the rest is carried by reference; nothing is trained."""
    for night in nights:
        summary = night.summary
        if summary["action"] != "assign":
            continue
        assert summary["rows_labelled"] == night.changed_rows, night.day
        assert summary["rows_carried"] == len(night.expected_N) - night.changed_rows, night.day
        assert night.trained_passes == 0
        stages = {stage["stage"] for stage in summary["stages"]}
        assert not stages & {"sample", "pretrain", "init_centroids", "refine", "evaluate"}


def a_quiet_night_changes_nothing(nights: list[Night]) -> None:
    """Unchanged data and an unchanged config: zero churn, and the same files serve."""
    before, night = nights[QUIET - 2], nights[QUIET - 1]
    assert night.changes == {}
    assert night.summary["rows_labelled"] == 0
    assert sorted(night.files) == sorted(before.files)
    assert churn(before, night) == 0
    assert not night.summary["churn"]


def classes_are_found(cast: Cast, nights: list[Night]) -> None:
    """After each refit every class is a cluster of its own: else nothing can be said of its id."""
    for night in (nights[0], nights[4], nights[KILLED - 1], nights[SOUND - 1]):
        found = {group: night.found(group) for group in sorted(set(night.known_N.tolist()))}
        assert len(found) == cast.clusters
        assert min(found.values()) > FOUND, (night.day, found)
        assert len({night.cluster_of(group) for group in found}) == cast.clusters, night.day


def ids_stay(cast: Cast, nights: list[Night]) -> None:
    """A class that nothing befell has the id that it had, whatever model found it."""
    first, second, third, last = (nights[day - 1] for day in (1, 5, KILLED, SOUND))
    untouched = [str(label) for label in (*cast.stay, *cast.merge, cast.splits)]
    assert _ids(first, untouched) == _ids(second, untouched)
    untouched = [str(label) for label in (*cast.stay, cast.appears)]
    assert _ids(second, untouched) == _ids(third, untouched)
    untouched += [cast.merged(), *cast.parts()]
    assert _ids(third, untouched) == _ids(last, untouched)
    # Between refits it is one model: rows that did not change keep their id.
    for before, night in pairwise(nights):
        if night.summary["action"] == "assign" and night.day not in (MOVES,):
            assert churn(before, night) == 0, night.day


def transitions_say_what_happened(cast: Cast, nights: list[Night]) -> None:
    """Births, deaths, merges and splits of the registry are those of the classes, and no others."""
    first, second, third, last = (nights[day - 1] for day in (1, 5, KILLED, SOUND))
    appeared = second.happened()
    born, died = second.cluster_of(str(cast.appears)), first.cluster_of(str(cast.vanishes))
    assert {to_id for _, to_id in appeared["birth"]} == {born}
    assert {from_id for from_id, _ in appeared["death"]} == {died}
    assert not appeared["merge"] | appeared["split"]
    assert born not in first.ids_N  # a new id, never one that was used

    # Of what merges one cluster goes on, the other goes up in it; of what splits one part goes on.
    moved = third.happened()
    merged = third.cluster_of(cast.merged())
    both = {(second.cluster_of(str(label)), merged) for label in cast.merge}
    assert len(moved["merge"]) == 1
    assert moved["merge"] <= both <= moved["merge"] | moved["survival"]
    parts = {(second.cluster_of(str(cast.splits)), third.cluster_of(p)) for p in cast.parts()}
    assert len(moved["split"]) == 1
    assert moved["split"] <= parts <= moved["split"] | moved["survival"]
    assert not moved["birth"] | moved["death"]

    calm = last.happened()
    assert not calm["merge"] | calm["split"] | calm["birth"] | calm["death"]
    used = [set(night.ids_N.tolist()) for night in (first, second, third)]
    assert died not in used[1] | used[2]
    # Nothing happens to clusters but on a refit that is promoted.
    told = set(last.transitions["run_id"].to_pylist())
    assert told <= {f"night-{day:02}" for day in REFITS if day != GARBAGE}


def the_bad_night_is_refused(nights: list[Night]) -> None:
    """Exit code 5, last night's champion serves, and the snapshot says so."""
    before, bad, after = nights[GARBAGE - 2], nights[GARBAGE - 1], nights[SOUND - 1]
    assert bad.code == GATE_REFUSED
    assert bad.summary["refused"] is True
    assert bad.partition.refused
    broken = {rule["name"] for rule in bad.summary["verdict"]["rules"] if not rule["passed"]}
    assert "max_psi" in broken  # what truly happened: the input moved overnight
    assert bad.summary["champion"] == before.summary["champion"] == bad.partition.model_id
    assert set(bad.ids_N.tolist()) <= set(before.ids_N.tolist())
    assert bad.transitions.equals(before.transitions)
    assert after.summary["champion"] != bad.summary["champion"]
    for night in nights:
        if night is not bad:
            assert night.code == 0, night.day
            assert night.summary["refused"] is False
            assert not night.partition.refused


def models_change_on_refits_alone(nights: list[Night]) -> None:
    """The champion is the same until a refit is promoted."""
    for before, night in pairwise(nights):
        promoted = night.day in REFITS and night.day != GARBAGE
        assert (night.summary["champion"] != before.summary["champion"]) == promoted, night.day


def diff_says_the_same(folder: Path, nights: list[Night]) -> None:
    """``dec diff`` counts what a comparison of the published rows by key counts."""
    for before, after in ((4, 5), (QUIET - 1, QUIET), (MOVES, KILLED), (GARBAGE - 1, GARBAGE)):
        one, other = nights[before - 1], nights[after - 1]
        said = difference(folder, before, after)
        both, mine, its = np.intersect1d(one.keys_N, other.keys_N, return_indices=True)
        pairs = zip(one.ids_N[mine].tolist(), other.ids_N[its].tolist(), strict=True)
        flows = Counter(pair for pair in pairs if pair[0] != pair[1])
        assert said["in_both"] == len(both)
        assert said["new"] == len(other.keys_N) - len(both)
        assert said["gone"] == len(one.keys_N) - len(both)
        assert said["repeated_keys"] == 0
        assert said["changed"] == flows.total()
        assert said["churn"] == pytest.approx(churn(one, other))
        assert {(f["from_id"], f["to_id"]): f["keys"] for f in said["flows"]} == dict(flows)
        told = {(row["kind"], row["from_id"], row["to_id"]) for row in said["transitions"]}
        changes = other.happened()
        del changes["survival"]  # nothing happened to those
        assert told == {(kind, *ids) for kind, pairs in changes.items() for ids in pairs}


def failures(cast: Cast, nights: list[Night], folder: Path) -> list[str]:
    """Every check; those that do not hold, with the line that says so."""
    checks: dict[str, Callable[[], None]] = {
        "every key is there once": lambda: every_key_is_there_once(nights),
        "nights do what is due": lambda: nights_do_what_is_due(nights),
        "assign nights read new rows alone": lambda: assign_nights_read_new_rows_alone(nights),
        "a quiet night changes nothing": lambda: a_quiet_night_changes_nothing(nights),
        "classes are found": lambda: classes_are_found(cast, nights),
        "ids stay": lambda: ids_stay(cast, nights),
        "transitions say what happened": lambda: transitions_say_what_happened(cast, nights),
        "the bad night is refused": lambda: the_bad_night_is_refused(nights),
        "models change on refits alone": lambda: models_change_on_refits_alone(nights),
        "dec diff says the same": lambda: diff_says_the_same(folder, nights),
    }
    found = []
    for name, check in checks.items():
        try:
            check()
        except AssertionError as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            found.append(f"{name}: {line} {error}".strip())
    return found


def churn(before: Night, after: Night) -> float:
    """Share of the rows that both nights have whose id differs."""
    _, one, other = np.intersect1d(before.keys_N, after.keys_N, return_indices=True)
    return float((before.ids_N[one] != after.ids_N[other]).mean())


def _ids(night: Night, groups: list[str]) -> dict[str, int]:
    return {group: night.cluster_of(group) for group in groups}
