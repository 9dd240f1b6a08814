"""describe: names of the clusters, and rules in the user's columns that predict them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.explanations import Description, Explanation
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion
from pipeline.artifacts.records import fingerprint_of, store_file
from pipeline.bill.costs import CostInputs, task_costs
from pipeline.bill.records import StageCosts
from pipeline.clustering.surrogate import MOST_FEATURES, MOST_ROWS, imitate
from pipeline.config import Affects, Config, Explain, content_of
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, run_task
from pipeline.engine import Context, stage
from pipeline.errors import Interrupted, LeaseHeld, OutOfMemory, PipelineError, TransientError
from pipeline.insight.explained_runs import timestamp_columns
from pipeline.insight.rules import labelled_sample, rules_table, tree_features
from pipeline.insight.traits import cluster_sizes, strongest, traits_of
from pipeline.naming import names_by_features
from pipeline.naming.endpoint import Endpoint
from pipeline.registry.clusters import name_clusters
from pipeline.schema import DESCRIBED_SCHEMA
from pipeline.storage import Store, parquet_bytes, why

log = logging.getLogger(__name__)

# Seconds per value of the sample and level of the tree.
_TREE_VALUE_S = 1e-7
_NOT_OURS = (Interrupted, LeaseHeld)  # the run is to end, whatever it is at


def _cost(run: CostInputs) -> StageCosts:
    """The sample is labelled, and a tree fitted."""
    values = min(run.sample_rows, MOST_ROWS) * min(run.manifest.width, MOST_FEATURES)
    tree_s = values * (run.config.explain.tree_depth or 0) * _TREE_VALUE_S
    return task_costs(run, run.encode_s(run.sample_rows) + tree_s, puts=6)


@stage(
    "describe",
    version=3,
    settings=content_of(Affects.DESCRIPTIONS, "seed"),
    distributed=True,
    cost=_cost,
)
def describe(
    config: Config,
    context: Context,
    champion: Champion,
    assignments: Assignments,
    explanation: Explanation | None,
) -> Description:
    """Fit decision rules on the model's sample, and name clusters that have no name.

    The rows are published by now, so that a failure here is a warning and leaves the description
    incomplete. Names go into the registry, where a name given by a person never changes.
    """
    rules, why_none = _rules(config, context, champion)
    rows_of = zip(assignments.cluster_ids, assignments.cluster_rows, strict=True)
    living = [i for i, rows in rows_of if rows]
    names = _names(config, context, explanation, champion.model) if explanation else _Names()
    clusters = _described(living, rules, names)
    path = context.stage_path("describe", "clusters.parquet")
    return Description(
        clusters=context.store(path, parquet_bytes(clusters)),
        **(rules.figures if rules else _NO_RULES),
        depth=config.explain.tree_depth or 0,
        no_rules_reason=why_none,
        named=len(names.given),
        entry=names.entry,
        model=champion.model,
        features=champion.reference.features,
        sample=champion.reference.sample,
        ids=champion.ids,
    )


# ------------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class _Rules:
    """Result of the task that fits the tree: figures and a file, never rows of the sample."""

    figures: dict[str, Any]
    clusters: dict[int, dict[str, Any]]


_MEASURED = ("predicted", "correct", "precision", "recall")
_NO_RULES: dict[str, Any] = {"rules": None, "fidelity": None, "baseline": None}
_NO_RULES |= dict.fromkeys(("fitted_rows", "held_out_rows", "considered_features"), 0)


def _rules(config: Config, context: Context, champion: Champion) -> tuple[_Rules | None, str]:
    """The rules; or None and the reason."""
    depth = config.explain.tree_depth
    if depth is None:
        return None, "explain.tree_depth is null"
    try:
        found = run_task(
            config.execution,
            SAMPLE_IN_MEMORY,
            _fitted,
            context.lake,
            context.stage_path("describe", "rules.parquet"),
            champion,
            depth,
            config.seed,
        )
    except _NOT_OURS:
        raise
    except Exception as error:  # the rows are published: missing rules are no failure
        if isinstance(error, TransientError) and not isinstance(error, OutOfMemory):
            raise  # another attempt of the run has rules
        log.warning("no rules: %s", why(error))
        return None, why(error)
    if found is None:
        return None, "the sample has too few rows"
    log.info(
        "rules agree with the model on %.1f %% of %d held-out rows; baseline %.1f %%",
        100 * found.figures["fidelity"],
        found.figures["held_out_rows"],
        100 * found.figures["baseline"],
    )
    return found, ""


def _fitted(lake: Store, path: str, champion: Champion, depth: int, seed: int) -> _Rules | None:
    model, features = champion.model, champion.reference.features
    x_NF, label_N = labelled_sample(lake, model, features, champion.reference.sample, champion.ids)
    x_NT, about = tree_features(lake, model, features, x_NF)
    tree = imitate(x_NT, label_N, depth=depth, seed=seed)
    if tree is None:
        return None
    names = (*("fidelity", "baseline", "fitted_rows"), "held_out_rows", "considered_features")
    return _Rules(
        figures={name: getattr(tree, name) for name in names}
        | {"rules": store_file(lake, path, parquet_bytes(rules_table(tree, about)))},
        clusters={
            c.cluster_id: {"held_out": c.rows} | {name: getattr(c, name) for name in _MEASURED}
            for c in tree.clusters
        },
    )


# ------------------------------------------------------------------------------------------ names


@dataclass(frozen=True)
class _Names:
    """Names of clusters."""

    of: Mapping[int, str] = field(default_factory=dict)
    # Source of each new name: "openai" or "features".
    given: Mapping[int, str] = field(default_factory=dict)
    entry: int = 0


def _names(
    config: Config, context: Context, explanation: Explanation, model: ClusteringModel
) -> _Names:
    try:
        return _registered(config, context, explanation, model)
    except _NOT_OURS:
        raise
    except Exception as error:  # as above
        log.warning("clusters got no names: %s; the next night tries again", why(error))
        return _Names()


def _registered(
    config: Config, context: Context, explanation: Explanation, model: ClusteringModel
) -> _Names:
    """Names in the registry, and new ones for living clusters without a name."""
    who = f"run {context.run_id}"
    _, known = name_clusters(context.lake, {}, who, model_id=model.model_id)
    new = _proposed(config, context, explanation, known)
    try:
        entry, known = name_clusters(
            context.lake, new.of, who, model_id=model.model_id, hold=context.hold
        )
    except _NOT_OURS:
        raise
    except PipelineError as error:
        log.warning("new names are not in the registry: %s; the next night tries again", why(error))
        return _Names(of=known)
    given = {i: by for i, by in new.given.items() if known.get(i) == new.of[i]}
    return _Names(of=known, given=given, entry=entry.number if entry and given else 0)


def _proposed(
    config: Config, context: Context, explanation: Explanation, known: Mapping[int, str]
) -> _Names:
    """New names, kept in a file so that each attempt at the run proposes the same.

    An earlier attempt may have registered them, and a language model may answer differently now.
    """
    path = context.stage_path("describe", "names.json")
    of = fingerprint_of([explanation.fingerprint, describe.settings(config)])
    with suppress(FileNotFoundError, AttributeError, LookupError, TypeError, ValueError):
        kept = context.lake.read_json(path)
        if kept["of"] == of:
            pairs = {int(i): (str(name), str(by)) for i, (name, by) in kept["names"].items()}
            return _Names(
                {i: n for i, (n, _) in pairs.items()}, {i: b for i, (_, b) in pairs.items()}
            )
    new = _new_names(config.explain, context.lake, explanation, known)
    names = {str(i): [name, new.given[i]] for i, name in new.of.items()}
    context.lake.write_json(path, {"of": of, "names": names})
    return new


def _new_names(
    settings: Explain, lake: Store, explanation: Explanation, known: Mapping[int, str]
) -> _Names:
    """Names for clusters that have none."""
    if settings.namer is None:
        return _Names()
    rows = strongest(lake, explanation.profile)
    traits = {i: found for i, found in traits_of(rows).items() if i not in known}
    asked: dict[int, str] = {}
    if settings.namer == "openai":
        assert settings.endpoint is not None  # the config was checked
        assert settings.model is not None
        endpoint = Endpoint(settings.endpoint, settings.model, settings.timeout_s)
        asked = endpoint.names(
            traits, cluster_sizes(rows), known.values(), timestamp_columns(explanation)
        )
    left = {i: found for i, found in traits.items() if i not in asked}
    by_features = names_by_features(left, {*known.values(), *asked.values()})
    given = dict.fromkeys(asked, "openai") | dict.fromkeys(by_features, "features")
    return _Names(of=asked | by_features, given=given)


def _described(living: list[int], rules: _Rules | None, names: _Names) -> pa.Table:
    """One row per cluster, see ``DESCRIBED_SCHEMA``."""
    measured = rules.clusters if rules else {}
    rows = [
        {
            **measured.get(cluster, {}),
            "cluster_id": cluster,
            "name": names.of.get(cluster),
            "named_by": names.given.get(cluster, "registry" if cluster in names.of else None),
        }
        for cluster in sorted({*living, *measured})
    ]
    return pa.Table.from_pylist(rows, DESCRIBED_SCHEMA)
