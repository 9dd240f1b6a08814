"""promote: make a challenger that passed the gate the champion."""

from __future__ import annotations

import logging

from pipeline.artifacts.nights import Identity, NightDecision, Serving, Verdict
from pipeline.bill.records import StageCosts
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.errors import CommitConflict
from pipeline.registry import entries as registry
from pipeline.registry.champions import clusters_since

log = logging.getLogger(__name__)


@stage("promote", version=1, distributed=False, cost=lambda _: StageCosts(gets=4, puts=4))
def promote(
    config: Config, context: Context, decision: NightDecision, identity: Identity, verdict: Verdict
) -> Serving:
    """Add an entry to the registry before any row is labelled with the new ids.

    Raises:
        CommitConflict: The registry changed since the decision; the same run id decides anew.
    """
    if not verdict.passed and decision.champion is not None and decision.usable:
        log.warning("the gate refused %s", identity.challenger.model.model_id)
        return Serving(champion=decision.champion, entry=decision.entry, refused=True)
    lake, commit_id = context.lake, f"{context.run_id}-{identity.fingerprint[:16]}"
    latest = registry.latest_entry(lake)
    if latest is not None and latest.commit_id == commit_id:  # killed before it could say so
        return Serving(champion=latest.champion, entry=latest.number, refused=not verdict.passed)
    after, clusters = decision.entry, identity.clusters
    if latest is not None and latest.number != decision.entry:
        # Names given meanwhile are kept. With another champion, the matching is void.
        since = clusters_since(lake, identity, decision, latest)
        if since is not None:
            after, clusters = latest.number, since
    reason = f"{decision.action}: {decision.why}"
    if not verdict.passed:
        reason += "; refused by the gate, but nothing else can label these rows"
    try:
        entry = registry.append(
            lake,
            after,
            action="promote",
            commit_id=commit_id,
            who=f"run {context.run_id}",
            reason=reason,
            champion=identity.challenger,
            clusters=clusters,
            transitions=(*(latest.transitions if latest else ()), identity.transitions),
            hold=context.hold,
        )
    except CommitConflict:
        # The ids were matched to clusters that are no longer the newest.
        lake.write_bytes(context.stage_path("decide", "done.json"), b"")
        raise
    return Serving(champion=entry.champion, entry=entry.number, refused=not verdict.passed)
