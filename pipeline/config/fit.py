"""Sections of a fit: number of clusters, model, training, and evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipeline.config.sections import Affects, DefaultVersion, PositiveFloat, PositiveInt, Section


class AutoClusters(Section, affects=Affects.MODEL):
    """Number of clusters found in the data: `clusters: auto`, or `{most: 30}`."""

    most: Annotated[int, Field(ge=2, le=1000)] = 30
    """Maximum number of clusters; merging starts from twice as many cells, at least 60."""


def _auto(value: Any) -> Any:
    if value == "auto":
        return {}
    if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
        raise ValueError("must be a valid integer, or auto")
    return value


Clusters = Annotated[
    Annotated[int, Field(ge=2), Tag("[number]")] | Annotated[AutoClusters, Tag("[auto]")],
    Discriminator(lambda value: "[auto]" if isinstance(value, dict | AutoClusters) else "[number]"),
    BeforeValidator(_auto),
]


Widths = Annotated[
    Annotated[list[PositiveInt], Tag("[list]")] | Annotated[Literal["auto"], Tag("[auto]")],
    Discriminator(lambda value: "[auto]" if isinstance(value, str) else "[list]"),
]


class Model(Section, affects=Affects.MODEL):
    """Autoencoder."""

    hidden: Annotated[Widths, DefaultVersion(2)] = "auto"
    """Widths of the encoder's hidden layers; auto fits them to the table."""
    embedding: PositiveInt = 10
    """Width of the embedding."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; auto is bfloat16 where the processor supports it. Weights and
    everything else are float32."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers, once ``pipeline.config.sizing`` has fitted them."""
        assert self.hidden != "auto"
        return tuple(self.hidden)


class Embedding(Section, affects=Affects.MODEL):
    """Scale of the embedding that first centroids and refinement start from."""

    metric: Literal["table", "none"] = "table"
    """Metric of the embedding: table gives it the distances of the scaled rows, by a linear map
    that becomes a part of the network; none leaves it as pretraining made it."""
    spread: PositiveFloat | None = 1.0
    """Root mean square distance per dimension to the nearest k-means centroid that embeddings are
    scaled to; null = no scaling."""


class Augment(Section, affects=Affects.MODEL):
    """Augmentation of images; used where `source.image_shape` is given."""

    shift: float = Field(0.1, ge=0, lt=1)
    """Maximum shift, as a share of height and width."""
    rotation_degrees: float = Field(10.0, ge=0, le=180)
    """Maximum rotation."""
    zoom: float = Field(0.1, ge=0, le=1)
    """Maximum change of size; 0.1 is 10 %."""
    function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """Your own augmentation as module:function, (raw rows, torch.Generator) -> raw rows; needs no
    `source.image_shape`."""


class Optimization(Section, affects=Affects.MODEL):
    """Settings of an optimizer, shared by `pretrain` and `refine`."""

    learning_rate: PositiveFloat
    passes: int
    batch_rows: PositiveInt = 256
    """Rows per update, summed over all workers."""
    min_updates: int = Field(800, ge=0)
    """Minimum number of updates; small tables get smaller batches, down to 32 rows, to reach it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer; adamw without weight decay is Adam, sgd has momentum 0.9."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    """Decoupled weight decay per update, as a share of `learning_rate`."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate; cosine warms up over 5 % of the passes and ends at 0."""
    max_gradient_norm: PositiveFloat | None = None
    """Maximum norm of a gradient, for clipping; null = no clipping."""


class Pretrain(Optimization):
    """Training of the autoencoder to reconstruct the rows."""

    passes: PositiveInt = 30
    """Number of passes over the training rows."""
    noise: float | None = Field(None, ge=0, lt=1)
    """Share of the inputs that are masked and must be reconstructed; null = 0.2 where the embedding
    is at least a tenth as wide as the rows, else 0."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Schedule of the learning rate; cosine warms up over 5 % of the passes and ends at 0."""


class Centroids(Section, affects=Affects.MODEL):
    """First centroids, from the embeddings of a sample."""

    start: Literal["merged", "kmeans"] = "merged"
    """Source of the first centroids: merged are cells of an over-clustering, merged along the graph
    of nearest neighbours, which the encoder is taught first; kmeans are those of k-means."""
    sample_rows: PositiveInt = 100_000
    """Number of rows in the reference sample."""
    restarts: PositiveInt = 20
    """Maximum number of starts of k-means, and of merged cells in each of two spaces: embeddings
    and scaled rows. Large samples get fewer, to bound the time."""
    iterations: PositiveInt = 50
    """Lloyd iterations per start."""


class Refine(Optimization):
    """Deep embedded clustering: training of encoder and centroids together."""

    passes: int = Field(20, ge=0)
    """Maximum number of passes; 0 keeps the first partition."""
    teaching_passes: int = Field(5, ge=0)
    """Number of passes, before those, that teach the encoder the partition of merged cells."""
    size_balance: float = Field(0.25, ge=0, le=1)
    """How strongly the target evens out the sizes of clusters (gamma): 1 as in the paper, 0 not at
    all."""
    tol: float = Field(0.001, ge=0, le=1)
    """Stop rule: minimum share of rows whose label changes between two updates of the target."""
    alpha: PositiveFloat = 1.0
    """Degrees of freedom of the Student's t kernel."""
    update_interval_rows: PositiveInt | None = None
    """Training rows between two updates of the target; null = one pass. Set it where a pass takes
    hours, so that a collapse is noticed in time."""
    target: Literal["live", "frozen"] = "live"
    """Model that the target distribution is computed from: the current one, or, as in the paper,
    the one of the last update."""
    frequency_rows: PositiveInt = 1_000_000
    """Number of rows that cluster frequencies are summed over with a live target, at most one pass;
    a frozen target always sums over the whole pass."""
    learning_rate: PositiveFloat = 1e-4
    """Learning rate."""
    reconstruction_weight: float = Field(0.0, ge=0)
    """Weight of the reconstruction loss beside KL (gamma in IDEC); 0 = DEC."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs that are masked; the target is computed from all inputs."""
    max_share: float = Field(0.9, gt=0, le=1)
    """Maximum share of the rows in one cluster; beyond it the training has collapsed."""
    select: Annotated[Literal["dec", "auto"], DefaultVersion(2)] = "auto"
    """Model that is published: with auto the best of DEC and simpler clusterings, or always dec."""


class Evaluate(Section, affects=Affects.RESULT):
    """Ground truth, for tables that have it; never used for fitting."""

    label: str | None = None
    """Column with the true class."""
