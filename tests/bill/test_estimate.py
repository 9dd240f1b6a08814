"""The estimate's arithmetic, on cases that were worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.artifacts.inputs import FeatureColumn, Manifest
from pipeline.artifacts.records import StoredFile
from pipeline.bill.cluster import check_fits, cluster_of
from pipeline.bill.comparison import _passes_made, calibrated
from pipeline.bill.costs import CostInputs, Device, Rates
from pipeline.bill.estimate import estimate
from pipeline.bill.records import Cluster, Estimate, StageEstimate, StageFactor
from pipeline.clustering.kmeans import WORK, affordable
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.run import STAGES, stages_of

# 1,000 FLOP/s, an update takes a second, and nothing else takes time.
CORE = Device(1e-6, 1e-6, 1.0, update_ns=0.0, learn_ns=0.0, measure_ns=0.0, nearest_ns=0.0)
SLOW = Rates(
    core=CORE,
    value_ns=0.0,
    write_ns=0.0,
    network_mb_s=136e-6,
    ray_s=7.0,
    start_s=1.0,
    workers_s=13.0,
)
# Features 2, hidden 3, embedding 2: 12 weights in the encoder, 17 parameters, and as many again.
TABLE = Manifest(
    shards=StoredFile(path="shards.parquet", sha256="", bytes=0),
    rows=100,
    bytes=2000,
    wanted_bytes=1600,
    shard_count=2,
    row_groups=4,
    slice_count=2,
    target_slice_mib=128,
    features=(FeatureColumn(name="x", width=2, vector=True),),
    dtype="float64",
    carried="",
    nulls="error",
    keys=("id",),
    label=None,
)


def table(**figures: int) -> Manifest:
    return TABLE.model_copy(update=figures)


def cluster(cpus: int, workers: int = 1, threads: int = 1, **more: Any) -> Cluster:
    given = {"nodes": 1, "gpus_per_node": 0, "actors": workers, "actor_threads": threads} | more
    return Cluster(cpus_per_node=cpus, workers=workers, threads=threads, **given)


def settings(**sections: Any) -> Config:
    base: dict[str, Any] = {
        "source": {"path": "table", "features": ["x"], "keys": ["id"]},
        "output": "lake",
        "clusters": 2,
        "model": {"hidden": [3], "embedding": 2},
        "pretrain": {"passes": 3, "batch_rows": 50, "min_updates": 0},
        "refine": {"passes": 2, "batch_rows": 50, "min_updates": 0},
        "centroids": {"start": "kmeans", "sample_rows": 100},
        "execution": {"workers": 1, "cpus_per_worker": 1},
    }
    return Config.model_validate({**base, **sections})


def estimated(
    config: Config,
    manifest: Manifest = TABLE,
    on: Cluster | None = None,
    factors: dict[str, StageFactor] | None = None,
    **more: Any,
) -> Estimate:
    stages = stages_of(more.get("action", "refit"))
    given = {"products": "bfloat16", "rates": SLOW, **more}
    run = CostInputs(config=config, manifest=manifest, cluster=on or cluster(2), **given)
    return estimate(stages, run, factors=factors)


def stages(*args: Any, **more: Any) -> dict[str, StageEstimate]:
    return {stage.stage: stage for stage in estimated(*args, **more).stages}


def test_every_stage_that_works_on_ray_declares_what_it_costs() -> None:
    assert all(s.cost.__module__ == s.run.__module__ for s in STAGES if s.distributed)


def test_pretraining_by_hand() -> None:
    # 2 × (3 × 24 − 6) = 132 FLOP a row: 0.132 s. A pass is 13.2 s, and 2 updates of a second.
    stage = stages(settings())["pretrain"]
    assert stage.work_seconds == pytest.approx(3 * (13.2 + 2))
    assert stage.fixed_seconds == 1.0
    assert (stage.rows, stage.passes, stage.read_bytes) == (300, 3, 1600)
    assert stage.core_hours == pytest.approx((45.6 + 1) * 2 / 3600)  # two cores are paid for
    assert stage.busy_core_hours == pytest.approx(45.6 / 3600)


def test_two_workers_exchange_their_gradients() -> None:
    # 34 parameters × 4 bytes at 136 B/s: a second more an update.
    stage = stages(settings(), on=cluster(4, workers=2))["pretrain"]
    assert stage.work_seconds == pytest.approx(3 * (6.6 + 2 * (1 + 1)))
    assert stage.fixed_seconds == 13.0


def test_refinement_measures_before_and_after_every_pass() -> None:
    # Learning: 2 × (3 × 12 − 6) = 60 FLOP a row, measuring 24. 2 passes, and 3 without learning.
    stage = stages(settings())["refine"]
    assert stage.work_seconds == pytest.approx(2 * (6.0 + 2) + 3 * 2.4)
    assert (stage.passes, stage.measuring_passes, stage.rows) == (2, 3, 500)
    assert stage.at_most
    once = stages(settings(), passes=1)["refine"]
    assert once.work_seconds == pytest.approx(6.0 + 2 + 2 * 2.4)
    often = settings(refine={"passes": 2, "update_interval_rows": 25, "min_updates": 0})
    assert stages(often)["refine"].measuring_passes == 1 + 8


def test_what_does_not_fit_into_memory_is_read_in_every_pass() -> None:
    config = settings(execution={"workers": 1, "cache_mib": 0})
    found = stages(config)
    assert found["pretrain"].read_bytes == 3 * 1600
    assert found["refine"].read_bytes == 5 * 1600
    assert found["assign"].read_bytes == 1600


def test_learning_from_a_part() -> None:
    found = stages(settings(source={"path": "t", "features": ["x"], "fit_rows": 50}))
    assert found["pretrain"].rows == 150
    assert found["pretrain"].read_bytes == 800
    assert found["assign"].rows == 100


def test_rows_that_are_held_out_are_not_learnt_from() -> None:
    assert stages(settings(), table(rows=1000))["pretrain"].rows == 3 * 980


def test_small_tables_have_more_updates() -> None:
    few = settings(pretrain={"passes": 3, "batch_rows": 50, "min_updates": 9})
    # 300 rows in 9 updates: 33 rows each, 32 as a multiple of 8; 4 updates a pass.
    assert stages(few)["pretrain"].work_seconds == pytest.approx(3 * (13.2 + 4))


def test_float32_takes_longer() -> None:
    slow = stages(settings(), products="float32")["pretrain"].work_seconds
    assert slow == pytest.approx(3 * (13.2 / SLOW.float32_share + 2))


def test_assigning_is_shared_by_slices() -> None:
    # 24 FLOP a row: 2.4 s in all. Two slices: a third core has none.
    one = stages(settings())["assign"]
    assert one.work_seconds == pytest.approx(2.4)
    three = cluster(4, threads=3)
    assert stages(settings(), on=three)["assign"].work_seconds == pytest.approx(1.2)
    assert one.busy_core_hours == pytest.approx(2.4 / 3600)
    # Three slices for two cores: two rounds.
    two = cluster(2, threads=2)
    assert stages(settings(), table(slice_count=3), two)["assign"].work_seconds == pytest.approx(
        2 * 0.8
    )


def test_gpus_take_the_place_of_cores() -> None:
    gpu = Device(1e-3, 1e-3, 0.5, update_ns=0.0, learn_ns=0.0, measure_ns=0.0, nearest_ns=0.05)
    rates = dataclasses.replace(SLOW, gpu=gpu)
    config = settings(
        execution={"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 1, "gpus_per_actor": 0.5}
    )
    on = cluster_of(config.execution)
    assert (on.gpus_per_node, on.cores) == (2, 3)  # a worker's card each; one would do to assign
    found = stages(config, on=on, rates=rates)
    # 0.132 ms a row on one of two cards, 0.0132 / 2 s a pass, and 2 updates with an exchange.
    learn = 100 * 132 / 1e6 / 2 + 2 * (0.5 + 1)
    assert found["pretrain"].work_seconds == pytest.approx(3 * learn)
    assert found["pretrain"].gpu_hours == pytest.approx(2 * (3 * learn + 13) / 3600)
    # 24 FLOP a row on two halves of a card, and nothing left for the cores.
    assert found["assign"].work_seconds == pytest.approx(100 * (24 / 1e6 + 2 * 0.05e-9))


def test_kmeans_is_bounded_as_the_stage_bounds_it() -> None:
    rates = Rates(kmeans_gflop_s=1e-6, point_ns=0.0)  # 500 multiplications a second
    given = settings(clusters=4, centroids={"sample_rows": 156})
    run = CostInputs(given, TABLE, cluster(2), "bfloat16", rates=rates)
    # 10 × 5 × 4 = 200 multiplications an iteration: 0.4 s
    assert run.kmeans_s(10, 5, restarts=3, iterations=9) == pytest.approx(12.0)
    # 10,000 multiplications are 50 iterations: 5 restarts of 9.
    bounded = run.kmeans_s(10, 5, restarts=20, iterations=9, work=10_000)
    assert bounded == pytest.approx(5 * 10 * 0.4)
    assert affordable(200, restarts=20, iterations=9, work=10_000) == (5, 9)
    assert affordable(WORK, restarts=20, iterations=50) == (1, 10)  # at least ten


def test_finding_the_number_of_clusters_is_planned_with_the_most() -> None:
    # A start: 100 rows × 2 × 5 cells, 20 iterations of 2 s and the last look; two cuts a cell.
    rates = Rates(kmeans_gflop_s=1e-6, point_ns=0.0, distance_gflop_s=1e-3)
    given, auto = (
        stages(settings(clusters=clusters), rates=rates)["init_centroids"]
        for clusters in (2, {"most": 2})
    )
    starts = 15 * (21 * 100 * 2 * 5 / 500 + 2 * 5 * 0.001)
    neighbours = 2 * 100 * 100 * (2 + 10) / 1e6
    assert auto.work_seconds - given.work_seconds == pytest.approx(starts + neighbours)


# ------------------------------------------------------------------------- clusters and money


def test_local_folders_need_no_requests() -> None:
    assert not any(stage.gets or stage.puts for stage in stages(settings()).values())


def test_the_cluster_that_settings_ask_for() -> None:
    execution = settings(execution={"workers": 8, "cpus_per_worker": 4}).execution
    asked = cluster_of(execution)
    assert (asked.cores, asked.threads, asked.started_here) == (33, 4, False)
    given = cluster_of(execution, nodes=3, cpus_per_node=16, gpus_per_node=2)
    assert (given.cores, given.gpus_per_node, given.compute) == (48, 2, 32)
    check_fits(given, execution)
    with pytest.raises(ConfigError, match=r"execution.workers=8 needs 32.5 CPUs .* room for 3"):
        check_fits(cluster_of(execution, nodes=1, cpus_per_node=16), execution)


def test_money() -> None:
    prices = {"currency": "EUR", "cpu_core_hour": 0.5, "gpu_hour": 3.0}
    on = cluster(10, nodes=2, gpus_per_node=1)
    found = estimated(settings(prices=prices), on=on)
    hours = found.seconds / 3600
    assert found.money is not None
    assert found.money.currency == "EUR"
    assert found.money.total == pytest.approx(hours * (20 * 0.5 + 2 * 3.0))
    assert sum(stage.gpu_hours for stage in found.stages) == pytest.approx(2 * hours)
    free = estimated(settings(), on=on)
    assert free.money is None


def test_requests_cost_money() -> None:
    prices = {"get_requests_per_1000": 1.0, "put_requests_per_1000": 10.0, "read_gib": 2**30}
    config = settings(
        prices=prices,
        source={"path": "s3://b/t", "features": ["x"], "keys": ["id"]},
        output="s3://b/lake",
    )
    found = estimated(config)
    gets, puts = (sum(getattr(s, name) for s in found.stages) for name in ("gets", "puts"))
    assert gets > 0
    assert puts > 0
    assert found.money is not None
    assert found.money.requests == pytest.approx(gets / 1000 + puts / 100)
    assert found.money.transfer == pytest.approx(4 * 1600)  # sample, both trainings, assign
    assert found.money.compute == 0


# ------------------------------------------------------------------------------- calibration


def took_twice(found: Estimate, stage: str) -> float:
    return 2 * next(s.seconds for s in found.stages if s.stage == stage)


def test_a_run_corrects_the_next_estimate() -> None:
    found = estimated(settings())
    took = {name: took_twice(found, name) for name in ("pretrain", "assign")}
    factors = calibrated(found, took)
    assert factors["pretrain"] == StageFactor(fixed=1.0, work=round((2 * 46.6 - 1) / 45.6, 4))
    assert set(factors) == {"pretrain", "assign"}
    again = estimated(settings(), factors=factors)
    by_name = {stage.stage: stage for stage in again.stages}
    for name, seconds in took.items():
        assert by_name[name].seconds == pytest.approx(seconds, rel=1e-3)
    for name, factor in calibrated(again, took).items():  # it was right: nothing changes
        assert factor.work == pytest.approx(factors[name].work, rel=1e-3)


def test_what_mostly_starts_processes_corrects_that() -> None:
    core = dataclasses.replace(CORE, encode_gflop_s=1.0)
    found = estimated(settings(), rates=dataclasses.replace(SLOW, core=core))
    factors = calibrated(found, {"assign": 6.0, "pin": 0.1})
    assert set(factors) == {"assign"}  # pin is over before it tells anything
    assert factors["assign"].fixed == pytest.approx(6.0, rel=1e-3)
    assert factors["assign"].work == 1.0


def test_a_run_that_was_disturbed_is_no_rate() -> None:
    found = estimated(settings())
    assert calibrated(found, {"pretrain": 1e6})["pretrain"].work == 20.0


def test_passes_that_a_refinement_made() -> None:
    taught = estimated(settings(centroids={"sample_rows": 100}))
    assert _passes_made(taught, updates=1) == 5 + 1
    once = estimated(settings())
    assert _passes_made(once, updates=1) == 1
    assert _passes_made(once, updates=9) == 2  # no more than it may
    assert _passes_made(once, updates=None) is None
    often = estimated(settings(refine={"passes": 20, "update_interval_rows": 30}))
    assert _passes_made(often, updates=8) == 3  # 240 rows
    assert _passes_made(estimated(settings(), action="assign"), updates=None) is None


def test_a_refinement_that_stopped_early_was_not_fast() -> None:
    found = estimated(settings())
    refine = next(stage for stage in found.stages if stage.stage == "refine")
    took = {"refine": refine.fixed_seconds + refine.work_seconds / 2}
    assert calibrated(found, took, refine_passes=1)["refine"].work == pytest.approx(1.0)
    assert calibrated(found, took)["refine"].work < 0.6


def test_a_night_is_planned_as_what_it_does() -> None:
    always = ["run", "pin", "decide"]
    challenge = ["refine", "evaluate", "select", "identify", "gate", "promote"]
    labelling = ["assign", "publish", "explain", "describe", "summary", "report"]
    refit = stages(settings(), action="refit")
    assert list(refit) == [*always, "sample", "pretrain", "init_centroids", *challenge, *labelling]
    refresh = stages(settings(), action="refresh")
    assert list(refresh) == [*always, "sample", "warm_start", *challenge, *labelling]
    assert (refit["refine"].passes, refresh["refine"].passes) == (2, 3)  # schedule.refresh.passes
    assign = stages(settings(), action="assign")
    assert list(assign) == always + labelling
    assert {*refit, *refresh} - {"run"} == {stage.name for stage in STAGES}
    # What they share with a run costs what it costs there.
    run = stages(settings())
    for night in (refit, refresh, assign):
        assert all(night[name] == run[name] for name in ("pin", "assign", "publish", "explain"))
    assert refit["pretrain"] == run["pretrain"]


def test_what_is_carried_over_is_not_read() -> None:
    found = stages(settings(), action="assign", labelled=0.5)["assign"]
    whole = stages(settings())["assign"]
    assert (found.rows, found.read_bytes) == (50, 800)
    assert found.work_seconds == pytest.approx(whole.work_seconds / 2)
    nothing = stages(settings(), action="assign", labelled=0.0)["assign"]
    assert (nothing.rows, nothing.work_seconds, nothing.read_bytes) == (0, 0.0, 0)
