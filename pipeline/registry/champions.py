"""Changes of the champion by a person: promote a refused challenger, or roll back.

Both append an entry to the registry and change nothing that exists. A night that was decided before
and is about to promote notices the new entry, and decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Champion, Identity, NightDecision, Verdict
from pipeline.artifacts.records import Artifact, StoredFile, fingerprint_of
from pipeline.errors import InputError
from pipeline.lake.snapshots import latest_snapshot
from pipeline.registry.clusters import store_table
from pipeline.registry.entries import (
    FOLDER,
    Entry,
    append,
    entry_numbers,
    latest_entry,
    read_entry,
    without_forgotten,
)
from pipeline.runs import RunFolder
from pipeline.schema import with_column
from pipeline.storage import Store

A = TypeVar("A", bound=Artifact)
# Identity of a challenger, as a night with this decision would match it.
Rematch = Callable[[NightDecision, Manifest, Champion], Identity]


@dataclass(frozen=True)
class Judged:
    """Verdict on a run's challenger, and whether it serves."""

    run_id: str
    verdict: Verdict
    serves: bool  # whether the challenger is the champion now


def judged(lake: Store, run_id: str) -> Judged:
    """The gate's verdict on a run's challenger, whether it could be fitted or not.

    Raises:
        InputError: There is no such run, or the gate has not looked at it.
    """
    run = RunFolder(lake, run_id)
    run.require()
    verdict = None
    if lake.exists(f"{run.path}/gate.json"):
        try:
            verdict = Verdict.model_validate(lake.read_json(f"{run.path}/gate.json"))
        except ValueError:  # of JSON and of pydantic
            raise InputError(
                f"run {run_id} in {lake.url} is of a version that this one cannot read"
            ) from None
    elif lake.exists(f"{run.path}/metrics.json"):
        # A challenger that could not be fitted never came to the gate.
        verdict = run.read_summary().verdict
    if verdict is None:
        raise InputError(
            f"run {run_id} has no verdict of the gate: it fitted no new model, or has not come "
            "that far"
        )
    latest = latest_entry(lake)
    return Judged(run_id, verdict, latest is not None and latest.champion.run_id == run_id)


def promote_challenger(lake: Store, run_id: str, *, who: str, why: str, rematch: Rematch) -> Entry:
    """Make a run's challenger the champion, whatever the gate said; a second call changes nothing.

    Its ids are those that it had when it served; else those of its night, if they mean the same
    today; else ``rematch`` matches its clusters to those of today's champion.

    Raises:
        InputError: There is no such challenger, or its files are gone.
        CommitError: See ``append``.
    """
    judged(lake, run_id)
    run = RunFolder(lake, run_id)
    identity = _fitted(run, "identify", Identity)
    challenger, clusters = without_forgotten(lake, identity.challenger, identity.clusters)
    identity = identity.model_copy(update={"challenger": challenger, "clusters": clusters})
    decision = _fitted(run, "decide", NightDecision)
    entries = [read_entry(lake, number) for number in entry_numbers(lake)]
    latest = entries[-1] if entries else None
    own = (challenger.run_id, challenger.model)
    its_own = [e for e in entries if (e.champion.run_id, e.champion.model) == own]
    if latest is not None and latest in its_own:
        return latest
    champion = its_own[-1].champion if its_own else identity.challenger
    _check_whole(lake, champion, its_own[-1].clusters if its_own else identity.clusters)
    clusters, transitions = identity.clusters, identity.transitions
    if latest is None or latest.number == decision.entry:
        pass  # nothing has happened since
    elif its_own:
        clusters = store_table(lake, "clusters", _restored(lake, its_own[-1], latest))
    elif (table := _overtaken(lake, identity, decision, entries)) is not None:
        clusters = store_table(lake, "clusters", table)
    else:
        same = latest.champion.reference.features == champion.reference.features
        today = {"entry": latest.number, "champion": latest.champion, "usable": same}
        manifest = run.artifact("pin", Manifest)
        matched = rematch(decision.model_copy(update=today), manifest, champion)
        champion = champion.model_copy(update={"ids": matched.challenger.ids})
        clusters, transitions = matched.clusters, matched.transitions
    before = latest.transitions if latest else ()
    return append(
        lake,
        latest.number if latest else 0,
        action="promote",
        commit_id=_commit_id("promote", run_id, latest),
        who=who,
        reason=why,
        champion=champion,
        clusters=clusters,
        transitions=before if transitions in before else (*before, transitions),
    )


def roll_back(lake: Store, *, who: str, why: str, again: bool = False) -> Entry:
    """Restore the previous champion.

    Ids born since then end; ids that ended since then live again. Names given since then stay.
    Champions are a stack: promoting pushes one, rolling back pops it. ``again`` allows to roll back
    where the last change was a rollback; without it, a rollback whose answer was lost can be
    repeated without going back twice.

    Raises:
        InputError: There is no earlier champion, its files are gone, or the last change was a
            rollback already.
        CommitError: See ``append``.
    """
    entries = [read_entry(lake, number) for number in entry_numbers(lake)]
    changes = [entry for entry in entries if entry.action in ("promote", "rollback")]
    if changes and changes[-1].action == "rollback" and not again:
        last = changes[-1]
        raise InputError(
            f"{last.who} rolled back to {last.champion.model.model_id} at {last.at} ({last.why}), "
            "and nothing was promoted since; --again goes back to the champion before that one"
        )
    served = _stack(entries)
    if len(served) < 2:
        raise InputError(
            f"{lake.locate(FOLDER)} has no champion before "
            f"{served[-1].champion.model.model_id if served else 'the first'}; nothing to go back "
            "to"
        )
    back, latest = served[-2], entries[-1]
    _check_whole(lake, back.champion, back.clusters)
    return append(
        lake,
        latest.number,
        action="rollback",
        commit_id=_commit_id("rollback", back.champion.run_id, latest),
        who=who,
        reason=why,
        champion=back.champion,
        clusters=store_table(lake, "clusters", _restored(lake, back, latest)),
        transitions=latest.transitions,
    )


def restored(then: pa.Table, now: pa.Table, ended: str) -> pa.Table:
    """Clusters at an earlier time, and later ones, which end.

    ``then`` is the table of the time when the restored champion served, ``now`` that of today, with
    a superset of its ids. Living ids that were born since then end on ``ended``.
    """
    later = now.filter(pa.array(~np.isin(_ids(now), _ids(then))))
    later = with_column(later, "died", pc.fill_null(later["died"], ended))
    return _sorted(_named_as_in(then, now), later)


def overtaken(table: pa.Table, now: pa.Table) -> pa.Table:
    """A challenger's clusters, with the names and ends given since it was matched."""
    others = now.filter(pa.array(~np.isin(_ids(now), _ids(table))))
    return _sorted(_named_as_in(table, now), others)


def clusters_since(
    lake: Store, identity: Identity, decision: NightDecision, latest: Entry
) -> StoredFile | None:
    """The clusters table of a challenger after the registry changed, for example by a new name.

    None where its clusters have to be matched anew.
    """
    entries = [read_entry(lake, n) for n in entry_numbers(lake) if n <= latest.number]
    table = _overtaken(lake, identity, decision, entries)
    return None if table is None else store_table(lake, "clusters", table)


def _restored(lake: Store, back: Entry, latest: Entry) -> pa.Table:
    then, now = (lake.read_table(entry.clusters.path) for entry in (back, latest))
    snapshot = latest_snapshot(lake)
    return restored(then, now, max(snapshot.partitions) if snapshot else latest.champion.ds)


def _overtaken(
    lake: Store, identity: Identity, decision: NightDecision, entries: list[Entry]
) -> pa.Table | None:
    """The clusters table with a challenger that was matched some entries ago.

    None where its ids no longer mean the same: it was matched to another champion, or its new ids
    were given to others meanwhile.
    """
    latest = entries[-1]
    if latest.champion != decision.champion:
        return None
    table, now = (lake.read_table(file.path) for file in (identity.clusters, latest.clusters))
    before = [lake.read_table(e.clusters.path) for e in entries if e.number == decision.entry]
    known = _ids(before[0]) if before else np.empty(0, np.int32)
    taken = np.isin(np.setdiff1d(_ids(table), known), _ids(now)).any()
    return None if taken else overtaken(table, now)


def _stack(entries: list[Entry]) -> list[Entry]:
    """Newest entries of the champions that can be restored, and last of the one that serves."""
    served: list[Entry] = []
    for entry in entries:
        # All other actions change something about the current champion.
        gone = {"promote": 0, "rollback": 2}.get(entry.action, 1)
        served = [*served[: max(0, len(served) - gone)], entry]
    return served


def _commit_id(action: str, run_id: str, latest: Entry | None) -> str:
    """The same for each attempt at one change: made of the change and the state before it."""
    return fingerprint_of([action, run_id, latest.commit_id if latest else None])[:32]


def _check_whole(lake: Store, champion: Champion, clusters: StoredFile) -> None:
    """Raise InputError where files that serving needs are gone."""
    model, reference = champion.model, champion.reference
    needed = (model.weights, model.centroids, model.scaler, champion.ids, reference.bins, clusters)
    for file in (*needed, *reference.sample.parts):
        if file is not None and not lake.exists(file.path):
            raise InputError(
                f"model {model.model_id} of run {champion.run_id} is not whole: "
                f"{lake.locate(file.path)} is gone, by dec gc or by hand; it cannot serve"
            )


def _fitted(run: RunFolder, stage: str, kind: type[A]) -> A:
    if (found := run.found(stage, kind)) is None:
        raise InputError(
            f"run {run.run_id} has no challenger: {run.stage_path(stage, 'done.json')} is not "
            "there, or this version cannot read it. A model that could not be fitted cannot serve; "
            "see dec gate"
        )
    return found


def _ids(table: pa.Table) -> NDArray[np.int32]:
    ids: NDArray[np.int32] = table["cluster_id"].to_numpy()
    return ids


def _named_as_in(table: pa.Table, now: pa.Table) -> pa.Table:
    """The table with the names that its ids have in ``now``; ids that are not there keep theirs."""
    positions = pc.index_in(table["cluster_id"], value_set=now["cluster_id"].combine_chunks())
    names = pc.if_else(
        pc.is_null(positions), table["name"], now["name"].combine_chunks().take(positions)
    )
    return with_column(table, "name", names)


def _sorted(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks().sort_by("cluster_id")
