"""warm_start: start a refresh from the champion instead of random weights."""

from __future__ import annotations

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.models import InitialCentroids, PretrainedAutoencoder
from pipeline.artifacts.nights import NightDecision, WarmStart
from pipeline.config import Config
from pipeline.engine import Context, stage


@stage("warm_start", version=1, distributed=False)
def warm_start(
    config: Config, context: Context, decision: NightDecision, sample: Sample
) -> WarmStart:
    """The champion's scaler with tonight's sample, its autoencoder, its centroids."""
    assert decision.champion is not None
    model = decision.champion.model
    assert model.weights is not None  # decide refreshes nothing that has no encoder
    return WarmStart(
        sample=sample.model_copy(update={"scaler": model.scaler, "scaling": model.scaling}),
        autoencoder=PretrainedAutoencoder(weights=model.weights, losses=(), rows=0),
        centroids=InitialCentroids(
            weights=model.weights,
            centroids=model.centroids,
            kmeans=model.centroids,
            objectives=(),
            objective=0.0,
            sample_rows=sample.rows,
            cluster_rows=(),
        ),
    )


def refreshed(config: Config) -> Config:
    """Settings of a refresh: fewer passes."""
    refine = config.refine.model_copy(update={"passes": config.schedule.refresh.passes})
    return config.model_copy(update={"refine": refine})
