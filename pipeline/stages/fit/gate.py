"""gate: whether a challenger may replace the champion, rule by rule."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import ClusteringModel, Comparison
from pipeline.artifacts.nights import Champion, GateRule, Identity, NightDecision, Verdict
from pipeline.bill.costs import CostInputs, task_costs
from pipeline.bill.records import StageCosts
from pipeline.clustering.drift import bin_counts
from pipeline.clustering.kmeans import nearest_centroid
from pipeline.clustering.quality import SILHOUETTE_ROWS, macro_silhouette, stratified_rows
from pipeline.config import Config, content_of
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, run_task
from pipeline.engine import Context, stage
from pipeline.errors import PipelineError
from pipeline.input.quarantine import with_quarantine
from pipeline.input.samples import feature_parts, sampled_embeddings
from pipeline.lake.snapshots import Partition, latest_snapshot
from pipeline.registry.models import load_model, settings_of
from pipeline.registry.reference import load_bins, most_drifted
from pipeline.runs import RunFolder
from pipeline.storage import Store

log = logging.getLogger(__name__)


def _cost(run: CostInputs) -> StageCosts:
    """Silhouettes of two partitions of two samples, in two embeddings."""
    drawn, rows = min(run.sample_rows, SILHOUETTE_ROWS), run.sample_rows
    silhouette_s = run.distance_s(drawn, drawn, run.config.model.embedding)
    return task_costs(run, 4 * run.encode_s(rows) + 8 * silhouette_s, reads=4)


@stage("gate", version=1, settings=content_of("gate", "seed"), distributed=True, cost=_cost)
def gate(
    config: Config,
    context: Context,
    decision: NightDecision,
    manifest: Manifest,
    sample: Sample,
    comparison: Comparison,
    model: ClusteringModel,
    identity: Identity,
) -> Verdict:
    """Apply every rule of ``config.gate``; the verdict also lists those that are off.

    It is in ``runs/<run_id>/gate.json`` too. ``dec run`` always wants a new model: no rule applies.
    """
    if not context.by_schedule:
        verdict = Verdict(passed=True, rules=(), reason="dec run applies no rule of the gate")
        context.lake.write_json(f"{context.run_path}/gate.json", verdict.model_dump(mode="json"))
        return verdict
    champion = decision.champion if decision.usable else None
    found = run_task(
        config.execution,
        SAMPLE_IN_MEMORY,
        _measure,
        *(context.lake, manifest, sample, identity.challenger, champion, config.seed),
    )
    limits, night = config.gate, _NightBefore.of(context.lake, context.ds)
    rules = (
        _quality_rule(limits.max_quality_loss, found, decision),
        _churn_rule(limits.max_churn, identity, decision),
        _cluster_share_rule(limits.max_cluster_share, found),
        _empty_share_rule(limits.max_empty_share, found),
        _psi_rule(limits.max_psi, found, decision, night),
        _row_change_rule(limits.max_row_change, manifest, night),
        _bad_shards_rule(limits.max_bad_shards, with_quarantine(config, context, manifest)),
        _kmeans_rule(limits.max_worse_than_kmeans, comparison, model),
    )
    verdict = Verdict(passed=all(rule.passed for rule in rules), rules=rules)
    context.lake.write_json(f"{context.run_path}/gate.json", verdict.model_dump(mode="json"))
    for rule in rules:
        if not rule.passed:
            seen = (rule.name, rule.value, rule.limit, rule.detail)
            log.warning("gate: %s: %s, and the limit is %s; %s", *seen)
    return verdict


# --------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class _Silhouettes:
    """Silhouettes of two partitions of one sample, in one embedding."""

    champion: float
    challenger: float


@dataclass(frozen=True)
class _Found:
    """Result of the task: figures, never rows. NaN where embeddings are not finite.

    Attributes:
        spaces: Silhouettes in the champion's embedding and in the challenger's, on the champion's
            reference sample; empty without champion.
        spaces_now: The same on tonight's sample.
        psi: PSI of the feature that drifted most from the champion's reference sample.
    """

    largest_share: float
    largest: int
    clusters: int
    empty: float
    spaces: tuple[_Silhouettes, ...] = ()
    spaces_now: tuple[_Silhouettes, ...] = ()
    psi: float = 0.0
    psi_feature: str = ""


@dataclass(frozen=True)
class _Labelled:
    """A sample under a model: embeddings, and the position of each row's cluster."""

    z_ND: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    clusters: int

    @property
    def finite(self) -> bool:
        """Whether distances mean anything."""
        return bool(np.isfinite(self.z_ND).all())


def _measure(
    lake: Store,
    manifest: Manifest,
    sample: Sample,
    challenger: Champion,
    champion: Champion | None,
    seed: int,
) -> _Found:
    """Both models on the champion's reference sample, and on tonight's."""
    tonight = _labelled(lake, challenger.model, sample)
    rows_K = np.bincount(tonight.labels_N[tonight.labels_N >= 0], minlength=tonight.clusters)
    largest = int(rows_K.argmax())
    ids = lake.read_table(challenger.ids.path, ["position", "cluster_id"]).sort_by("position")
    sound = tonight.finite and sample.rows > 0
    found = _Found(
        largest_share=float(rows_K[largest]) / sample.rows if sound else math.nan,
        largest=ids["cluster_id"][largest].as_py(),
        clusters=tonight.clusters,
        empty=float((rows_K == 0).sum()) if sound else math.nan,
    )
    if champion is None:
        return found
    old_now = _labelled(lake, champion.model, sample)
    try:
        old, new = (
            _labelled(lake, by.model, champion.reference.sample) for by in (champion, challenger)
        )
    except FileNotFoundError as error:
        # As identify does: compare on tonight's rows, rather than not at all.
        log.warning(
            "the reference sample of champion %s is gone (%s): quality is measured on tonight's "
            "sample alone",
            *(champion.model.model_id, error),
        )
        old, new = old_now, tonight
    drift, feature = _drift(lake, champion, sample)
    return replace(
        found,
        spaces=_silhouettes(old, new, seed),
        spaces_now=_silhouettes(old_now, tonight, seed),
        psi=drift,
        psi_feature=feature,
    )


def _labelled(lake: Store, model: ClusteringModel, sample: Sample) -> _Labelled:
    loaded = load_model(lake, model, settings_of(lake, model))
    encoder, centroids_KD = loaded.clusters.encoder, loaded.clusters.centroids_KD
    z_ND = sampled_embeddings(lake, sample, loaded.scaler, {"z": encoder})["z"]
    labels_N = nearest_centroid(z_ND, centroids_KD.detach().numpy())
    return _Labelled(z_ND, labels_N, len(centroids_KD))


def _silhouettes(old: _Labelled, new: _Labelled, seed: int) -> tuple[_Silhouettes, ...]:
    """Both partitions in both embeddings, on rows drawn from every cluster of each.

    A silhouette is a ratio of distances in one space: values of different spaces cannot be
    compared, since an embedding that collapses rows onto centroids raises its own. A partition that
    is better in the other's embedding, too, is better.
    """
    if not old.finite or not new.finite:
        return (_Silhouettes(math.nan, math.nan),) * 2
    drawn = [stratified_rows(by.labels_N, by.clusters, seed) for by in (old, new)]
    return tuple(
        _Silhouettes(
            *(
                macro_silhouette(space.z_ND[rows], by.labels_N[rows])
                for by, rows in zip((old, new), drawn, strict=True)
            )
        )
        for space in (old, new)
    )


def _drift(lake: Store, champion: Champion, sample: Sample) -> tuple[float, str]:
    edges_FB, expected_FB = load_bins(lake, champion.reference.bins)
    actual_FB = np.zeros_like(expected_FB)
    for x_BF in feature_parts(lake, sample.parts):
        actual_FB += bin_counts(x_BF, edges_FB)
    return most_drifted(lake, champion.reference, actual_FB)


@dataclass(frozen=True)
class _NightBefore:
    """The newest published partition of an earlier date.

    Attributes:
        psi: PSI of the feature that drifted most from that model's reference; None: unknown.
    """

    ds: str
    model_id: str
    rows: int
    psi: float | None

    @classmethod
    def of(cls, lake: Store, ds: str) -> _NightBefore | None:
        """The night before a date; None where there is none."""
        latest = latest_snapshot(lake)
        before = latest.before(ds) if latest else None
        if latest is None or before is None:
            return None
        partition = latest.partitions[before]
        return cls(before, partition.model_id, *_figures(lake, partition))


def _figures(lake: Store, partition: Partition) -> tuple[int, float | None]:
    """Rows of the input of a night and its drift, as far as its run can be read."""
    run = RunFolder(lake, partition.run_id)
    try:
        rows, assignments = run.read_manifest().rows, run.found("assign", Assignments)
        return rows, assignments.max_psi if assignments else None
    except (OSError, PipelineError, ValueError) as error:  # no reason for a night to fail
        log.warning("gate: run %s cannot be read: %s", partition.run_id, error)
        return partition.rows, None


# --------------------------------------------------------------------------- what is allowed


def _rule(name: str, value: float, limit: float | None, detail: str = "") -> GateRule:
    """A value passes up to the limit; one that is not finite never does."""
    if not math.isfinite(value):
        detail = f"measured {value}, which no limit allows; {detail}"
        return GateRule(name=name, value=None, limit=limit, passed=limit is None, detail=detail)
    if limit is None:
        return GateRule(name=name, value=value, limit=None, passed=True, detail=f"off; {detail}")
    return GateRule(name=name, value=value, limit=limit, passed=value <= limit, detail=detail)


def _does_not_apply(name: str, limit: float | None, why: str) -> GateRule:
    return GateRule(name=name, value=None, limit=limit, passed=True, detail=f"not applied: {why}")


def _no_champion(decision: NightDecision) -> str:
    """Why there is no champion to compare with; empty where there is one."""
    if decision.champion is None:
        return "there is no champion"
    return "" if decision.usable else f"nothing to compare with, for {decision.why}"


def _quality_rule(limit: float | None, found: _Found, decision: NightDecision) -> GateRule:
    name = "max_quality_loss"
    if nothing := _no_champion(decision):
        return _does_not_apply(name, limit, nothing)
    then, now = (_quality_loss(spaces) for spaces in (found.spaces, found.spaces_now))
    # Where the input has changed for good, a model of tonight's rows is worse on the old ones. So
    # a model is worse only where it is worse on both. NaN never passes.
    loss = math.nan if math.isnan(then + now) else min(then, now)
    lines = [
        f"on {which}: {theirs.challenger:.3f} after {theirs.champion:.3f} in the champion's "
        f"embedding, {its.challenger:.3f} after {its.champion:.3f} in its own"
        for which, (theirs, its) in (
            ("the champion's sample", found.spaces),
            ("tonight's", found.spaces_now),
        )
    ]
    return _rule(name, loss, limit, f"silhouettes {'; '.join(lines)}")


def _quality_loss(spaces: tuple[_Silhouettes, ...]) -> float:
    """Silhouette of the champion minus that of the challenger, averaged over both embeddings."""
    return sum(s.champion - s.challenger for s in spaces) / len(spaces)


def _churn_rule(limit: float | None, identity: Identity, decision: NightDecision) -> GateRule:
    name = "max_churn"
    if identity.churn is None:
        why = _no_champion(decision) or "no clusters were matched"
        return _does_not_apply(name, limit, why)
    detail = (
        f"{identity.survived} clusters keep their id, {identity.born} ids are born, "
        f"{identity.died} end"
    )
    return _rule(name, identity.churn, limit, detail)


def _cluster_share_rule(limit: float | None, found: _Found) -> GateRule:
    detail = f"cluster {found.largest} is the largest"
    return _rule("max_cluster_share", found.largest_share, limit, detail)


def _empty_share_rule(limit: float | None, found: _Found) -> GateRule:
    detail = f"{found.empty:.0f} of {found.clusters} clusters have no row of tonight's sample"
    return _rule("max_empty_share", found.empty / found.clusters, limit, detail)


def _psi_rule(
    limit: float | None, found: _Found, decision: NightDecision, before: _NightBefore | None
) -> GateRule:
    """Limit of new drift; drift that last night had already is a reason to refit.

    Otherwise ``schedule.refit.on_drift`` would fit a challenger every night, and the same drift
    would refuse it.
    """
    name, champion = "max_psi", decision.champion
    if nothing := _no_champion(decision):
        return _does_not_apply(name, limit, nothing)
    moved = f"{found.psi_feature} moved most" if found.psi else "no feature moved beyond chance"
    rule = _rule(name, found.psi, limit, moved)
    if rule.passed or before is None or before.psi is None or limit is None:
        return rule
    same = champion is not None and before.model_id == champion.model.model_id
    if same and limit < before.psi and found.psi <= before.psi + limit:
        detail = (
            f"{rule.detail}; allowed, for drift was {before.psi:.3f} on ds {before.ds} already: "
            "that the input has changed for good is what a new model is for"
        )
        return rule.model_copy(update={"passed": True, "detail": detail})
    return rule


def _row_change_rule(
    limit: float | None, manifest: Manifest, before: _NightBefore | None
) -> GateRule:
    name = "max_row_change"
    if before is None or not before.rows:
        return _does_not_apply(name, limit, "nothing is published for an earlier date")
    change = abs(manifest.rows - before.rows) / before.rows
    detail = f"{manifest.rows:,} rows after {before.rows:,} of ds {before.ds}"
    return _rule(name, change, limit, detail)


def _bad_shards_rule(limit: float | None, manifest: Manifest) -> GateRule:
    bad = len(manifest.quarantined)
    # Shards that pin excluded are not among the manifest's; those excluded later are.
    every = manifest.shard_count + sum(shard.stage == "pin" for shard in manifest.quarantined)
    return _rule("max_bad_shards", bad / max(1, every), limit, f"{bad} of {every} shards")


def _kmeans_rule(limit: float | None, comparison: Comparison, model: ClusteringModel) -> GateRule:
    by_kind = {candidate.kind: candidate.separation for candidate in comparison.candidates}
    plain, shipped = by_kind["kmeans"], by_kind[model.kind]
    detail = f"separation {shipped:.2f} of {model.kind}, {plain:.2f} of plain k-means"
    return _rule("max_worse_than_kmeans", plain - shipped, limit, detail)
