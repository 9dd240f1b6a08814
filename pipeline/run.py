"""The pipeline, from a pinned table to published assignments: its table of contents."""

from __future__ import annotations

from pipeline.artifacts import Summary
from pipeline.engine import Execution
from pipeline.stages.assign import assign
from pipeline.stages.evaluate import evaluate
from pipeline.stages.init_centroids import init_centroids
from pipeline.stages.pin import pin
from pipeline.stages.pretrain import pretrain
from pipeline.stages.publish import publish
from pipeline.stages.refine import refine
from pipeline.stages.sample import sample
from pipeline.stages.select import select
from pipeline.stages.summary import summary

STAGES = (
    pin,
    sample,
    pretrain,
    init_centroids,
    refine,
    evaluate,
    select,
    assign,
    publish,
    summary,
)


def run(night: Execution) -> Summary:
    """Cluster the table and publish the cluster of every row.

    Each line completes a stage, or loads what it left when an earlier attempt completed it.
    """
    manifest = night.complete(pin)  # which shards, which version of them, which slices
    reference = night.complete(sample, manifest)  # scaler statistics, the reference sample
    autoencoder = night.complete(pretrain, manifest, reference)  # learns to reconstruct the rows
    centroids = night.complete(init_centroids, manifest, reference, autoencoder)  # k-means
    dec = night.complete(refine, manifest, reference, autoencoder, centroids)  # DEC
    fitted = (manifest, reference, autoencoder, centroids, dec)
    comparison = night.complete(evaluate, *fitted)  # with k-means, by the same rule
    model = night.complete(select, *fitted, comparison)  # DEC, or the winner
    assignments = night.complete(assign, manifest, model)  # every row, once
    snapshot = night.complete(publish, model, assignments)  # visible to readers, all at once
    return night.complete(summary, *fitted, comparison, model, assignments, snapshot)
