"""The gate on a real Ray: each rule is broken by what breaks it, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from challengers import CENTERS, WIDTH, Lake, compared, decided, rows
from conftest import Dec, config_of

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.nights import Champion, GateRule, Identity, NightDecision, Verdict
from pipeline.artifacts.records import StoredFile
from pipeline.engine import Context, Execution
from pipeline.lake.snapshots import Partition, publish
from pipeline.stages.fit.gate import gate

pytestmark = pytest.mark.usefixtures("ray_address")

RULES = [
    "max_quality_loss",
    "max_churn",
    "max_cluster_share",
    "max_empty_share",
    "max_psi",
    "max_row_change",
    "max_bad_shards",
    "max_worse_than_kmeans",
]


@pytest.fixture
def lake(settings: dict[str, Any], context: Context) -> Lake:
    """The night of 2026-01-31, run "test"."""
    settings["model"] = {"hidden": [2 * WIDTH], "embedding": WIDTH, "precision": "float32"}
    settings["gate"] = {"max_quality_loss": 0.05}
    return Lake(config_of(settings), context)


@pytest.fixture
def champion(lake: Lake) -> Champion:
    """Of run "before", on 2026-01-24, whose partition is published."""
    return _published(lake.at("before", "2026-01-24"))


def _published(before: Lake, count: int = 600, psi: float = 0.0) -> Champion:
    champion = before.champion()
    before.manifest(count)
    empty = StoredFile(path="none", sha256="0", bytes=0)
    before.mark(
        "assign",
        Assignments(
            files=empty,
            file_count=0,
            rows_in=count,
            rows_dropped=0,
            rows=count,
            cluster_rows=(),
            mean_confidence=1,
            scores=None,
            max_psi=psi,
        ),
    )
    partition = Partition(
        run_id=before.context.run_id,
        model_id=champion.model.model_id,
        rows=count,
        files="none",
    )
    publish(before.context.lake, before.context.ds, partition, before.context.run_id)
    return champion


def judge(
    lake: Lake,
    champion: Champion | None,
    challenger: Champion | None = None,
    *,
    decision: NightDecision | None = None,
    **inputs: Any,
) -> Verdict:
    """The verdict on a challenger that is as good as its champion, unless something is given."""
    challenger = challenger or lake.champion(CENTERS + 0.01)
    identity: Identity = inputs.get("identity") or lake.identity(
        challenger, churn=None if champion is None else 0.0
    )
    night = Execution(lake.config, replace(lake.context, by_schedule=True))
    return night.complete(
        gate,
        decision or decided(champion),
        inputs.get("manifest") or lake.manifest(),
        inputs.get("sample") or lake.sample(rows(seed=1)),
        inputs.get("comparison") or compared(),
        challenger.model,
        identity,
    )


def rule(verdict: Verdict, name: str) -> GateRule:
    return next(rule for rule in verdict.rules if rule.name == name)


def broken(verdict: Verdict) -> list[str]:
    assert verdict.passed == all(rule.passed for rule in verdict.rules)
    assert [rule.name for rule in verdict.rules] == RULES
    return [rule.name for rule in verdict.rules if not rule.passed]


def test_a_challenger_that_is_as_good_passes(lake: Lake, champion: Champion) -> None:
    verdict = judge(lake, champion)
    assert broken(verdict) == []
    assert all(rule.value is not None for rule in verdict.rules)  # every rule was applied
    stored = lake.context.lake.read_json("runs/test/gate.json")
    assert Verdict.model_validate(stored) == verdict
    assert abs(rule(verdict, "max_quality_loss").value or 0) < 0.01


def test_worse_clusters_are_refused_for_their_quality(lake: Lake, champion: Champion) -> None:
    # Two groups in one cluster, and the third cut in two.
    bad = np.array([[-3.0], [5.5], [6.5]]) * np.ones((3, WIDTH))
    verdict = judge(lake, champion, lake.champion(bad))
    assert broken(verdict) == ["max_quality_loss"]
    assert "silhouette" in rule(verdict, "max_quality_loss").detail


def test_a_model_of_rows_that_have_moved_is_not_worse_for_that(
    lake: Lake, champion: Champion
) -> None:
    moved = rows(seed=1) + np.float32(3)  # by half the distance between groups
    verdict = judge(lake, champion, lake.champion(CENTERS + 3), sample=lake.sample(moved))
    quality = rule(verdict, "max_quality_loss")
    assert quality.passed
    assert (quality.value or 0) < -0.05  # on tonight's rows, the champion is the worse one
    assert "max_psi" in broken(verdict)  # that they moved is for another rule


def test_churn_over_the_budget_is_refused(lake: Lake, champion: Champion) -> None:
    challenger = lake.champion(CENTERS + 0.01, ids=(1, 4, 5))
    identity = lake.identity(challenger, churn=2 / 3)
    assert broken(judge(lake, champion, challenger, identity=identity)) == ["max_churn"]


def test_a_cluster_that_has_too_much_is_refused_by_its_lasting_id(
    lake: Lake, champion: Champion
) -> None:
    x_NF = rows(seed=1)
    counts = np.bincount(np.linalg.norm(x_NF[:, None] - CENTERS, axis=2).argmin(axis=1))
    challenger = lake.champion(CENTERS, ids=(7, 8, 9))
    verdict = judge(lake.limited(max_cluster_share=0.34), champion, challenger)
    assert broken(verdict) == ["max_cluster_share"]
    found = rule(verdict, "max_cluster_share")
    assert found.value == pytest.approx(counts.max() / 600)
    assert found.detail == f"cluster {7 + counts.argmax()} is the largest"


def test_empty_clusters_are_refused(lake: Lake, champion: Champion) -> None:
    far = np.vstack([CENTERS, 50 * np.ones(WIDTH)])
    verdict = judge(lake, champion, lake.champion(far, ids=(1, 2, 3, 4)))
    assert broken(verdict) == ["max_empty_share"]
    assert rule(verdict, "max_empty_share").value == 0.25


@pytest.mark.parametrize(("night_before", "passes"), [(0.0, False), (0.3, False), (1.5, True)])
def test_drift_is_refused_on_the_night_that_it_comes(
    lake: Lake, night_before: float, passes: bool
) -> None:
    champion = _published(lake.at("before", "2026-01-24"), psi=night_before)
    moved = rows(seed=1)
    moved[:, 2] += 1.5
    verdict = judge(lake, champion, sample=lake.sample(moved))
    assert broken(verdict) == ([] if passes else ["max_psi"])
    found = rule(verdict, "max_psi")
    assert found.detail.startswith("x[2] moved most")
    assert found.value is not None
    assert found.value > 0.6
    assert ("allowed" in found.detail) == passes


def test_half_a_night_is_refused(lake: Lake, champion: Champion) -> None:
    verdict = judge(lake, champion, manifest=lake.manifest(200))
    assert broken(verdict) == ["max_row_change"]
    assert rule(verdict, "max_row_change").value == pytest.approx(2 / 3)
    assert rule(verdict, "max_row_change").detail == "200 rows after 600 of ds 2026-01-24"


def test_bad_shards_are_refused_whichever_stage_found_them(lake: Lake, champion: Champion) -> None:
    source = lake.config.source.model_copy(update={"on_bad_shard": "quarantine"})
    lake = Lake(lake.config.model_copy(update={"source": source}), lake.context)
    bad = QuarantinedShard(
        name="a", url="/a", version="1", bytes=1, rows=None, stage="pin", reason="truncated"
    )
    pinned = lake.manifest(shards=10).model_copy(update={"quarantined": (bad,)})
    verdict = judge(lake, champion, manifest=pinned)
    assert broken(verdict) == ["max_bad_shards"]
    assert rule(verdict, "max_bad_shards").detail == "1 of 11 shards"


def test_worse_than_plain_kmeans_is_refused(lake: Lake, champion: Champion) -> None:
    challenger = lake.champion(CENTERS, weights=lake.weights())
    assert challenger.model.kind == "dec"
    assert broken(judge(lake, champion, challenger, comparison=compared(kmeans=0.64))) == []
    lake = lake.at("other")
    verdict = judge(lake, champion, challenger, comparison=compared(kmeans=0.66))
    assert broken(verdict) == ["max_worse_than_kmeans"]


def test_the_same_partition_is_as_good_in_an_embedding_of_another_scale(
    lake: Lake, champion: Champion
) -> None:
    challenger = lake.champion(100 * CENTERS, weights=lake.weights(100))
    verdict = judge(lake, champion, challenger)
    assert broken(verdict) == []
    assert rule(verdict, "max_quality_loss").value == pytest.approx(0, abs=1e-4)


def test_what_is_not_a_number_never_passes(lake: Lake, champion: Champion) -> None:
    challenger = lake.champion(CENTERS, weights=lake.weights(np.nan))
    verdict = judge(lake, champion, challenger)
    names = ["max_quality_loss", "max_cluster_share", "max_empty_share"]
    assert broken(verdict) == names
    assert all(rule(verdict, name).value is None for name in names)
    # And it is stored as JSON that everybody reads.
    assert "NaN" not in lake.context.lake.read_bytes("runs/test/gate.json").decode()


def test_a_reference_sample_that_is_gone(lake: Lake, champion: Champion) -> None:
    lake.context.lake.delete([part.path for part in champion.reference.sample.parts])
    assert broken(judge(lake, champion)) == []
    bad = np.array([[-3.0], [5.5], [6.5]]) * np.ones((3, WIDTH))
    worse = judge(lake.at("worse"), champion, lake.champion(bad))
    assert broken(worse) == ["max_quality_loss"]


def test_rules_that_are_off_refuse_nothing(lake: Lake, champion: Champion) -> None:
    bad = np.array([[-3.0], [5.5], [6.5]]) * np.ones((3, WIDTH))
    verdict = judge(lake.limited(max_quality_loss=None), champion, lake.champion(bad))
    assert broken(verdict) == []
    found = rule(verdict, "max_quality_loss")
    assert found.value is not None
    assert found.value > 0.05
    assert found.detail.startswith("off")


@pytest.mark.parametrize("before", ["none", "of other features"])
def test_without_a_champion_that_could_serve_only_its_own_rules_apply(
    lake: Lake, before: str
) -> None:
    """Such a champion is not even opened: the rows do not fit its encoder."""
    other = None
    if before != "none":
        other = lake.at("before").champion()
        lake.context.lake.delete([other.model.centroids.path])
    decision = decided(other, usable=False)
    challenger = lake.champion(CENTERS + 0.01)
    identity = lake.identity(challenger, churn=None)
    verdict = judge(lake, other, challenger, decision=decision, identity=identity)
    assert broken(verdict) == []
    absent = [rule.name for rule in verdict.rules if rule.value is None]
    assert absent == ["max_quality_loss", "max_churn", "max_psi", "max_row_change"]
    for name in absent:
        assert rule(verdict, name).detail.startswith("not applied: ")
    lake = lake.at("swallowed").limited(max_cluster_share=0.34)
    verdict = judge(lake, other, challenger, decision=decision, identity=identity)
    assert broken(verdict) == ["max_cluster_share"]


def test_the_command_explains_a_refusal(
    lake: Lake, champion: Champion, settings: dict[str, Any], dec: Dec, tmp_path: Path
) -> None:
    lake.named()
    judge(lake, champion, manifest=lake.manifest(200))
    config = tmp_path / "gate.yaml"
    config.write_text(lake.config.to_yaml())
    shown = dec("gate", str(config), "test", env={"COLUMNS": "200"})
    assert shown.code == 0, shown.err
    lines = {line.split()[0]: line for line in shown.out.splitlines() if line.strip()}
    assert set(RULES) <= set(lines)
    assert lines["max_row_change"].split()[:4] == ["max_row_change", "0.6667", "0.5", "refused"]
    assert lines["max_psi"].split()[3] == "passed"
    assert "run test was refused: max_row_change is 0.6667, over 0.5" in shown.out


def test_a_challenger_is_matched_to_the_champion_of_today(
    lake: Lake, dec: Dec, tmp_path: Path, ray_address: str
) -> None:
    """Refused by a night, overtaken by the next, and promoted after: with ids that are right."""
    first = lake.at("a", "2026-01-01")
    entry = first.promoted(first.identity(first.champion()))
    night = lake.at("b", "2026-01-08")
    challenger = night.champion(CENTERS[::-1] + 0.02, ids=(3, 2, 1))
    night.named()
    night.mark("pin", night.manifest())
    night.mark("decide", decided(entry.champion))
    night.mark("identify", night.identity(challenger))
    refused = Verdict(passed=False, rules=(), reason="for the test")
    lake.context.lake.write_json("runs/b/gate.json", refused.model_dump(mode="json"))
    # Clusters of the next champion are the same, under the ids 7, 8 and 9.
    after = lake.at("c", "2026-01-09")
    clusters = {1: "2026-01-09", 2: "2026-01-09", 3: "2026-01-09", 7: None, 8: None, 9: None}
    renumbered = after.champion(CENTERS + 0.01, ids=(7, 8, 9))
    after.promoted(after.identity(renumbered, after.clusters(clusters)), entry)
    config = tmp_path / "gate.yaml"
    config.write_text(lake.config.to_yaml())
    env = {"RAY_ADDRESS": ray_address}
    done = dec("promote", str(config), "b", "--why", "looked at it", "--json", env=env)
    assert done.code == 0, done.err
    assert done.err == (
        "note: the champion has changed since that run; its clusters are matched again\n"
    )
    now = Champion.model_validate(done.json["champion"])
    ids = lake.context.lake.read_table(now.ids.path).sort_by("position")["cluster_id"]
    assert ids.to_pylist() == [9, 8, 7]
    assert now.model == challenger.model
    alive = lake.context.lake.read_table(done.json["clusters"]["path"])
    assert alive.filter(alive["died"].is_null())["cluster_id"].to_pylist() == [7, 8, 9]
