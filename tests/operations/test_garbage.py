"""What ``dec gc`` removes, and above all what it leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Dec

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Reference
from pipeline.artifacts.records import StoredFile
from pipeline.config import Retention
from pipeline.errors import ConfigError, InputError, TransientError
from pipeline.lake.lease import take
from pipeline.lake.snapshots import Partition, assignment_files, publish
from pipeline.operations import garbage
from pipeline.operations.garbage import Collection, collect
from pipeline.registry.entries import append, entry_numbers
from pipeline.storage import Store
from pipeline.tuning.trials import Study, TrialFolder

DAY = 86_400
KEEP_ONE = Retention(snapshots=1, days=0, unpublished_days=7)


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def write_run(
    lake: Store, run: str, ds: str = "d", *, parts: int = 2, model: str = "m", **listed: Any
) -> None:
    """What a run leaves up to the end of assign."""
    for part in range(parts):
        lake.write_bytes(f"runs/{run}/assignments/part-{part}.parquet", b"rows" * 10)
    paths = listed.get("files", [f"runs/{run}/assignments/part-{n}.parquet" for n in range(parts)])
    files = [{"path": path, "rows": 1, "bytes": 40} for path in paths]
    lake.write_json(f"runs/{run}/run.json", {"run_id": run, "ds": ds, "version": "0"})
    lake.write_bytes(f"runs/{run}/config.yaml", b"{}")
    lake.write_json(f"runs/{run}/manifest.json", {})
    lake.write_json(f"runs/{run}/failure.json", {"kind": "TransientError"})
    lake.write_bytes(f"runs/{run}/stages/pretrain/checkpoint.safetensors", b"weights")
    lake.write_json(f"runs/{run}/stages/assign/files.json", {"rows": len(files), "files": files})
    for stage in ("select", "assign"):
        marker = {"artifact": {"weights": {"path": f"models/{model}/weights.safetensors"}}}
        lake.write_json(f"runs/{run}/stages/{stage}/done.json", marker)
    lake.write_bytes(f"models/{model}/weights.safetensors", b"weights")
    lake.write_bytes(f"models/{model}/config.yaml", b"{}")


def publish_run(lake: Store, run: str, ds: str = "d", *, model: str = "m", **listed: Any) -> None:
    write_run(lake, run, ds, model=model, **listed)
    files = f"runs/{run}/stages/assign/files.json"
    publish(lake, ds, Partition(run_id=run, model_id=model, rows=2, files=files), run)
    lake.write_json(f"runs/{run}/stages/publish/done.json", {})
    lake.write_json(f"runs/{run}/metrics.json", {})


def age(lake: Store, days: float, below: str = "") -> None:
    """Everything there, or below a folder, was written so many days ago."""
    written = time.time() - days * DAY
    for path in Path(lake.locate(below)).rglob("*"):
        os.utime(path, (written, written))


def names(lake: Store, below: str = "") -> set[str]:
    return {f"{below}/{file.name}".strip("/") for file in lake.walk(below)}


def kinds(done: Collection) -> dict[str, str]:
    return {removal.name: removal.kind for removal in done.removals}


def gc(lake: Store, retention: Retention = KEEP_ONE, *, dry_run: bool = False) -> Collection:
    return collect(lake, retention, dry_run=dry_run, on_wait=pytest.fail)


def test_nothing_there(lake: Store) -> None:
    assert gc(lake).removals == []
    assert not Path(lake.url).exists()


# ---------------------------------------------------------------------------------- snapshots


def test_the_newest_snapshot_and_all_that_it_names_stay(lake: Store) -> None:
    for number in range(3):
        publish_run(lake, f"r{number}", f"d{number}", model=f"m{number}")
    served = assignment_files(lake)
    age(lake, 400)
    before = names(lake)
    done = gc(lake)
    assert kinds(done) == {"snapshots": "snapshots"}
    assert before - names(lake) == {"snapshots/1.json", "snapshots/2.json"}
    assert done.kept_snapshots == [3]
    assert assignment_files(lake) == served  # one partition a ds, of three runs
    assert all(Path(path).exists() for path in served)
    assert gc(lake).removals == []


def test_replaced_runs_go_with_the_last_snapshot_that_names_them(lake: Store) -> None:
    for number in range(4):
        publish_run(lake, f"r{number}", "d", model=f"m{number}")
        age(lake, 100 - number)
    done = gc(lake, Retention(snapshots=2, days=0))
    assert done.kept_snapshots == [3, 4]
    assert kinds(done) == {
        "snapshots": "snapshots",
        "runs/r0": "published run",
        "runs/r1": "published run",
        "models/m0": "model",
        "models/m1": "model",
    }
    # What is known of them stays; their rows, markers, failures and checkpoints do not.
    history = {f"runs/r0/{name}" for name in ("run.json", "manifest.json", "metrics.json")}
    assert names(lake, "runs/r0") == {*history, "runs/r0/config.yaml"}
    assert names(lake, "models") == {
        f"models/{m}/{name}"
        for m in ("m2", "m3")
        for name in ("weights.safetensors", "config.yaml")
    }
    assert not Path(lake.locate("models/m0")).exists()
    assert all(Path(path).exists() for path in assignment_files(lake))
    assert gc(lake, Retention(snapshots=2, days=0)).removals == []


def test_a_snapshot_counts_as_old_from_when_it_was_replaced(lake: Store) -> None:
    publish_run(lake, "r0")
    age(lake, 300)
    publish_run(lake, "r1")
    age(lake, 2, "snapshots")
    age(lake, 2, "runs")
    os.utime(lake.locate("snapshots/1.json"), (0, 0))
    # Readers had it for the newest until two days ago.
    assert gc(lake, Retention(snapshots=1, days=3)).kept_snapshots == [1, 2]
    assert gc(lake, Retention(snapshots=1, days=1)).kept_snapshots == [2]


def test_nothing_younger_than_a_day_goes(lake: Store) -> None:
    publish_run(lake, "r0", model="m0")
    publish_run(lake, "r1", model="m1")
    write_run(lake, "dead", "other", model="m2")
    lake.write_bytes("runs/r1/assignments/part-9.parquet", b"")
    age(lake, 0.9)
    before = names(lake)
    assert gc(lake, Retention(snapshots=1, days=0, unpublished_days=1)).removals == []
    assert names(lake) - {"leases/clock"} == before


def test_files_that_a_newer_run_took_over_by_name_stay(lake: Store) -> None:
    publish_run(lake, "r0", "d", model="m0")
    carried = ["runs/r0/assignments/part-1.parquet", "runs/r1/assignments/part-0.parquet"]
    publish_run(lake, "r1", "d", model="m1", files=carried)
    age(lake, 100)
    gc(lake)
    assert Path(lake.locate(carried[0])).exists()
    assert not Path(lake.locate("runs/r0/assignments/part-0.parquet")).exists()
    assert not Path(lake.locate("runs/r1/assignments/part-1.parquet")).exists()  # nobody lists it
    assert all(Path(path).exists() for path in assignment_files(lake))


def test_files_that_an_unfinished_run_is_about_to_publish_stay(lake: Store) -> None:
    publish_run(lake, "r0", "d", model="m0")
    publish_run(lake, "r1", "d", model="m1")
    age(lake, 100)
    write_run(lake, "r2", "d", model="m2", files=["runs/r0/assignments/part-1.parquet"])
    gc(lake)
    assert Path(lake.locate("runs/r0/assignments/part-1.parquet")).exists()
    assert not Path(lake.locate("runs/r0/assignments/part-0.parquet")).exists()


def test_nothing_goes_while_a_table_is_behind_the_log(lake: Store) -> None:
    publish_run(lake, "r1")
    publish_run(lake, "r2")
    os.unlink(lake.locate("runs/r2/stages/publish/done.json"))  # killed before the table followed
    age(lake, 99)
    before = names(lake, "runs")
    with pytest.raises(InputError, match="run r2 is in the log, but the table may still name"):
        collect(lake, KEEP_ONE, dry_run=False, tables=True)
    assert names(lake, "runs") == before
    lake.write_json("runs/r2/stages/publish/done.json", {})
    age(lake, 99)
    collect(lake, KEEP_ONE, dry_run=False, tables=True)
    assert "runs/r1/assignments/part-0.parquet" not in names(lake, "runs")
    assert "runs/r2/assignments/part-0.parquet" in names(lake, "runs")


def test_parts_of_a_delta_table_go_and_stay_with_their_runs(lake: Store) -> None:
    for run in ("r0", "r1", "dead"):
        part = f"delta/{run}/part-0.parquet"
        lake.write_bytes(part, b"rows")
        if run == "dead":
            write_run(lake, run, "d2", model=run, parts=0, files=[part])
        else:
            publish_run(lake, run, "d", model=run, parts=0, files=[part])
    lake.write_bytes("delta/r1/part-1.parquet", b"nobody lists it")
    lake.write_bytes("delta/_delta_log/00000000000000000000.json", b"{}")
    age(lake, 100)
    gc(lake)
    assert names(lake, "delta") == {
        "delta/_delta_log/00000000000000000000.json",
        "delta/r1/part-0.parquet",
    }
    assert not Path(lake.locate("delta/dead")).exists()


def test_a_snapshot_that_names_what_is_not_there_stops_it(lake: Store) -> None:
    publish_run(lake, "r0")
    publish_run(lake, "r1")
    age(lake, 100)
    lake.delete(["runs/r1/stages/assign/files.json"])
    before = names(lake)
    with pytest.raises(InputError, match=r"snapshot 2 names .*files\.json, which does not exist"):
        gc(lake)
    lake.write_bytes("runs/r1/stages/assign/files.json", b"{}")
    with pytest.raises(InputError, match="not a list of part files"):
        gc(lake)
    assert names(lake) >= before


# --------------------------------------------------------------------------------------- runs


def test_a_run_that_died_goes_as_a_whole(lake: Store) -> None:
    publish_run(lake, "r0", model="m0")
    age(lake, 30)
    write_run(lake, "dead", "d2", model="m1")
    write_run(lake, "young", "d3", model="m2")
    lake.write_bytes(f"runs/dead/assignments/.{'0' * 32}.tmp", b"cut short")
    age(lake, 8, "runs/dead")
    age(lake, 6, "runs/young")
    age(lake, 8, "models")
    done = gc(lake)
    assert kinds(done) == {"runs/dead": "unpublished run", "models/m1": "model"}
    assert not Path(lake.locate("runs/dead")).exists()
    assert done.kept_runs == ["r0", "young"]
    assert names(lake, "runs/young")


def test_markers_go_first(lake: Store) -> None:
    # Removing is cut short: what is resumed then must not take what is gone for done.
    write_run(lake, "dead")
    age(lake, 8)
    (removal, _) = gc(lake, dry_run=True).removals
    markers = [name.endswith("/done.json") for name in removal.files]
    assert markers == sorted(markers, reverse=True)
    assert sum(markers) == 2
    assert removal.files[-1] == "runs/dead/run.json"


def test_a_run_that_is_worked_on_stays(lake: Store) -> None:
    write_run(lake, "resumed", "d", model="m0")
    write_run(lake, "dead", "d2", model="m1")
    age(lake, 100)
    lease = take(lake, "d", "run resumed", seconds=60)
    before = names(lake, "runs/resumed")
    done = gc(lake)
    assert kinds(done) == {"runs/dead": "unpublished run", "models/m1": "model"}
    assert done.skipped == ["run resumed: at work"]
    assert names(lake, "runs/resumed") == before
    lease.confirm()
    lease.release()
    assert kinds(gc(lake)) == {"runs/resumed": "unpublished run", "models/m0": "model"}


class Meanwhile(Store):
    """A store where something happens once, just before a lease is taken."""

    def __init__(self, lake: Store, happens: Any) -> None:
        super().__init__(lake.url)
        self.happens = happens

    def create_json(self, path: str, content: Any) -> bool:
        happens, self.happens = self.happens, lambda: None
        happens()
        return super().create_json(path, content)


@pytest.fixture
def dead_run(lake: Store) -> Iterator[Store]:
    publish_run(lake, "served", "d0", model="m0")
    write_run(lake, "dead", "d1", model="m1")
    age(lake, 100)
    before = names(lake, "runs/dead") | names(lake, "models")
    yield lake
    assert names(lake, "runs/dead") | names(lake, "models") >= before


def test_a_run_that_is_resumed_meanwhile_stays(dead_run: Store) -> None:
    leases = []

    def resume() -> None:
        leases.append(take(dead_run, "d1", "run dead", seconds=60))

    done = gc(Meanwhile(dead_run, resume))
    assert done.removals == []
    assert "run dead" in done.skipped[0]
    leases[0].release()


def test_a_run_that_was_resumed_and_stopped_again_meanwhile_stays(dead_run: Store) -> None:
    done = gc(Meanwhile(dead_run, lambda: dead_run.write_bytes("runs/dead/logs/1.log", b"")))
    assert done.removals == []
    assert done.skipped == ["runs/dead: resumed meanwhile"]


def test_nothing_goes_that_a_snapshot_made_meanwhile_may_name(dead_run: Store) -> None:
    done = gc(Meanwhile(dead_run, lambda: publish_run(dead_run, "new", "d2", model="m2")))
    assert done.removals == []
    assert "runs/dead: another run published meanwhile; run it again" in done.skipped


def test_what_nothing_lists_in_a_published_run_goes(lake: Store) -> None:
    publish_run(lake, "r0")
    lake.write_bytes("runs/r0/assignments/part-of-other-settings.parquet", b"x" * 100)
    lake.write_bytes(f"runs/r0/assignments/.{'0' * 32}.tmp", b"y")
    lake.write_bytes(f"snapshots/.{'1' * 32}.tmp", b"z")
    lake.write_bytes(f".write-check-{'2' * 32}", b"")
    lake.write_bytes("notes.txt", b"not ours")
    age(lake, 2)
    done = gc(lake)
    assert kinds(done) == {"runs/r0": "unlisted files", "": "leftovers"}
    assert done.bytes == 102
    assert Path(lake.locate("notes.txt")).exists()
    assert not [name for name in names(lake) if name.endswith(".tmp") or "write-check" in name]
    assert gc(lake).removals == []


def test_old_claims_on_leases_go(lake: Store) -> None:
    publish_run(lake, "r0")
    take(lake, "d", "run r0", seconds=60).release()
    age(lake, 2)
    working = take(lake, "d2", "run r1", seconds=60)
    assert kinds(gc(lake)) == {"leases": "leases"}
    assert names(lake, "leases") == {"leases/clock", "leases/d2/1.json"}
    working.confirm()
    working.release()


# ------------------------------------------------------------------------------------ how it ends


def test_a_clock_that_is_wrong_removes_nothing(
    lake: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ages are by the clock of the store: this machine's may be a year ahead.
    publish_run(lake, "r0")
    publish_run(lake, "r1")
    write_run(lake, "working", "d2")
    year_ahead = time.time() + 365 * DAY
    monkeypatch.setattr(garbage.time, "time", lambda: year_ahead)
    before = names(lake)
    assert gc(lake).removals == []
    assert names(lake) - {"leases/clock"} == before


def test_cached_footers_that_no_night_uses_any_more_go(lake: Store) -> None:
    publish_run(lake, "r1")
    for number, days in enumerate((30, 8, 6, 3)):
        lake.write_bytes(f"footers/{number}.parquet", b"footers")
        written = time.time() - days * DAY
        os.utime(lake.locate(f"footers/{number}.parquet"), (written, written))
    assert kinds(gc(lake)) == {"footers": "cached footers"}
    assert names(lake, "footers") == {"footers/2.parquet", "footers/3.parquet"}


def test_the_newest_cached_footers_stay_for_a_night_that_is_rare(lake: Store) -> None:
    publish_run(lake, "r1")
    lake.write_bytes("footers/0.parquet", b"footers")
    age(lake, 400)
    gc(lake)
    assert names(lake, "footers") == {"footers/0.parquet"}


def test_old_tunings_go_and_those_that_are_worked_on_stay(lake: Store) -> None:
    for tuning in ("old", "young", "held"):
        folder = TrialFolder(lake, tuning)
        folder.begin(Study(id=tuning, fingerprint="f", min_clusters=2, max_clusters=9, rows=5))
        lake.write_bytes(folder.path("trials/a.json"), b"{}" * 50)
        age(lake, 20 if tuning == "young" else 40, f"tuning/{tuning}")
    lease = take(lake, "held", "tuning held", seconds=600)
    before = names(lake)
    shown = gc(lake, dry_run=True)
    assert names(lake) == before
    done = gc(lake)
    for seen in (shown, done):
        assert kinds(seen) == {"tuning/old": "tuning"}
        assert seen.skipped == ["tuning held: at work"]
    assert done.bytes == shown.bytes > 100
    gone = {"tuning/old/tuning.json", "tuning/old/trials/a.json"}
    assert before - names(lake) == gone
    lease.release()
    assert kinds(gc(lake)) == {"tuning/held": "tuning"}
    assert names(lake, "tuning/young")


def test_a_tuning_loses_its_study_last(lake: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials would count for another table else, where gc ends between them."""
    folder = TrialFolder(lake, "old")
    folder.begin(Study(id="old", fingerprint="f", min_clusters=2, max_clusters=9, rows=5))
    for name in "za":
        lake.write_bytes(folder.path(f"trials/{name}.json"), b"{}")
    age(lake, 40, "tuning/old")
    order: list[str] = []
    delete = Store.delete

    def watched(store: Store, paths: Sequence[str]) -> None:
        order.extend(paths)
        delete(store, paths)

    monkeypatch.setattr(Store, "delete", watched)
    gc(lake)
    assert sorted(order)[0] == "tuning/old/trials/a.json"
    assert order[-1] == "tuning/old/tuning.json"


def test_a_tuning_that_goes_on_meanwhile_stays(
    lake: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = TrialFolder(lake, "resumed")
    folder.begin(Study(id="resumed", fingerprint="f", min_clusters=2, max_clusters=9, rows=5))
    age(lake, 40)

    def taken(*words: Any, **named: Any) -> Any:
        lake.write_bytes(folder.path("trials/a.json"), b"{}")
        return take(*words, **named)

    monkeypatch.setattr(garbage, "take", taken)
    done = gc(lake)
    assert done.removals == []
    assert {"tuning/resumed/tuning.json", "tuning/resumed/trials/a.json"} <= names(lake)
    assert done.skipped == ["tuning/resumed: resumed meanwhile"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), ConfigError),
        (OSError(5, "Input/output error"), TransientError),
    ],
)
def test_storage_that_does_not_remove(lake: Store, error: OSError, kind: type[Exception]) -> None:
    class Stubborn(Store):
        def delete(self, paths: Any) -> None:
            raise error

    write_run(lake, "dead")
    age(lake, 30)
    with pytest.raises(kind, match="runs/dead cannot be removed"):
        gc(Stubborn(lake.url))


# ------------------------------------------------------------------------------- the second night


def test_parts_that_were_carried_from_old_runs_stay(lake: Store) -> None:
    publish_run(lake, "r0", "d0", parts=3)
    carried = [f"runs/r0/assignments/part-{n}.parquet" for n in (0, 2)]
    own = "runs/r1/assignments/part-0.parquet"
    publish_run(lake, "r1", "d0", parts=1, files=[*carried, own])
    publish_run(lake, "r2", "d1", parts=0, files=[*carried, own])
    publish_run(lake, "r3", "d0", parts=0, files=[carried[0]])
    served = assignment_files(lake)
    age(lake, 400)
    gc(lake)
    assert assignment_files(lake) == served
    # Of runs that serve no ds any more, the parts that a newer night carries; no others.
    assert names(lake, "runs/r0/assignments") == set(carried)
    assert names(lake, "runs/r1/assignments") == {own}
    assert gc(lake).removals == []
    publish_run(lake, "r4", "d1", parts=1)
    age(lake, 400)
    gc(lake)
    assert names(lake, "runs/r0/assignments") == {carried[0]}
    assert names(lake, "runs/r1/assignments") == set()


def promote(lake: Store, number: int, *, action: Any = "promote") -> set[str]:
    """Let the model of run r<number> serve; returns what makes it a champion."""

    def stored(path: str) -> StoredFile:
        lake.write_bytes(path, b"table")
        return StoredFile(path=path, sha256="", bytes=5)

    run, after = f"r{number}", max(entry_numbers(lake), default=0)
    scaler = stored(f"models/m{number}/scaler.parquet")
    named = {
        "ids": stored(f"registry/ids-{number}.parquet"),
        "bins": stored(f"runs/{run}/stages/gate/bins.parquet"),
        "clusters": stored(f"registry/clusters-{after}.parquet"),
        "sample": stored(f"runs/{run}/stages/sample/part-0.parquet"),
        "transitions": stored(f"runs/{run}/stages/identify/transitions.parquet"),
    }
    champion = Champion(
        model=ClusteringModel(
            model_id=f"m{number}",
            kind="kmeans",
            weights=None,
            centroids=scaler,
            scaler=scaler,
            scaling="none",
        ),
        run_id=run,
        ds="2026-01-01",
        refit_ds="2026-01-01",
        ids=named["ids"],
        reference=Reference(
            sample=Sample(
                parts=(named["sample"],),
                rows=1,
                scanned_rows=1,
                missing_values=0,
                scaler=scaler,
                scaling="none",
            ),
            features=(),
            bins=named["bins"],
        ),
        settings="s",
    )
    append(
        lake,
        after,
        action=action,
        commit_id=f"{after}",
        who="a test",
        reason="it says so",
        champion=champion,
        clusters=named["clusters"],
        transitions=(named["transitions"],),
    )
    return {scaler.path, *(file.path for file in named.values())}


def test_what_makes_the_newest_champions_stays(lake: Store) -> None:
    made = []
    for number in range(4):
        write_run(lake, f"r{number}", model=f"m{number}")
        made.append(promote(lake, number))
    made[3] |= promote(lake, 3, action="rename")  # no other champion
    publish_run(lake, "now", model="m3")
    age(lake, 400)
    done = gc(lake, KEEP_ONE.model_copy(update={"champions": 2}))
    there = names(lake)
    assert made[3] | made[2] <= there
    assert not (made[0] | made[1]) & there
    assert {"models/m2/weights.safetensors", "models/m3/weights.safetensors"} <= there
    assert kinds(done)["registry"] == "unlisted tables"
    # The log itself is never cut.
    assert {f"registry/{n}.json" for n in range(1, 6)} <= there
    # Of the runs, nothing but what a champion is made of.
    left = {path for path in there if path.startswith(("runs/r2/", "runs/r3/"))}
    assert left == {path for path in made[2] | made[3] if path.startswith("runs/")}
    assert gc(lake, KEEP_ONE.model_copy(update={"champions": 2})).removals == []


def test_tables_that_no_entry_names_go_unless_a_run_does(lake: Store) -> None:
    promote(lake, 0)
    publish_run(lake, "now", model="m0")
    for name in ("lost", "kept-by-run", ".0123456789abcdef0123456789abcdef.tmp"):
        lake.write_bytes(f"registry/{name}" + (".parquet" if name[0] != "." else ""), b"table")
    marker = {"artifact": {"clusters": {"path": "registry/kept-by-run.parquet"}}}
    lake.write_json("runs/now/stages/identify/done.json", marker)
    age(lake, 2)
    lake.write_bytes("registry/fresh.parquet", b"table")
    gc(lake, Retention())
    assert names(lake, "registry") == {
        f"registry/{name}"
        for name in (
            "1.json",
            "ids-0.parquet",
            "clusters-0.parquet",
            "kept-by-run.parquet",
            "fresh.parquet",
        )
    }


def test_nothing_goes_that_an_entry_made_meanwhile_may_name(dead_run: Store) -> None:
    done = gc(Meanwhile(dead_run, lambda: promote(dead_run, 8)))
    assert done.removals == []
    assert "runs/dead: the registry changed meanwhile; run it again" in done.skipped


def test_the_command(dec: Dec, settings: dict[str, Any], lake: Store) -> None:
    settings["output"] = lake.url
    for number in range(3):
        publish_run(lake, f"r{number}", model=f"m{number}")
    age(lake, 100)
    before = {(file.url, file.version) for file in lake.walk()}
    shown = dec("gc", "--dry-run", "--keep", "1", "--keep-days", "0", "--json", settings=settings)
    assert shown.code == 0, shown.err
    assert {(file.url, file.version) for file in lake.walk()} == before  # and it wrote nothing
    assert shown.json["dry_run"] is True
    assert {removal["name"] for removal in shown.json["removals"]} == {
        "snapshots",
        "runs/r0",
        "runs/r1",
        "models/m0",
        "models/m1",
    }
    assert shown.json["kept_snapshots"] == [3]
    text = dec("gc", "--keep", "1", "--keep-days", "0", settings=settings)
    assert text.code == 0, text.err
    assert f"freed {shown.json['bytes']:,} bytes" in text.out
    assert "runs/r0" in text.out
    assert all(Path(path).exists() for path in assignment_files(lake))
    gone = {removal["name"]: removal["files"] for removal in shown.json["removals"]}
    assert not any(Path(lake.locate(path)).exists() for paths in gone.values() for path in paths)
    wrong = dec("gc", "--keep", "0", settings=settings)
    assert wrong.code == 2
    assert "retention.snapshots=0" in wrong.err
