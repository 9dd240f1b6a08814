"""The estimate of a run: arithmetic on what each of its stages declares (decision 0035).

A pure function of the footers' figures, the settings, the cluster and the rates. Every stage has a
fixed part, which starts processes and does not grow with rows, and its work. Where the work depends
on the data, such as refinement that stops once labels stay, it is the most that the stage takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bill.costs import MIB, CostInputs
from pipeline.bill.records import Estimate, Money, StageCosts, StageEstimate, StageFactor
from pipeline.engine import Stage
from pipeline.storage import S3_SCHEME

DEFAULTS = "defaults, not measured here"

# Python, torch, pyarrow and Ray themselves, as measured in an idle worker.
_BASE_MIB = 450
# Requests of a stage for its marker and the lease.
_STAGE_GETS, _STAGE_PUTS = 3, 4
# Renewals of the lease in the time that it lasts: a GET, a LIST and a PUT each.
_RENEWALS = 12


def estimate(
    stages: Sequence[Stage[..., Any]],
    run: CostInputs,
    *,
    factors: Mapping[str, StageFactor] | None = None,
    rates_from: str = DEFAULTS,
) -> Estimate:
    """Estimate the cost of a run; ``rates_from`` is the origin of rates and factors, in words."""
    factors = dict(factors or {})
    found = [
        _estimated(stage.name, stage.cost(run), run, factors.get(stage.name, StageFactor()))
        for stage in stages
    ]
    found.insert(0, _around(run, sum(stage.seconds for stage in found)))
    return Estimate(
        stages=tuple(found),
        cluster=run.cluster,
        products=run.products,
        rates=rates_from,
        factors=factors,
        money=_money(run, found),
    )


def _estimated(name: str, costs: StageCosts, run: CostInputs, factor: StageFactor) -> StageEstimate:
    """A stage computes while it waits for the store, and the longer of the two counts."""
    cluster, to_s3 = run.cluster, run.config.output.startswith(S3_SCHEME)
    gets = run.from_s3 * costs.input_gets + to_s3 * costs.gets
    wait = gets * run.rates.request_s / max(1.0, costs.readers)
    if run.from_s3:
        wait = max(wait, costs.read_bytes / (cluster.nodes * run.rates.network_mb_s * 1e6))
    fixed = costs.fixed_seconds * factor.fixed
    work = max(costs.work_seconds, wait) * factor.work
    hours = (fixed + work) / 3600
    declared = costs.model_dump(include=set(StageEstimate.model_fields))
    marked = {
        "gets": gets + to_s3 * _STAGE_GETS,
        "puts": run.from_s3 * costs.input_puts + to_s3 * (costs.puts + _STAGE_PUTS),
        "fixed_seconds": fixed,
        "work_seconds": work,
    }
    return StageEstimate(
        **declared | marked,
        stage=name,
        busy_core_hours=costs.work_seconds * costs.cores * factor.work / 3600,
        core_hours=hours * cluster.cores,
        gpu_hours=hours * cluster.nodes * cluster.gpus_per_node,
        memory_mib=_BASE_MIB + costs.held_bytes / MIB,
    )


def _around(run: CostInputs, seconds: float) -> StageEstimate:
    """The cost that belongs to no stage: starting Ray, the lease, the run's own files."""
    fixed = run.rates.ray_s if run.cluster.started_here else 0.0
    renewals = (fixed + seconds) / run.config.execution.lease_seconds * _RENEWALS
    gets, puts = renewals + 7, 2 * renewals + 6
    costs = StageCosts(gets=gets, puts=puts, readers=math.inf, fixed_seconds=fixed)  # unwaited
    return _estimated("run", costs, run, StageFactor())


def _money(run: CostInputs, stages: Sequence[StageEstimate]) -> Money | None:
    prices = run.config.prices
    if not prices.model_dump(exclude={"currency"}, exclude_none=True):
        return None
    names = ("core_hours", "gpu_hours", "gets", "puts", "read_bytes")
    cores, gpus, gets, puts, read = (sum(getattr(s, name) for s in stages) for name in names)
    get_price, put_price = prices.get_requests_per_1000 or 0, prices.put_requests_per_1000 or 0
    return Money(
        currency=prices.currency,
        compute=cores * (prices.cpu_core_hour or 0) + gpus * (prices.gpu_hour or 0),
        requests=(gets * get_price + puts * put_price) / 1000,
        transfer=run.from_s3 * read / 2**30 * (prices.read_gib or 0),
    )
