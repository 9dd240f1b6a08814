"""night_summary: what the night did, as metrics.json and for the closing table."""

from __future__ import annotations

from typing import Any

from pipeline.artifacts import (
    Assignments,
    Comparison,
    Identity,
    Manifest,
    NightDecision,
    NightSummary,
    Serving,
    Snapshot,
    Verdict,
)
from pipeline.config import Config
from pipeline.engine import Context, stage


def _settings(_: Config) -> Any:
    return {}


@stage("night_summary", version=1, settings=_settings, distributed=False)
def night_summary(
    config: Config,
    context: Context,
    manifest: Manifest,
    decision: NightDecision,
    serving: Serving,
    assignments: Assignments,
    snapshot: Snapshot,
    comparison: Comparison | None = None,
    identity: Identity | None = None,
    verdict: Verdict | None = None,
) -> NightSummary:
    """Collect the figures of all stages."""
    clusters = {
        name: getattr(identity, name) if identity else 0
        for name in ("survived", "split", "merged", "born", "died")
    }
    result = NightSummary(
        run_id=context.run_id,
        ds=context.ds,
        action=decision.action,
        why=decision.why,
        refused=serving.refused,
        champion=serving.champion.model.model_id,
        challenger=identity.challenger.model.model_id if identity else None,
        entry=serving.entry,
        snapshot=snapshot.number,
        table=snapshot.table,
        rows_in=assignments.rows_in,
        rows_out=assignments.rows,
        rows_dropped=assignments.rows_dropped,
        rows_labelled=assignments.labelled_rows,
        rows_carried=assignments.carried_rows,
        rows_quarantined=assignments.rows_quarantined,
        outliers=assignments.outliers,
        shards=manifest.shard_count,
        features=manifest.width,
        cluster_ids=assignments.cluster_ids,
        cluster_rows=assignments.cluster_rows,
        mean_confidence=assignments.mean_confidence,
        **clusters,
        churn=identity.churn if identity else None,
        max_psi=assignments.max_psi,
        max_psi_feature=assignments.max_psi_feature,
        scores=assignments.scores,
        verdict=verdict,
        comparison=comparison,
        quarantined=assignments.quarantined,
        stages=tuple(context.times),
        output=context.lake.url,
    )
    context.lake.write_json(f"{context.run_path}/metrics.json", result.model_dump(mode="json"))
    return result
