"""The pipeline, from a pinned table to published assignments: its table of contents."""

from __future__ import annotations

from pipeline.artifacts import Summary
from pipeline.engine import Execution
from pipeline.stages.assign import assign
from pipeline.stages.init_centroids import init_centroids
from pipeline.stages.pin import pin
from pipeline.stages.pretrain import pretrain
from pipeline.stages.publish import publish
from pipeline.stages.refine import refine
from pipeline.stages.sample import sample
from pipeline.stages.summary import summary

STAGES = (pin, sample, pretrain, init_centroids, refine, assign, publish, summary)


def run(night: Execution) -> Summary:
    """Cluster the table and publish the cluster of every row.

    Each line completes a stage, or loads what it left when an earlier attempt completed it.
    """
    manifest = night.complete(pin)  # which shards, which version of them, which slices
    reference = night.complete(sample, manifest)  # scaler statistics, the reference sample
    autoencoder = night.complete(pretrain, manifest, reference)  # learns to reconstruct the rows
    centroids = night.complete(init_centroids, manifest, reference, autoencoder)  # k-means
    model = night.complete(refine, manifest, reference, autoencoder, centroids)  # DEC
    assignments = night.complete(assign, manifest, model)  # every row, once
    snapshot = night.complete(publish, model, assignments)  # visible to readers, all at once
    return night.complete(summary, manifest, autoencoder, centroids, model, assignments, snapshot)
