"""Bad shards: corrupt, truncated, empty, vanished, replaced, in every stage that reads."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SMALL, Dec, blobs, config_of, published, write_shards
from forked_dec import ForkedDec

from faults.ledger import FULL
from jobs.commands.inspection import check_input, make_plan
from pipeline.engine import Context, Execution, StageReached
from pipeline.errors import BadShard, InputError
from pipeline.input import quarantine
from pipeline.input.pinning import list_shards
from pipeline.input.pinning import pin as pin_input
from pipeline.run import run, stages_of
from pipeline.storage import Store

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_address")]

ROWS, SHARDS = 640, 9  # one of them without rows
BAD = "shard-5.parquet"
BAD_IDS = set(range(400, 480))
EVERY_STAGE = [stage.name for stage in stages_of("refit")]
AFTER_PIN = ["sample", "pretrain", "refine", "assign"]


# ------------------------------------------------------------------------------- the faults


def corrupt_page(shard: Path) -> None:
    """Behind an intact footer, in a file of the same size and time: only its rows tell."""

    def change(content: bytes) -> bytes:
        pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        return content[:4] + bytes(pages - 4) + content[pages:]

    keeping_version(shard, change)


def corrupt_footer(shard: Path) -> None:
    keeping_version(shard, lambda content: content[:-200] + bytes(192) + content[-8:])


def truncated(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def zero_bytes(shard: Path) -> None:
    shard.write_bytes(b"")


def replaced(shard: Path) -> None:
    table = blobs(80, seed=9)
    ids = pa.array([10_000 + i for i in range(80)])
    pq.write_table(table.set_column(0, "id", ids), shard)


def keeping_version(shard: Path, change: Callable[[bytes], bytes]) -> None:
    before = shard.stat()
    content = shard.read_bytes()
    shard.write_bytes(change(content))
    assert len(content) == shard.stat().st_size
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


# What is done, the name of the fault, and what the error says of it.
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "corrupt page": (corrupt_page, "corrupt shard", "cannot be read: Couldn't deserialize"),
    "corrupt footer": (corrupt_footer, "corrupt shard", "cannot be read"),
    "truncated": (truncated, "truncated shard", "changed since this run pinned it"),
    "zero bytes": (zero_bytes, "truncated shard", "changed since this run pinned it"),
    "vanished": (Path.unlink, "vanished shard", "cannot be read: it does not exist"),
    "replaced": (replaced, "replaced shard", "changed since this run pinned it"),
}


# ---------------------------------------------------------------------------- a run to damage


@dataclass
class Night:
    """A complete run, which a test takes back to before a stage, and its input."""

    folder: Path
    settings: dict[str, Any]

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def run_folder(self) -> Path:
        return self.lake / "runs/test"

    def begin(self, only: str | None = None, run_id: str = "test", **source: Any) -> Execution:
        settings = copy.deepcopy(self.settings)
        settings["source"] |= source
        context = Context(run_id=run_id, ds="2026-01-31", lake=Store(str(self.lake)))
        return Execution(config_of(settings), context, only)

    def back_to(self, stage: str) -> None:
        """As a run that was killed before this stage leaves its folder."""
        for later in EVERY_STAGE[EVERY_STAGE.index(stage) :]:
            shutil.rmtree(self.run_folder / "stages" / later, ignore_errors=True)
        if stage == "pin":
            shutil.rmtree(self.lake / "footers")
        if EVERY_STAGE.index(stage) <= EVERY_STAGE.index("promote"):
            shutil.rmtree(self.lake / "registry")
        shutil.rmtree(self.run_folder / "assignments")
        shutil.rmtree(self.lake / "snapshots")
        (self.lake / "current.json").unlink()

    def json(self, path: str) -> Any:
        return json.loads((self.lake / path).read_text())

    def compare(self, left_out: set[int]) -> int:
        """All rows of good shards are published once, none of bad ones; returns how many."""
        ids = published(self.lake)["id"].to_pylist()
        assert sorted(ids) == [i for i in range(ROWS) if i not in left_out]
        return len(ids)


@pytest.fixture(scope="module")
def complete(
    tmp_path_factory: pytest.TempPathFactory, ray_address: str
) -> tuple[Path, dict[str, Any]]:
    """The folder of a complete run over good shards, and its settings."""
    folder = tmp_path_factory.mktemp("complete")
    write_shards(folder / "input", blobs(ROWS), shards=SHARDS - 1)
    pq.write_table(blobs(0), folder / "input/shard-4-empty.parquet")
    settings: dict[str, Any] = {
        "source": {
            "path": str(folder / "input"),
            "features": ["x"],
            "keys": ["id"],
            "max_bad_share": 0.5,
        },
        "output": str(folder / "lake"),
        "clusters": 3,
        **SMALL,
        "pretrain": {"passes": 1, "min_updates": 0},
        "refine": {"passes": 1, "min_updates": 0},
    }
    night = Night(folder, settings)
    run(night.begin())
    assert night.compare(set()) == ROWS
    shutil.copytree(folder, folder.with_name("kept"))  # with the times that are shards' versions
    return folder, settings


@pytest.fixture
def night(complete: tuple[Path, dict[str, Any]]) -> Night:
    folder, settings = complete
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("kept"), folder)
    return Night(folder, copy.deepcopy(settings))


# ------------------------------------------------------------------ each fault in each stage


def test_an_empty_shard_is_no_bad_one(night: Night, ledger: Any) -> None:
    for stage in ("pin", *AFTER_PIN):
        ledger.injected("empty shard", stage)
    manifest = night.json("runs/test/manifest.json")
    assert (manifest["shard_count"], manifest["quarantined"]) == (SHARDS, [])
    assert night.json("runs/test/metrics.json")["quarantined"] == []
    assert night.json("snapshots/1.json")["partitions"]["2026-01-31"]["quarantined_shards"] == 0
    rows = night.compare(set())
    for stage in ("pin", *AFTER_PIN):
        ledger.survived("empty shard", stage, rows=rows)


@pytest.mark.parametrize("fault", ["corrupt footer", "truncated", "zero bytes", "vanished"])
def test_a_shard_that_is_bad_when_it_is_pinned(night: Night, ledger: Any, fault: str) -> None:
    damage, name, _ = FAULTS[fault]
    shutil.rmtree(night.lake)
    ledger.injected(name, "pin", times=2)
    config = night.begin().config
    files = list_shards(config)
    damage(night.input / BAD)
    if fault != "vanished":  # which is one that goes between the listing and the reading
        files = list_shards(config)
    with pytest.raises(BadShard, match=f"shard {BAD} cannot be read"):
        pin_input(config, files)
    ledger.survived(name, "pin", rows=0)

    pinned = pin_input(night.begin(on_bad_shard="quarantine").config, files)
    (bad,) = pinned.quarantined
    size = next(file.bytes for file in files if file.name == BAD)
    assert (bad.name, bad.bytes, bad.rows, bad.stage) == (BAD, size, None, "pin")
    names = sorted(file.name for file in files if file.name != BAD)
    assert pinned.shards["name"].to_pylist() == names
    ids = [
        i for url in pinned.shards["url"].to_pylist() for i in pq.read_table(url)["id"].to_pylist()
    ]
    assert ids == [i for i in range(ROWS) if i not in BAD_IDS]
    ledger.survived(name, "pin", rows=len(ids))


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        *itertools.product(AFTER_PIN, ["corrupt page", "truncated", "vanished", "replaced"]),
        ("sample", "corrupt footer"),
        ("assign", "zero bytes"),
    ]
    if FULL
    else [
        *(("sample", "corrupt page"), ("sample", "corrupt footer"), ("pretrain", "replaced")),
        *(("refine", "truncated"), ("assign", "vanished"), ("assign", "zero bytes")),
    ],
)
def test_a_shard_that_goes_bad(night: Night, ledger: Any, stage: str, fault: str) -> None:
    damage, name, words = FAULTS[fault]
    night.back_to(stage)
    damage(night.input / BAD)

    ledger.injected(name, stage)
    with pytest.raises(BadShard, match=f"shard {BAD} {words}") as error:
        run(night.begin())
    assert str(error.value).count("\n") == 0
    assert "source.on_bad_shard: quarantine" in str(error.value)
    assert not (night.run_folder / "stages" / stage / "done.json").exists()
    assert not (night.run_folder / "quarantine.json").exists()
    assert not (night.lake / "snapshots").exists()
    ledger.survived(name, stage, rows=0)

    # As the message says: the same run goes on without it.
    ledger.injected(name, stage)
    summary = run(night.begin(on_bad_shard="quarantine"))
    (bad,) = summary.quarantined
    assert (bad.name, bad.stage, bad.rows) == (BAD, stage, 80)
    assert bad.reason == error.value.reason
    assert night.json("runs/test/quarantine.json")["shards"] == [bad.model_dump()]
    assert night.json("runs/test/manifest.json")["quarantined"] == [bad.model_dump()]
    assert night.json("runs/test/metrics.json")["quarantined"] == [bad.model_dump()]
    assert (summary.rows_in, summary.rows_quarantined) == (ROWS, 80)
    assert summary.rows_in == summary.rows_out + summary.rows_quarantined
    partition = night.json("snapshots/1.json")["partitions"]["2026-01-31"]
    assert (partition["rows"], partition["quarantined_shards"]) == (ROWS - 80, 1)
    ledger.survived(name, stage, rows=night.compare(BAD_IDS))


def test_several_bad_shards_and_two_workers(
    night: Night, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cross the processes of Ray Train; one look at the input finds all that changed."""
    night.back_to("pretrain")
    night.settings["execution"] = {"workers": 2}
    faults = ["truncated", "vanished", "replaced"]
    for number, fault in enumerate(faults):
        damage, name, _ = FAULTS[fault]
        ledger.injected(name, "pretrain")
        damage(night.input / f"shard-{number}.parquet")
    restarts: list[str] = []
    set_aside = quarantine._set_aside

    def counted(*arguments: Any) -> None:
        restarts.append(arguments[-1])
        set_aside(*arguments)

    monkeypatch.setattr(quarantine, "_set_aside", counted)
    with pytest.raises(StageReached):
        run(night.begin("pretrain", on_bad_shard="quarantine"))
    assert restarts == ["pretrain"]
    night.settings["execution"] = {"workers": 1}  # sooner
    summary = run(night.begin(on_bad_shard="quarantine"))
    assert [s.name for s in summary.quarantined] == [f"shard-{n}.parquet" for n in range(3)]
    assert {shard.stage for shard in summary.quarantined} == {"pretrain"}
    rows = night.compare(set(range(240)))
    for fault in faults:
        ledger.survived(FAULTS[fault][1], "pretrain", rows=rows)


# --------------------------------------------------------------- what is not left out quietly


@pytest.mark.parametrize("stage", ["pin", "refine"])
def test_more_bad_shards_than_may_be_left_out(night: Night, ledger: Any, stage: str) -> None:
    night.back_to(stage)
    for number in range(3):
        truncated(night.input / f"shard-{number}.parquet")
    source = {"on_bad_shard": "quarantine", "max_bad_share": 0.3}  # two of nine
    ledger.injected("truncated shard", stage)
    with pytest.raises(
        InputError, match=r"3 of 9 shards are bad.*max_bad_share=0.3 .* leave out 2"
    ):
        run(night.begin(**source))
    assert not (night.run_folder / "quarantine.json").exists()
    assert not (night.lake / "snapshots").exists()
    ledger.survived("truncated shard", stage, rows=0)


@pytest.mark.parametrize("stage", ["pin", "sample"])
def test_nothing_but_bad_shards(night: Night, ledger: Any, stage: str) -> None:
    night.back_to(stage)
    for shard in night.input.iterdir():
        zero_bytes(shard)
    ledger.injected("truncated shard", stage)
    with pytest.raises(InputError, match=r"9 of 9 shards are bad"):
        run(night.begin(on_bad_shard="quarantine", max_bad_share=1.0))
    assert not (night.lake / "snapshots").exists()
    ledger.survived("truncated shard", stage, rows=0)


def test_a_storage_that_is_gone_makes_no_shard_a_bad_one(night: Night, ledger: Any) -> None:
    night.back_to("sample")
    away = night.input.rename(night.folder / "away")
    source = {"on_bad_shard": "quarantine", "max_bad_share": 1.0}
    ledger.injected("vanished shard", "sample")
    with pytest.raises(InputError, match="nothing exists at"):
        run(night.begin(**source))
    night.input.mkdir()  # a mount point without its mount
    with pytest.raises(InputError, match="holds no Parquet file"):
        run(night.begin(**source))
    assert not (night.run_folder / "quarantine.json").exists()
    night.input.rmdir()
    away.rename(night.input)
    assert run(night.begin(**source)).quarantined == ()
    ledger.survived("vanished shard", "sample", rows=night.compare(set()))


def test_a_run_that_left_shards_out_does_not_end_as_if_it_had_not(night: Night) -> None:
    night.back_to("assign")
    replaced(night.input / BAD)
    with pytest.raises(StageReached):
        run(night.begin("assign", on_bad_shard="quarantine"))
    with pytest.raises(InputError, match=r"run test left out 1 bad shards.*start a new run id"):
        run(night.begin())
    assert not (night.lake / "snapshots").exists()


# -------------------------------------------------------------------- wholly in or wholly out


def test_footers_that_are_known_hide_nothing(night: Night, ledger: Any) -> None:
    """The next night believes the footers of shards that did not change, until it reads rows."""
    night.settings["centroids"]["sample_rows"] = 120
    corrupt_footer(night.input / BAD)
    ledger.injected("corrupt shard", "sample")
    summary = run(night.begin(run_id="next", on_bad_shard="quarantine"))
    (bad,) = summary.quarantined
    assert (bad.name, bad.stage) == (BAD, "sample")
    ledger.survived("corrupt shard", "sample", rows=night.compare(BAD_IDS))


def test_a_shard_is_wholly_out_and_other_slices_stay(night: Night, ledger: Any) -> None:
    """One part of it was written before the other turned out to be bad."""
    rows, group = 27_000, 2250
    table = blobs(rows, width=128)
    shutil.rmtree(night.folder)
    # Three shards of four slices each, a row group a slice.
    write_shards(night.input, table, shards=3, row_group_size=group, compression="none")
    source = {"fit_rows": 600, "held_out": 0.0}
    night.settings["source"] |= source
    night.settings["centroids"]["sample_rows"] = 1000
    # One slice after the other: those of the shard before the bad one are written.
    night.settings["execution"] = {"workers": 1, "cpus_per_worker": 1, "target_slice_mib": 1}
    bad = night.input / "shard-1.parquet"
    for stage in EVERY_STAGE[: EVERY_STAGE.index("assign")]:
        with pytest.raises(StageReached):
            run(night.begin(stage))
    last = pq.ParquetFile(bad).metadata.row_group(3).column(1)

    def change(content: bytes) -> bytes:
        start = last.data_page_offset
        return content[:start] + bytes(64) + content[start + 64 :]

    ledger.injected("corrupt shard", "assign")
    keeping_version(bad, change)
    with pytest.raises(BadShard, match=r"shard-1\.parquet cannot be read"):
        run(night.begin())
    parts = {path: path.stat().st_mtime_ns for path in (night.run_folder / "assignments").iterdir()}
    written = {path for path in parts if path.suffix == ".parquet"}
    ids = {i for path in written for i in pq.read_table(path)["id"].to_pylist()}
    assert ids & set(range(9000, 18000))  # of the shard that is bad

    summary = run(night.begin(on_bad_shard="quarantine"))
    assert [shard.name for shard in summary.quarantined] == ["shard-1.parquet"]
    found = published(night.lake)["id"].to_pylist()
    assert sorted(found) == [*range(9000), *range(18000, 27000)]
    assert {path: path.stat().st_mtime_ns for path in written} == {
        path: parts[path] for path in written
    }
    ledger.survived("corrupt shard", "assign", rows=len(found))


# ------------------------------------------------------------------------------ the commands


def test_killed_as_soon_as_a_bad_shard_is_written_down(
    night: Night, dec: Dec, ledger: Any, ray_address: str, tmp_path: Path
) -> None:
    shutil.rmtree(night.lake)
    night.settings["source"]["on_bad_shard"] = "quarantine"
    words = ("--ds", "2026-01-31", "--run-id", "test")
    env = {"RAY_ADDRESS": ray_address}
    ledger.injected("truncated shard", "pin")
    truncated(night.input / "shard-0.parquet")
    assert dec("stage", *words, "pin", settings=night.settings).code == 0
    ledger.injected("corrupt shard", "sample")
    corrupt_page(night.input / BAD)

    command = ["run", *words, "config.yaml"]
    process = ForkedDec(command, tmp_path, {**os.environ, **env})
    while not (night.run_folder / "quarantine.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (night.lake / "snapshots").exists()

    again = dec("run", *words, settings=night.settings, env=env)
    assert again.code == 0, again.err
    lines = [" ".join(line.split()) for line in again.out.splitlines()]
    assert "rows 560 in, 480 out (80 in bad shards)" in lines
    told = [line for line in lines if line.startswith("left out")]
    assert [line.split(":")[0] for line in told] == [
        "left out shard-0.parquet",
        f"left out {BAD}",
    ]
    quarantined = night.json("runs/test/metrics.json")["quarantined"]
    assert [(shard["name"], shard["stage"], shard["rows"]) for shard in quarantined] == [
        ("shard-0.parquet", "pin", None),
        (BAD, "sample", 80),
    ]
    model = night.json("runs/test/metrics.json")["model"]
    assert (
        f"2 bad shards were left out: `shard-0.parquet`, `{BAD}`"
        in (night.lake / model / "model_card.md").read_text()
    )
    partition = night.json("snapshots/1.json")["partitions"]["2026-01-31"]
    assert (partition["rows"], partition["quarantined_shards"]) == (480, 2)
    rows = night.compare({*range(80), *BAD_IDS})
    ledger.survived("truncated shard", "pin", rows=rows)
    ledger.survived("corrupt shard", "sample", rows=rows)


def test_plan_and_check_tell_of_bad_shards(
    night: Night, ledger: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(night.lake)
    zero_bytes(night.input / "shard-0.parquet")
    corrupt_page(night.input / BAD)  # which plan, that reads no rows, does not see
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(night.settings))
    for command in ("plan", "check"):
        ledger.injected("truncated shard", command, times=2)
    with pytest.raises(BadShard, match=r"shard-0\.parquet cannot be read"):
        make_plan(night.begin().config)
    with pytest.raises(BadShard, match=r"shard-0\.parquet cannot be read"):
        check_input(str(path), [], footers_only=False, as_json=True)

    plan = make_plan(night.begin(on_bad_shard="quarantine").config)
    assert (plan.shards, plan.rows) == (SHARDS - 1, ROWS - 80)
    assert [shard.name for shard in plan.quarantined] == ["shard-0.parquet"]
    quarantine = ["source.on_bad_shard=quarantine"]
    ledger.injected("corrupt shard", "check")
    check_input(str(path), quarantine, footers_only=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["rows_usable"]) == (ROWS - 80, ROWS - 160)
    named = [(shard["name"], shard["rows"]) for shard in found["quarantined"]]
    assert named == [("shard-0.parquet", None), (BAD, 80)]
    check_input(str(path), quarantine, footers_only=False, as_json=False)
    assert f"a run would leave out {BAD}: Couldn't deserialize" in capsys.readouterr().out
    for command in ("plan", "check"):
        ledger.survived("truncated shard", command, rows=0, times=2)
    ledger.survived("corrupt shard", "check", rows=0)
