"""The engine: a stage runs once, and again exactly when something that matters has changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import config_of

from pipeline.artifacts.records import Artifact, fingerprint_of
from pipeline.config import Config
from pipeline.engine import Context, Execution, Stage, StageReached, stage
from pipeline.errors import InputError
from pipeline.storage import Store


class Number(Artifact):
    value: int


class Watcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, bool]] = []
        self.totals: list[tuple[str, int, dict[str, float]]] = []

    def stage_started(self, stage: str) -> None:
        pass

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        pass

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.totals.append((stage, step, dict(values)))

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        self.finished.append((stage, reused))


class Night:
    """A run of two stages: seed → number, number → its double."""

    def __init__(self, folder: Path) -> None:
        self.lake = Store(str(folder))
        self.ran: list[str] = []
        self.ray_starts = 0
        self.begun = 0
        self.watcher = Watcher()
        self.version = 1

    def run(self, only: str | None = None, **settings: Any) -> int:
        self.ran.clear()
        self.watcher.finished.clear()

        def take(config: Config, context: Context) -> Number:
            self.ran.append("take")
            return Number(value=config.seed // 10)  # 10 and 11 leave the same artifact

        def double(config: Config, context: Context, number: Number) -> Number:
            self.ran.append("double")
            return Number(value=2 * number.value)

        first = Stage("take", self.version, lambda config: config.seed, False, take)
        second = Stage("double", 1, lambda config: None, True, double)
        source = {"path": "in", "features": ["x"]}
        defaults = {"source": source, "output": "out", "clusters": 2, "seed": 10}
        config = Config.model_validate(defaults | settings)
        context = Context("r", "d", self.lake, self.watcher, start_ray=self._start_ray)
        execution = Execution(config, context, only, on_first_work=self._begin)
        try:
            return execution.complete(second, execution.complete(first)).value
        except StageReached:
            assert isinstance(execution.reached.artifact, Number)
            return execution.reached.artifact.value

    def marker(self, stage: str) -> Path:
        return Path(self.lake.locate(f"runs/r/stages/{stage}/done.json"))

    def _start_ray(self) -> None:
        self.ray_starts += 1

    def _begin(self) -> None:
        self.begun += 1


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path)


def test_stages_run_once(night: Night) -> None:
    assert night.run() == 2
    assert night.ran == ["take", "double"]
    assert night.watcher.finished == [("take", False), ("double", False)]
    assert night.watcher.totals == [("take", 0, {"value": 1.0}), ("double", 0, {"value": 2.0})]
    assert night.run() == 2
    assert night.ran == []
    assert night.watcher.finished == [("take", True), ("double", True)]


def test_marker_says_what_it_stands_for(night: Night) -> None:
    night.run()
    marker = night.lake.read_json("runs/r/stages/take/done.json")
    assert marker["stage"] == "take"
    assert marker["artifact"] == {"value": 1}
    assert marker["seconds"] >= 0


def test_stage_that_fails_leaves_no_marker(night: Night) -> None:
    with pytest.raises(ValueError, match="seed"):
        night.run(seed=-1)  # refused by the config: nothing ran at all
    night.lake.write_bytes("runs/r/stages/double", b"a file where a folder must be")
    with pytest.raises(OSError, match="double"):
        night.run()
    assert night.marker("take").exists()
    Path(night.lake.locate("runs/r/stages/double")).unlink()
    assert night.run() == 2
    assert night.ran == ["double"]


def test_setting_that_matters_runs_the_stage_again(night: Night) -> None:
    night.run(seed=10)
    assert night.run(seed=20) == 4
    assert night.ran == ["take", "double"]


def test_stage_after_is_skipped_when_its_input_comes_out_the_same(night: Night) -> None:
    night.run(seed=10)
    assert night.run(seed=11) == 2
    assert night.ran == ["take"]


def test_setting_of_no_stage_runs_nothing(night: Night) -> None:
    night.run()
    night.run(execution={"workers": 5})
    assert night.ran == []


def test_new_version_of_a_stage_runs_it_again(night: Night) -> None:
    night.run()
    night.version = 2
    night.run()
    assert night.ran == ["take"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"stage": "take", "finger',
        b"\xff\xfe",
        b"[]",
        b'{"stage": "take"}',
    ],
)
def test_damaged_marker_runs_the_stage_again(night: Night, content: bytes) -> None:
    night.run()
    night.marker("take").write_bytes(content)
    assert night.run() == 2
    assert night.ran == ["take"]
    assert night.run() == 2
    assert night.ran == []


@pytest.mark.parametrize("artifact", [{"value": "many"}, {"value": 1, "unit": "m"}, {}])
def test_marker_with_an_artifact_of_another_shape_runs_again(
    night: Night, artifact: dict[str, Any]
) -> None:
    night.run()
    path = "runs/r/stages/take/done.json"
    night.lake.write_json(path, {**night.lake.read_json(path), "artifact": artifact})
    night.run()
    assert night.ran == ["take"]


def test_ray_starts_only_for_work_on_it(night: Night) -> None:
    night.run(only="take")
    assert night.ray_starts == 0
    night.run()
    assert night.ray_starts == 1
    night.run()
    assert night.ray_starts == 1


def test_first_trace_of_a_run_comes_with_its_first_work(night: Night) -> None:
    night.run()
    assert night.begun == 1
    night.run()
    assert night.begun == 1


# ----------------------------------------------------------------------------------------- only


def test_only_stops_after_its_stage(night: Night) -> None:
    assert night.run(only="take") == 1
    assert night.ran == ["take"]
    assert night.run(only="double") == 2
    assert night.ran == ["double"]


def test_only_needs_the_stages_before_it(night: Night) -> None:
    with pytest.raises(InputError, match=r"stage double needs stage take.*`dec stage take` first"):
        night.run(only="double")
    assert night.ran == []


def test_only_with_other_settings_needs_them_again(night: Night) -> None:
    night.run()
    with pytest.raises(InputError, match="not complete in run r with these settings"):
        night.run(only="double", seed=30)


# --------------------------------------------------------------------------------- fingerprints


def test_fingerprint_is_that_of_the_content() -> None:
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert Number(value=1).fingerprint == Number(value=1).fingerprint
    assert Number(value=1).fingerprint != Number(value=2).fingerprint


def test_stored_file_carries_its_digest(night: Night) -> None:
    stored = Context("r", "d", night.lake).store("a/b", b"abc")
    assert night.lake.read_bytes(stored.path) == b"abc"
    assert stored.bytes == 3
    assert stored.sha256.startswith("ba7816bf")  # SHA-256 of "abc", as FIPS 180-2 has it


def test_an_input_by_name_is_refused(context: Context, settings: dict[str, Any]) -> None:
    """It would not be part of the fingerprint."""

    @stage("named", version=1, distributed=False)
    def named(config: Config, context: Context, number: Number) -> Number:
        return number

    with pytest.raises(TypeError, match="stage named: give number by position"):
        Execution(config_of(settings), context).complete(named, number=Number(value=1))
