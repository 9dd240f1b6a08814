"""What a night does, and who serves afterwards: without Ray, on a registry of real files."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pytest
from challengers import CENTERS, WIDTH, Lake, compared, decided, rows
from conftest import config_of
from pydantic import create_model

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.inputs import FeatureColumn
from pipeline.artifacts.nights import Champion, NightDecision, Verdict
from pipeline.artifacts.records import StoredFile, fingerprint_of
from pipeline.config import Config, Refine
from pipeline.config.sections import DefaultVersion
from pipeline.engine import Context, Execution, StageReached
from pipeline.errors import CommitConflict, InputError, StorageRefused, TransientError
from pipeline.lake.snapshots import Partition, publish
from pipeline.registry.clusters import rename
from pipeline.registry.entries import entry_numbers, latest_entry
from pipeline.registry.models import settings_path
from pipeline.run import Fit, _outcome
from pipeline.run import run as run_stages
from pipeline.stages.decide import decide
from pipeline.stages.fit.gate import _NightBefore
from pipeline.stages.fit.promote import promote
from pipeline.storage import Store

PASSED, REFUSED = Verdict(passed=True, rules=()), Verdict(passed=False, rules=())


@pytest.fixture
def lake(settings: dict[str, Any], context: Context) -> Lake:
    """The first night, 2026-01-31."""
    settings["model"] = {"hidden": [2 * WIDTH], "embedding": WIDTH, "precision": "float32"}
    return Lake(config_of(settings), context)


def crowned(lake: Lake, **changes: Any) -> Champion:
    """A champion that serves."""
    fitted = {"settings": fingerprint_of(lake.config.fit_settings())} | changes
    weights = fitted.pop("weights", None)
    champion = lake.champion(weights=weights).model_copy(update=fitted)
    lake.promoted(lake.identity(champion))
    return champion


def night(lake: Lake, ds: str, **schedule: Any) -> NightDecision:
    """What a night decides, with other settings of the schedule."""
    later = lake.at(f"night-{ds}", ds)
    settings = lake.config.model_dump()
    settings["schedule"] |= schedule
    context = replace(later.context, by_schedule=True)
    return Execution(config_of(settings), context).complete(decide, later.manifest())


def test_the_first_night_fits_and_says_why(lake: Lake) -> None:
    decision = night(lake, "2026-01-31")
    assert (decision.action, decision.entry, decision.champion) == ("refit", 0, None)
    assert decision.why == "there is no champion"
    assert not decision.usable


@pytest.mark.parametrize(
    ("ds", "action"),
    [
        ("2026-01-30", "assign"),  # a backfill
        ("2026-01-31", "assign"),
        ("2026-02-06", "assign"),
        ("2026-02-07", "refit"),
        ("2026-03-31", "refit"),
    ],
)
def test_a_week_by_logical_dates(lake: Lake, ds: str, action: str) -> None:
    champion = crowned(lake)
    decision = night(lake, ds)
    assert (decision.action, decision.champion, decision.usable) == (action, champion, True)


def test_never_by_age(lake: Lake) -> None:
    crowned(lake)
    refit = {"every_days": None, "on_drift": True}
    assert night(lake, "2027-01-31", refit=refit).action == "assign"


def test_a_refresh_in_between_does_not_put_the_refit_off(lake: Lake) -> None:
    crowned(lake, weights=lake.weights(), ds="2026-02-05")  # refreshed then, fitted on 01-31
    refresh = {"every_days": 1, "passes": 1}
    assert night(lake, "2026-02-05", refresh=refresh).action == "assign"
    assert night(lake, "2026-02-06", refresh=refresh).action == "refresh"
    assert night(lake, "2026-02-07", refresh=refresh).action == "refit"


def test_plain_kmeans_is_fitted_anew_instead_of_refreshed(lake: Lake) -> None:
    crowned(lake)
    decision = night(lake, "2026-02-01", refresh={"every_days": 1, "passes": 1})
    assert decision.action == "refit"
    assert "cannot be refreshed" in decision.why


def test_other_settings(lake: Lake) -> None:
    crowned(lake, settings="of another config")
    decision = night(lake, "2026-02-01")
    assert (decision.action, decision.usable) == ("refit", True)
    assert "settings" in decision.why
    # A night that is older than the model is no reason to fit one.
    assert night(lake, "2026-01-30").action == "assign"


def test_settings_of_a_later_release(lake: Lake) -> None:
    crowned(lake)

    def action(**changes: Any) -> str:
        later = lake.at(f"night-{'-'.join(changes)}", "2026-02-01")
        refine: Any = create_model("LaterRefine", __base__=Refine, **changes)
        config = create_model("LaterConfig", __base__=Config, refine=(refine, refine()))
        context = replace(later.context, by_schedule=True)
        night = Execution(config.model_validate(lake.config.model_dump()), context)
        return night.complete(decide, later.manifest()).action

    assert action(momentum=(float, 0.9)) == "assign"
    assert action(max_share=(Annotated[float, DefaultVersion(2)], 0.9)) == "refit"


def test_other_features(lake: Lake) -> None:
    champion = crowned(lake)
    wider = (FeatureColumn(name="x", width=WIDTH + 1, vector=True),)
    context = Context("wider", "2026-02-01", lake.context.lake, by_schedule=True)
    later = Lake(lake.config, context, wider)
    decision = Execution(later.config, later.context).complete(decide, later.manifest())
    assert (decision.action, decision.usable, decision.champion) == ("refit", False, champion)
    assert "x[5]" in decision.why
    assert "x[4]" in decision.why


@pytest.mark.parametrize("kind", ["centroids", "bins", "settings"])
def test_a_champion_whose_files_are_gone(lake: Lake, kind: str) -> None:
    champion = crowned(lake)
    path = {
        "centroids": champion.model.centroids.path,
        "bins": champion.reference.bins.path,
        "settings": settings_path(champion.model),
    }[kind]
    lake.context.lake.delete([path])
    decision = night(lake, "2026-02-01")
    assert (decision.action, decision.usable, decision.entry) == ("refit", False, 1)
    assert path in decision.why


@pytest.mark.parametrize(
    ("psi", "on_drift", "action"),
    [(0.3, True, "refit"), (0.3, False, "assign"), (0.2, True, "assign")],
)
def test_drift_of_the_night_before(lake: Lake, psi: float, on_drift: bool, action: str) -> None:
    champion = crowned(lake)
    before = lake.at("before", "2026-02-01")
    before.mark("assign", assigned(psi))
    partition = Partition(run_id="before", model_id=champion.model.model_id, rows=600, files="none")
    publish(lake.context.lake, "2026-02-01", partition, "before")
    decision = night(lake, "2026-02-02", refit={"every_days": 7, "on_drift": on_drift})
    assert decision.action == action
    assert ("x[2] of ds 2026-02-01 has PSI 0.300" in decision.why) == (action == "refit")


@pytest.mark.parametrize("error", [OSError("down"), TransientError("down"), StorageRefused("no")])
def test_an_outage_while_the_night_before_is_read(
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Its drift counts as unknown, in the decision and in the gate."""
    champion = crowned(lake)
    lake.at("before", "2026-02-01").mark("assign", assigned(0.3))
    partition = Partition(run_id="before", model_id=champion.model.model_id, rows=600, files="none")
    publish(lake.context.lake, "2026-02-01", partition, "before")
    read = Store.read_json

    def fails_for_it(store: Store, path: str) -> Any:
        if path.startswith("runs/before/"):
            raise error
        return read(store, path)

    monkeypatch.setattr(Store, "read_json", fails_for_it)
    assert night(lake, "2026-02-02").action == "assign"
    assert f"drift of ds 2026-02-01 is unknown: {error}" in caplog.text
    before = _NightBefore.of(lake.context.lake, "2026-02-02")
    assert before == _NightBefore("2026-02-01", champion.model.model_id, rows=600, psi=None)


def test_drift_from_the_sample_of_another_champion_is_no_reason(lake: Lake) -> None:
    """A refit that drift led to, done again under another run id, or rolled back."""
    crowned(lake)
    before = lake.at("before", "2026-02-01")
    before.mark("assign", assigned(0.3))
    partition = Partition(run_id="before", model_id="m-another", rows=600, files="none")
    publish(lake.context.lake, "2026-02-01", partition, "before")
    assert night(lake, "2026-02-02").action == "assign"


def assigned(psi: float) -> Assignments:
    return Assignments(
        files=StoredFile(path="none", sha256="0", bytes=0),
        file_count=0,
        rows_in=600,
        rows_dropped=0,
        rows=600,
        cluster_rows=(),
        mean_confidence=1,
        scores=None,
        max_psi=psi,
        max_psi_feature="x[2]",
    )


def test_a_night_that_is_started_again_keeps_to_what_it_decided(lake: Lake) -> None:
    decision = night(lake, "2026-01-31")
    crowned(lake)
    assert night(lake, "2026-01-31") == decision


@pytest.mark.parametrize(("days", "action"), [(1, "refit"), (2, "assign"), (3, "assign")])
def test_after_a_refusal_the_next_challenger_waits(lake: Lake, days: int, action: str) -> None:
    champion = crowned(lake)
    partition = Partition(
        run_id="before", model_id=champion.model.model_id, rows=600, files="none", refused=True
    )
    publish(lake.context.lake, "2026-02-07", partition, "before")
    decision = night(lake, "2026-02-08", retry_days=days)
    assert decision.action == action
    assert ("2026-02-07 was refused" in decision.why) == (action == "assign")
    assert night(lake, "2026-02-10", retry_days=days).action == "refit"


def test_an_earlier_date_of_other_features_ends_no_cluster(lake: Lake) -> None:
    crowned(lake)
    wider = (FeatureColumn(name="x", width=WIDTH + 1, vector=True),)
    context = Context("wider", "2026-01-30", lake.context.lake, by_schedule=True)
    earlier = Lake(lake.config, context, wider)
    with pytest.raises(
        InputError, match=r"ds 2026-01-30 cannot be done: champion .* other features"
    ):
        Execution(earlier.config, earlier.context).complete(decide, earlier.manifest())


@pytest.mark.parametrize("ds", ["undated", "2026-01-30", "2026-02-01"])
def test_a_run_always_fits(lake: Lake, ds: str) -> None:
    """``dec run``, of any date, whatever the champion is and was fitted on."""
    champion = crowned(lake)
    wider = (FeatureColumn(name="x", width=WIDTH + 1, vector=True),)
    for features, usable in ((lake.features, True), (wider, False)):
        other = Lake(lake.config, Context(f"run-{ds}-{usable}", ds, lake.context.lake), features)
        decision = Execution(other.config, other.context).complete(decide, other.manifest())
        assert (decision.action, decision.why) == ("refit", "dec run always fits a new model")
        assert (decision.champion, decision.entry, decision.usable) == (champion, 1, usable)


def test_the_age_of_a_champion_without_a_date_is_unknown(lake: Lake) -> None:
    """Nights begin on an output that ``dec run`` made: what is due by age is due."""
    crowned(lake, ds="undated", refit_ds="undated", weights=lake.weights())
    decision = night(lake, "2026-02-01")
    assert (decision.action, decision.usable) == ("refit", True)
    assert decision.why == "the last refit has no date (schedule.refit.every_days)"
    never = {"every_days": None, "on_drift": True}
    assert night(lake, "2026-02-02", refit=never).action == "assign"
    refresh = {"every_days": 1, "passes": 1}
    assert night(lake, "2026-02-03", refit=never, refresh=refresh).action == "refresh"


def test_what_has_no_date_is_no_night_before(lake: Lake) -> None:
    champion = crowned(lake)
    before = lake.at("before", "undated")
    before.mark("assign", assigned(0.3))
    partition = Partition(
        run_id="before", model_id=champion.model.model_id, rows=600, files="none", refused=True
    )
    publish(lake.context.lake, "undated", partition, "before")
    assert night(lake, "2026-02-02").action == "assign"
    assert night(lake, "2026-02-07").action == "refit"


def test_a_night_stage_by_stage(settings: dict[str, Any], context: Context) -> None:
    """As ``dec stage NAME --nightly`` does it: nothing is done on the way."""

    def only(stage: str) -> Execution:
        return Execution(config_of(settings), replace(context, by_schedule=True), stage)

    with pytest.raises(InputError, match=r"decide needs .*run `dec stage pin --nightly` first"):
        run_stages(only("decide"))
    for stage in ("pin", "decide"):
        night = only(stage)
        with pytest.raises(StageReached):
            run_stages(night)
    assert isinstance(night.reached.artifact, NightDecision)
    with pytest.raises(InputError, match="stage assign needs stage sample"):
        run_stages(only("assign"))
    with pytest.raises(InputError, match=r"warm_start does not run in test; its action is refit"):
        run_stages(only("warm_start"))


# ------------------------------------------------------------------------------------- promote


def challenge(lake: Lake, decision: NightDecision, verdict: Verdict) -> Any:
    identity = lake.identity(lake.champion(ids=(1, 2, 4)))
    return Execution(lake.config, lake.context).complete(promote, decision, identity, verdict)


def test_who_passes_serves(lake: Lake) -> None:
    champion = crowned(lake)
    tonight = lake.at("tonight", "2026-02-07")
    serving = challenge(tonight, night(lake, "2026-02-07"), PASSED)
    entry = latest_entry(lake.context.lake)
    assert entry is not None
    assert (serving.entry, serving.refused, serving.champion) == (2, False, entry.champion)
    assert serving.champion != champion
    assert (entry.action, entry.who, len(entry.transitions)) == ("promote", "run tonight", 2)
    assert entry.why.startswith("refit: the last refit was 7 days before")


def test_who_is_refused_leaves_the_champion_and_the_log_alone(lake: Lake) -> None:
    champion = crowned(lake)
    tonight = lake.at("tonight", "2026-02-07")
    serving = challenge(tonight, night(lake, "2026-02-07"), REFUSED)
    assert (serving.champion, serving.entry, serving.refused) == (champion, 1, True)
    assert entry_numbers(lake.context.lake) == [1]


def test_the_first_serves_even_if_refused(lake: Lake) -> None:
    serving = challenge(lake, night(lake, "2026-01-31"), REFUSED)
    assert (serving.entry, serving.refused) == (1, True)
    entry = latest_entry(lake.context.lake)
    assert entry is not None
    assert "nothing else can label these rows" in entry.why


def test_killed_after_the_entry_and_run_again(lake: Lake) -> None:
    decision = night(lake, "2026-01-31")
    first = challenge(lake, decision, PASSED)
    lake.context.lake.delete([lake.context.stage_path("promote", "done.json")])
    assert challenge(lake, decision, PASSED) == first
    assert entry_numbers(lake.context.lake) == [1]


def test_who_comes_second_decides_anew(lake: Lake) -> None:
    crowned(lake)
    tonight = lake.at("night-2026-02-07", "2026-02-07")
    decision = night(lake, "2026-02-07")
    other = lake.at("other", "2026-02-08")
    challenge(other, night(lake, "2026-02-08"), PASSED)
    with pytest.raises(CommitConflict, match="run other changed the registry meanwhile"):
        challenge(tonight, decision, PASSED)
    assert night(lake, "2026-02-07").entry == 2  # the same run, decided anew


def test_a_challenger_that_cannot_be_matched_is_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is fit for the rows it learnt from, and makes no number of others."""
    champion = crowned(lake)
    tonight = lake.at("tonight", "2026-02-07")
    manifest, sample = tonight.manifest(), tonight.sample(rows())
    model = tonight.model(CENTERS, weights=tonight.weights(np.nan))
    fit = Fit(sample, None, None, None, compared(), model)  # type: ignore[arg-type]
    monkeypatch.setattr("pipeline.run._refit", lambda *_: fit)
    monkeypatch.setattr(
        "pipeline.stages.fit.identify.run_task",
        lambda _, memory, work, *given, **named: work(*given, **named),
    )
    execution = Execution(tonight.config, replace(tonight.context, by_schedule=True))
    found = _outcome(execution, manifest, decided(champion))
    assert (found.serving.champion, found.serving.refused) == (champion, True)
    assert found.verdict is not None
    assert "not finite" in found.verdict.reason
    assert (found.identity, entry_numbers(lake.context.lake)) == (None, [1])


def test_a_name_that_is_given_meanwhile_is_taken_over(lake: Lake) -> None:
    crowned(lake)
    tonight = lake.at("tonight", "2026-02-07")
    decision = night(lake, "2026-02-07")
    rename(lake.context.lake, 2, "birds", who="somebody")
    serving = challenge(tonight, decision, PASSED)
    entry = latest_entry(lake.context.lake)
    assert entry is not None
    assert (serving.entry, entry.number, entry.who) == (3, 3, "run tonight")
    table = lake.context.lake.read_table(entry.clusters.path)
    assert dict(zip(table["cluster_id"].to_pylist(), table["name"].to_pylist(), strict=True)) == {
        1: None,
        2: "birds",
        3: None,
    }
