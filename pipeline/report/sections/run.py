"""The run in the report: headline, details, gate, training, time and cost."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.artifacts.models import (
    Candidate,
    Comparison,
    PretrainedAutoencoder,
    RefinedModel,
)
from pipeline.artifacts.nights import GateRule, Verdict
from pipeline.progress import duration
from pipeline.report.run_files import RunFiles
from pipeline.schema import UNDATED

NAMES: dict[str, str] = {
    "kmeans": "k-means",
    "autoencoder": "autoencoder + k-means",
    "merged": "merged cells",
    "dec": "DEC",
}
_LISTED_SHARDS = 20
# Of separation: about what another seed changes on the same rows.
_CLOSE = 0.03
_ACTIONS = {
    "refit": "a new model was fitted from scratch",
    "refresh": "training of the champion was continued",
    "assign": "the champion labelled the rows",
}


class Figure(NamedTuple):
    """A large number at the top: as text, with its meaning and an explanation in small print."""

    value: str
    name: str
    note: str = ""


class Headline(NamedTuple):
    """Headline of the report.

    Attributes:
        tone: "good", "even", "bad" or "plain": the color beside it, which the words express too.
    """

    tone: str
    title: str
    lines: tuple[str, ...]


def headline(run: RunFiles) -> Headline:
    """Whether DEC beat k-means; where nothing was fitted, what labelled the rows."""
    summary, comparison = run.summary, run.comparison
    if summary.refused:
        title = "The gate refused the new model; the champion labelled the rows"
        if summary.challenger == summary.champion:
            title = "The gate refused the new model, but no other could label the rows"
        more = _against_kmeans(comparison).lines if comparison else ()
        return Headline("bad", title, (_refusal(summary.verdict), *more))
    if comparison is not None:
        found, shipped = _against_kmeans(comparison), _name(summary.shipped)
        line = f"{shipped} won, and is the published model."
        if summary.shipped != comparison.winner:
            line = f"{_name(comparison.winner)} won; refine.select ships {NAMES[summary.shipped]}."
        return found._replace(lines=(*found.lines, line))
    fitted = f" It was fitted by run {run.champion.run_id}." if run.champion else ""
    return Headline(
        "plain",
        "The champion labelled the rows",
        (
            f"Model {summary.champion}. Nothing was fitted: {summary.why}.",
            f"Models are compared with plain k-means when they are fitted.{fitted}",
        ),
    )


def _name(kind: str) -> str:
    return NAMES[kind][0].upper() + NAMES[kind][1:]


def _against_kmeans(comparison: Comparison) -> Headline:
    by_kind = {candidate.kind: candidate for candidate in comparison.candidates}
    dec, plain = by_kind.get("dec"), by_kind.get("kmeans")
    if dec is None or plain is None:
        return Headline("plain", f"{_name(comparison.winner)} was best", ())
    figures = f"DEC’s separation is {dec.separation:.2f}, that of k-means {plain.separation:.2f}"
    same_empty = dec.empty_clusters == plain.empty_clusters
    if not same_empty:
        figures += (
            f"; it has {dec.empty_clusters:,} empty clusters against {plain.empty_clusters:,}"
        )
    measured = (
        f"{figures}. Separation says how few neighbours in the scaled features are in different "
        f"clusters, against chance and given their sizes, here on {comparison.rows:,} rows of the "
        "reference sample."
    )
    close = same_empty and abs(dec.separation - plain.separation) < _CLOSE
    ours, theirs = _order(dec), _order(plain)
    if ours < theirs:
        title = "DEC was slightly better than plain k-means" if close else "DEC beat plain k-means"
        return Headline("good", title, (measured,))
    if ours == theirs:
        return Headline("even", "DEC was as good as plain k-means, which is simpler", (measured,))
    title = f"Plain k-means was {'slightly ' if close else ''}better than DEC"
    return Headline("bad", title, (measured,))


def _order(candidate: Candidate) -> tuple[int, float]:
    return candidate.empty_clusters, -round(candidate.separation, 2)


def _refusal(verdict: Verdict | None) -> str:
    if verdict is None:
        return "See the rules of the gate below."
    if verdict.reason:
        return f"No model could be fitted: {verdict.reason}"
    broken = [rule.name for rule in verdict.rules if not rule.passed]
    return f"Broken rules: {', '.join(broken)}; see the gate below."


def figures(run: RunFiles) -> list[Figure]:
    """The numbers at the top."""
    summary = run.summary
    rows = summary.cluster_rows
    lost = summary.rows_in - summary.rows_out
    largest = max(rows, default=0) / max(1, summary.rows_out)
    found = [
        Figure(
            short(summary.rows_out),
            "rows published",
            f"of {summary.rows_in:,} in the input" if lost else "every row of the input",
        ),
        Figure(
            f"{sum(count > 0 for count in rows):,}",
            "clusters",
            f"the largest has {largest:.0%} of the rows",
        ),
        Figure(f"{summary.mean_confidence:.2f}", "mean confidence", "1 is certain"),
    ]
    if summary.churn is not None:
        of = "of the reference sample" + (", by the refused model" if summary.refused else "")
        found.append(Figure(f"{summary.churn:.1%}", "churn", of))
    if summary.max_psi is not None:
        found.append(Figure(f"{summary.max_psi:.2f}", "largest drift", "PSI of one feature"))
    if summary.scores:
        found.append(Figure(f"{summary.scores.nmi:.2f}", "NMI with the labels", "1 is perfect"))
    seconds = sum(stage.seconds for stage in summary.stages)
    found.append(Figure(duration(seconds), "time in stages", f"{len(summary.stages)} stages"))
    return found


def details(run: RunFiles) -> list[tuple[str, str]]:
    """Details of run, input, rows, model and output, as names and values."""
    summary, manifest, config = run.summary, run.manifest, run.config
    found = [("Run", summary.run_id)]
    if summary.ds != UNDATED:
        found.append(("Logical date", summary.ds))
    found.append(("Action", f"{_ACTIONS[summary.action]}, because {summary.why}"))
    if marker := run.marker("publish"):
        published = marker.finished_at.replace("T", " ").removesuffix("+00:00")
        found.append(("Published", f"{published} UTC"))
    if config:
        found.append(("Input", ", ".join(config.source.locations)))
    if manifest and manifest.table:
        found.append(("Version of the input", f"{manifest.table.format} {manifest.table.version}"))
    if manifest:
        size = f"{manifest.shard_count:,} shards, {manifest.rows:,} rows, {_bytes(manifest.bytes)}"
        found.append(("Size", size))
        found.append(("Features", _columns(manifest.features)))
        found.append(("Keys", ", ".join(manifest.keys) or "shard and row number"))
    rows = f"{summary.rows_in:,} in, {summary.rows_out:,} out"
    for count, what in (
        (summary.rows_dropped, "dropped for missing values"),
        (summary.rows_quarantined, "in bad shards"),
        (summary.rows_carried, "with labels of an earlier run"),
        (summary.outliers, "outliers in no cluster"),
    ):
        rows += f", {count:,} {what}" if count else ""
    found.append(("Rows", rows))
    model = f"{summary.champion} ({NAMES[summary.shipped]}), entry {summary.entry} of the registry"
    found.append(("Model", model))
    if summary.challenger and summary.challenger != summary.champion:
        found.append(("Challenger", summary.challenger))
    if config:
        network = "none: k-means on scaled features"
        if summary.shipped != "kmeans":
            widths = [*([manifest.width] if manifest else []), *config.model.hidden]
            network = f"encoder {' – '.join(map(str, [*widths, config.model.embedding]))}"
        found.append(("Network", network))
    if choice := summary.choice:
        found.append(("Number of clusters", f"{choice.clusters:,}, found: {choice.why}"))
    if start := summary.start:
        rules = ", ".join(f"{rule} {value:.2f}" for rule, value in start.agreement.items())
        found.append(
            (
                "Start",
                f"{start.count:,} cells of the sample's {start.space}, merged into "
                f"{summary.clusters:,} groups by {start.rule}. {start.starts} starts agree by "
                f"{rules} (adjusted Rand index), so the rule is the one they agree on most.",
            )
        )
    if summary.refine_stopped_by == "passes" and summary.label_change:
        found.append(
            (
                "Refinement",
                f"Ended by refine.passes while {summary.label_change:.2%} of the labels still "
                "changed with an update.",
            )
        )
    found += [("Output", summary.output), ("Snapshot", str(summary.snapshot))]
    if summary.table:
        found.append(("Table", summary.table))
    if run.version:
        found.append(("Version", f"dec-pipeline {run.version}"))
    return found


def skipped_shards(run: RunFiles) -> tuple[list[tuple[str, str, str]], int]:
    """Name, reason and stage of the first bad shards, and the number of all."""
    shards = run.summary.quarantined
    listed = [(shard.name, shard.reason, shard.stage) for shard in shards[:_LISTED_SHARDS]]
    return listed, len(shards)


def candidates(comparison: Comparison | None) -> list[dict[str, Any]]:
    """Rows of the table that compares the clusterings, best first."""
    return [
        {
            "name": NAMES[candidate.kind],
            "won": comparison is not None and candidate.kind == comparison.winner,
            "separation": candidate.separation,
            "silhouette": next(
                (s.silhouette for s in candidate.spaces if s.space == "features"), None
            ),
            "balance": candidate.balance,
            "stability": candidate.stability,
            "empty": candidate.empty_clusters,
            "scores": candidate.scores,
        }
        for candidate in (comparison.candidates if comparison else ())
    ]


def curves(run: RunFiles) -> dict[str, Any]:
    """Losses and label change; empty where the run fitted nothing."""
    autoencoder = run.found("pretrain", PretrainedAutoencoder)
    refined = run.found("refine", RefinedModel)
    found: dict[str, Any] = {"pretrain": list(autoencoder.losses) if autoencoder else []}
    found["updates"] = [
        {"number": u.number, "kl": u.kl, "change": u.label_change, "event": u.event}
        for u in (refined.updates if refined else ())
    ]
    if refined and refined.updates:
        found["stopped_by"] = refined.stopped_by
        found["tol"] = run.config.refine.tol if run.config else None
    return found if found["pretrain"] or found["updates"] else {}


def rules(verdict: Verdict | None) -> list[dict[str, str]]:
    """Rows of the gate's table."""
    return [
        {
            "name": rule.name.removeprefix("max_").replace("_", " "),
            "setting": f"gate.{rule.name}",
            "value": "–" if rule.value is None else f"{rule.value:.4g}",
            "limit": "off" if rule.limit is None else f"{rule.limit:.4g}",
            "verdict": _word(rule),
            "detail": rule.detail,
        }
        for rule in (verdict.rules if verdict else ())
    ]


def _word(rule: GateRule) -> str:
    if not rule.passed:
        return "refused"
    if rule.limit is None:
        return "off"
    return "passed" if rule.value is not None else "not measured"


def times(run: RunFiles) -> dict[str, Any]:
    """Actual and estimated time of each stage, and the cost."""
    summary = run.summary
    estimate = summary.estimate
    estimates = {stage.stage: stage for stage in estimate.stages} if estimate else {}
    seconds = sum(stage.seconds for stage in summary.stages)
    stages: list[dict[str, Any]] = [
        {
            "name": stage.stage,
            "seconds": stage.seconds,
            "estimated": estimates[stage.stage].seconds if stage.stage in estimates else None,
            "upper_bound": stage.stage in estimates and estimates[stage.stage].at_most,
        }
        for stage in summary.stages
    ]
    found: dict[str, Any] = {"stages": stages, "seconds": seconds, "currency": None, "notes": []}
    found["estimated_seconds"] = estimate.seconds if estimate else None
    if estimate is None:
        return found
    cluster = estimate.cluster
    core_hours = cluster.cores * seconds / 3600
    for stage in stages:  # the whole cluster waits for each of them
        stage["core_hours"] = cluster.cores * stage["seconds"] / 3600
    notes = [
        f"{core_hours:.3g} core-hours: {cluster.nodes} × {cluster.cpus_per_node:g} CPUs for "
        f"{duration(seconds)}. Estimated from {estimate.rates}."
    ]
    prices = run.config.prices if run.config else None
    if prices is None or prices.cpu_core_hour is None:
        notes.append("The config has no prices, so no cost is shown.")
    else:
        money = core_hours * prices.cpu_core_hour
        if prices.gpu_hour is not None:
            gpus = cluster.nodes * cluster.gpus_per_node
            money += gpus * seconds / 3600 * prices.gpu_hour
        for stage in stages:
            stage["cost"] = money * stage["seconds"] / max(seconds, 1e-9)
        text = f"Compute cost {money:,.2f} {prices.currency} at the config's prices"
        if estimate.money:
            text += f"; the estimate was at most {estimate.money.total:,.2f}, requests included"
        notes.append(f"{text}.")
        found["currency"] = prices.currency
    return found | {"notes": notes}


def short(number: int) -> str:
    """A count in a few characters."""
    for power, letter in ((1e9, " bn"), (1e6, " M")):
        if number >= power:
            return f"{number / power:.3g}{letter}"
    return f"{number:,}"


def _bytes(count: int) -> str:
    for power, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count} bytes"


def _columns(features: tuple[Any, ...]) -> str:
    names = [f"{c.name} (vector of {c.width})" if c.vector else c.name for c in features[:12]]
    more = len(features) - len(names)
    return ", ".join(names) + (f" and {more:,} more columns" if more else "")
