"""What a night does with a fit that fails; the fits themselves are tested where they are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from challengers import WIDTH, Lake, decided
from conftest import config_of

import pipeline.run
from pipeline.engine import Context, Execution
from pipeline.errors import (
    ConfigError,
    InputError,
    LeaseHeld,
    NodesLost,
    NumericalError,
    OutOfMemory,
    PipelineError,
    TransientError,
)
from pipeline.stages.fit.warm_start import refreshed


@pytest.fixture
def lake(settings: dict[str, Any], context: Context) -> Lake:
    settings["model"] = {"hidden": [2 * WIDTH], "embedding": WIDTH, "precision": "float32"}
    return Lake(config_of(settings), context)


def challenge(
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    error: PipelineError,
    *,
    usable: bool,
    by_schedule: bool = True,
) -> Any:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline.run, "_refit", fails)
    decision = decided(lake.champion(), usable=usable)
    night = Execution(lake.config, replace(lake.context, by_schedule=by_schedule))
    return pipeline.run._outcome(night, lake.manifest(), decision)


@pytest.mark.parametrize("kind", [NumericalError, NodesLost, OutOfMemory, TransientError])
def test_the_champion_serves_where_no_model_could_be_fitted(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, kind: type[PipelineError]
) -> None:
    found = challenge(lake, monkeypatch, kind("the loss is not finite"), usable=True)
    assert (found.serving.champion, found.serving.refused) == (lake.champion(), True)
    assert (found.identity, found.verdict.reason) == (None, "the loss is not finite")
    assert not found.verdict.passed


@pytest.mark.parametrize("kind", [NumericalError, NodesLost])
def test_without_one_that_could_the_night_fails(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, kind: type[PipelineError]
) -> None:
    with pytest.raises(kind):
        challenge(lake, monkeypatch, kind("it failed"), usable=False)


def test_a_run_that_was_to_fit_a_model_fails(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dec run`` asks for a new model, whatever serves."""
    with pytest.raises(NumericalError):
        challenge(lake, monkeypatch, NumericalError("no"), usable=True, by_schedule=False)


@pytest.mark.parametrize("kind", [InputError, ConfigError, LeaseHeld])
def test_what_would_stop_the_champion_too_is_not_hidden(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, kind: type[PipelineError]
) -> None:
    with pytest.raises(kind):
        challenge(lake, monkeypatch, kind("it failed"), usable=True)


def test_the_settings_of_a_refresh_end_with_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it fails: the stages after it run under those of the night."""
    under = []

    def fails(execution: Execution, *_: Any) -> None:
        under.append(execution.config)
        raise NumericalError("the loss is not finite")

    monkeypatch.setattr(Execution, "complete", fails)
    night = Execution(lake.config, replace(lake.context, by_schedule=True))
    decision = decided(lake.champion()).model_copy(update={"action": "refresh"})
    found = pipeline.run._outcome(night, lake.manifest(), decision)
    assert found.serving.refused
    assert under == [refreshed(lake.config)]
    assert night.config == lake.config != under[0]
