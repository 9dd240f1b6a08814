"""The settings of a run: one YAML file, one section a stage, defaults in code.

Everything here changes the result and is part of a stage's fingerprint, except ``output``,
``storage``, ``execution``, ``retention`` and ``prices``: where and on how much hardware the same
result is computed, for how long it is kept, and what that costs. ``lake`` says in which format it
is published: another one publishes the same result again. ``schedule``, ``matching``, ``gate`` and
``assign`` are for nights: they decide what a night does, and never what a run id is. ``explain``
says how clusters are described.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.credentials import find_credential
from pipeline.errors import ConfigError
from pipeline.schema import RESERVED_COLUMNS, SHARD_KEY_COLUMNS

# FAISS warns below this many points a centroid, and means below it are mostly noise.
MIN_SAMPLE_ROWS_PER_CLUSTER = 39

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


# The branch is chosen by the value, so that a wrong one is one error; tags in brackets are left out
# of the paths in messages.
Locations = Annotated[
    Annotated[str, Tag("[one]")] | Annotated[list[str], Tag("[list]")],
    Discriminator(lambda value: "[list]" if isinstance(value, list) else "[one]"),
]


class Section(BaseModel):
    """A part of the config: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Feature(Section):
    """A feature column with a type; see decision 0032."""

    column: str = Field(min_length=1, description="Name, or a glob.")
    type: Literal["auto", "number", "boolean", "category", "timestamp", "vector"] = Field(
        default="auto", description="How values are understood; auto: by the column's own type."
    )
    weight: PositiveFloat = Field(
        default=1.0, description="Beside the other columns, in distances and in the loss."
    )
    values: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=128,
        description="Category: values told apart, the most frequent ones; the rest is one.",
    )


FeatureEntry = Annotated[
    Annotated[str, Tag("[name]")] | Annotated[Feature, Tag("[typed]")],
    Discriminator(lambda entry: "[typed]" if isinstance(entry, dict | Feature) else "[name]"),
]


class AutoClusters(Section):
    """The number of clusters is found in the data; see ``pipeline.clustering.merging``."""

    most: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=30, description="At most so many; merging starts from twice as many cells, or 60."
    )


def _auto(value: Any) -> Any:
    """``auto`` in words, where that is what the config says."""
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


class Source(Section):
    """What to cluster."""

    path: Locations = Field(
        description="A file, folder or glob, local or s3://, or a list; {ds} stands for the "
        "logical date."
    )
    features: list[FeatureEntry] = Field(
        description="Vector columns or scalar columns; f_* is a glob. Or {column, type, weight}: "
        "number, boolean, category, timestamp, vector."
    )
    keys: list[str] = Field(default=[], description="Columns carried into the assignments.")
    scaling: Literal["standard", "minmax", "unit_norm", "none"] = "standard"
    nulls: Literal["error", "mean", "drop"] = Field(
        default="error",
        description="What a null, NaN or infinite feature does: stop, take the mean, drop the row. "
        "Columns with a type have a place for it.",
    )
    on_bad_shard: Literal["error", "quarantine"] = Field(
        default="error",
        description="What a corrupt, truncated, vanished or replaced shard does: stop the run, or "
        "be left out of it as a whole.",
    )
    max_bad_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the shards that quarantine may leave out; more stop the run.",
    )
    fit_rows: PositiveInt | None = Field(
        default=None, description="Rows that training learns from, drawn by seed; null = all."
    )
    held_out: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Share of the rows that training does not see, to tell learnt from memorised.",
    )
    image_shape: list[PositiveInt] | None = Field(
        default=None,
        description="[height, width] or [height, width, channels] where `features` is one column "
        "of pixels in row-major order; training then augments.",
    )
    example: Literal["digits"] | None = Field(
        default=None, description="Write this example dataset to `path` when nothing is there."
    )

    @field_validator("path", "features")
    @classmethod
    def _not_empty(cls, value: str | list[Any]) -> str | list[Any]:
        if not value or "" in ([value] if isinstance(value, str) else value):
            raise ValueError("must name at least one, and none may be empty")
        return value

    @field_validator("features", "keys")
    @classmethod
    def _no_duplicates(cls, entries: list[Any]) -> list[Any]:
        names = [_column_of(entry) for entry in entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {', '.join(twice)} more than once; name each column once")
        return entries

    @field_validator("keys")
    @classmethod
    def _no_reserved_keys(cls, names: list[str]) -> list[str]:
        if taken := sorted(set(names) & set(RESERVED_COLUMNS)):
            raise ValueError(
                f"names {', '.join(taken)}, which the assignments table defines itself; "
                "rename that column in the input or use another key"
            )
        if ours := sorted(name for name in names if name.startswith("dec_")):
            raise ValueError(
                f"names {', '.join(ours)}; names that begin with dec_ are for columns of our own. "
                "Rename that column in the input or use another key"
            )
        return names

    @field_validator("image_shape")
    @classmethod
    def _two_or_three_sides(cls, sides: list[int] | None) -> list[int] | None:
        if sides is not None and len(sides) not in (2, 3):
            raise ValueError("must be [height, width] or [height, width, channels], in pixels")
        return sides

    @property
    def feature_patterns(self) -> tuple[str, ...]:
        """Names and globs of the feature columns, in their order."""
        return tuple(_column_of(entry) for entry in self.features)

    def feature(self, column: str) -> Feature | None:
        """What the config says of a feature column beside its name; None: nothing.

        A column that is named goes by its name, and not by a glob.
        """
        named = {entry.column: entry for entry in self.features if isinstance(entry, Feature)}
        if column in self.feature_patterns:
            return named.get(column)
        globs = (entry for name, entry in named.items() if fnmatch.fnmatchcase(column, name))
        return next(globs, None)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Names of the key columns in the output: the user's, or shard name and row number."""
        return tuple(self.keys) or SHARD_KEY_COLUMNS


def _column_of(entry: str | Feature) -> str:
    return entry.column if isinstance(entry, Feature) else entry


class Model(Section):
    """The autoencoder."""

    hidden: list[PositiveInt] = Field(default=[500, 500, 2000], description="Encoder layer widths.")
    embedding: PositiveInt = Field(default=10, description="Width of the embedding.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Of matrix products; auto: bfloat16 where the processor has it. Weights and "
        "everything else are float32.",
    )


class Augment(Section):
    """Other versions of a row that mean the same; used where `source.image_shape` is given."""

    shift: float = Field(
        default=0.1, ge=0, lt=1, description="Largest shift, as a share of height and width."
    )
    rotation_degrees: float = Field(default=10.0, ge=0, le=180, description="Largest rotation.")
    zoom: float = Field(default=0.1, ge=0, le=1, description="Largest change of size; 0.1 is 10 %.")
    function: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function of your own, (raw rows, torch.Generator) -> raw rows.",
    )


class Optimization(Section):
    """How weights follow their gradients."""

    learning_rate: PositiveFloat
    passes: int
    batch_rows: PositiveInt = Field(default=256, description="Rows an update, over all workers.")
    min_updates: int = Field(
        default=800,
        ge=0,
        description="Small tables: smaller batches, down to 32 rows, for this many updates.",
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="Without weight decay, adamw is Adam; sgd has momentum 0.9."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Decoupled, as a share of learning_rate an update."
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="Of the learning rate; cosine warms up over 5 % of the passes and ends at 0.",
    )
    max_gradient_norm: PositiveFloat | None = Field(
        default=None, description="Longer gradients are scaled down to this; null leaves them."
    )


class Pretrain(Optimization):
    """Learning to reconstruct the rows."""

    passes: PositiveInt = Field(default=30, description="Times that every training row is seen.")
    noise: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of the inputs hidden, to be reconstructed; null = 0.2 where the "
        "embedding is at least a tenth as wide as the rows, and 0 where it is narrower.",
    )
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"


class Centroids(Section):
    """The first centroids: k-means on the embeddings of a sample."""

    sample_rows: PositiveInt = Field(default=100_000, description="Rows of the reference sample.")
    restarts: PositiveInt = Field(
        default=20, description="k-means runs, the best is kept; fewer where they took too long."
    )
    iterations: PositiveInt = Field(default=50, description="Lloyd iterations a run.")


class Refine(Optimization):
    """Deep embedded clustering: encoder and centroids together."""

    passes: int = Field(default=20, ge=0, description="At most; 0 keeps the k-means partition.")
    tol: float = Field(
        default=0.001, ge=0, le=1, description="Stop when fewer labels change between updates."
    )
    alpha: PositiveFloat = Field(default=1.0, description="Degrees of freedom of the kernel.")
    start_spread: PositiveFloat | None = Field(
        default=1.0,
        description="Root mean square distance to the first centroids, a dimension, to which "
        "embeddings are scaled before; null leaves them as the autoencoder made them.",
    )
    update_interval_rows: PositiveInt | None = Field(
        default=None,
        description="Rows learnt from between two updates of the target; null = one pass, too "
        "far apart to notice a collapse in time where a pass takes hours.",
    )
    target: Literal["live", "frozen"] = Field(
        default="live",
        description="What is sharpened into the target: the model as it stands, or as it stood "
        "at the last update, as in the paper.",
    )
    frequency_rows: PositiveInt = Field(
        default=1_000_000,
        description="Rows that the frequency of clusters is summed over while the target is live; "
        "at most a pass. A frozen target has the sum over the whole pass.",
    )
    learning_rate: PositiveFloat = 1e-4
    reconstruction_weight: float = Field(
        default=0.0, ge=0, description="Of the decoder's error beside KL (IDEC's gamma); 0 = DEC."
    )
    noise: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the inputs hidden; the target sees all."
    )
    max_share: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="A cluster that grows beyond this share of the rows has swallowed the others.",
    )
    select: Literal["dec", "auto"] = Field(
        default="dec",
        description="What is shipped: dec, or auto for the winner of DEC and its two baselines.",
    )


class Evaluate(Section):
    """Ground truth, for tables that have it. Never used for fitting."""

    label: str | None = Field(default=None, description="Column with the true class.")


# Of pyiceberg's properties, those that let somebody in: s3.access-key-id, credential, token, …
_CREDENTIAL_PROPERTY = re.compile(
    r"access-?key|secret|token$|passw|credential|signature|(^|\.)(key|oauth2)$", re.I
)


class Lake(Section):
    """The format in which other engines find the published assignments.

    The snapshot log is kept in every format; it decides what is published, and a table follows it.
    """

    format: Literal["parquet", "iceberg", "delta"] = Field(
        default="parquet", description="parquet: files that the snapshot log names."
    )
    table: str = Field(
        default="dec.assignments",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*$",
        description="Iceberg: namespace.name in the catalog.",
    )
    catalog: dict[str, str] = Field(
        default={},
        description="Iceberg: properties of the catalog, as pyiceberg has them, but credentials; "
        "{} is a SQLite file below a local output.",
    )

    @field_validator("catalog")
    @classmethod
    def _no_credentials(cls, properties: dict[str, str]) -> dict[str, str]:
        for name, value in properties.items():
            if _CREDENTIAL_PROPERTY.search(name) or re.search(r"://[^/?#]*@", value):
                # A plain error of pydantic would repeat the value.
                raise ConfigError(
                    f"lake.catalog.{name} holds a credential; take it out of the config and set "
                    f"the variable PYICEBERG_CATALOG__DEC__{re.sub('[.]', '__', name).upper()}"
                )
        return properties


class Refit(Section):
    """When a new model is fitted from scratch."""

    every_days: PositiveInt | None = Field(
        default=7, description="Days from the champion's ds to tonight's; null = never by age."
    )
    on_drift: bool = Field(
        default=True,
        description="Also when a feature of last night's rows had a PSI over gate.max_psi.",
    )


class Refresh(Section):
    """When the champion is trained on: its encoder, scaler and centroids, a few passes."""

    every_days: PositiveInt | None = Field(
        default=None, description="Days from the champion's ds to tonight's; null = never."
    )
    passes: PositiveInt = Field(default=3, description="Of refinement, at most.")


class Schedule(Section):
    """What `dec nightly` does on which night; on all others the champion labels the rows."""

    refit: Refit = Refit()
    refresh: Refresh = Refresh()
    retry_days: PositiveInt = Field(
        default=1, description="Days after a refused challenger until the next is fitted."
    )


class Outliers(Section):
    """Which rows belong to no cluster."""

    rule: Literal["distance"] = Field(
        default="distance",
        description="distance: farther from their centroid than most of the reference sample.",
    )
    quantile: float = Field(
        default=0.999, gt=0.5, lt=1, description="Of the sample's distances in each cluster."
    )


class Assign(Section):
    """How rows get their cluster in `dec nightly`."""

    incremental: bool = Field(
        default=True,
        description="Results of shards that did not change since they were labelled by the same "
        "model are carried into tonight's snapshot by reference; for lake.format: parquet.",
    )
    outliers: Outliers | None = Field(
        default=None, description="Rows that get cluster id -1; null = none."
    )


class Explain(Section):
    """What is said of the clusters beside which row is in which; decides nothing that is learnt."""

    columns: list[str] = Field(
        default=[],
        description="Columns that rows are not clustered by, and that clusters are told apart by "
        "all the same: numbers, booleans, categories, dates and timestamps. Their frequent values "
        "are in the profile: name none that tells who somebody is.",
    )
    exemplars: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="Rows that stand for a cluster: so many of the most central, of the most "
        "typical and of the most ambiguous; fewer where there are very many clusters.",
    )

    tree_depth: int | None = Field(
        default=5,
        ge=1,
        le=8,  # 256 leaves: more is no explanation
        description="Levels of the decision tree that tells clusters apart by rules in your own "
        "columns; null = no tree.",
    )
    namer: Literal["features", "openai"] | None = Field(
        default="features",
        description="Who names clusters that have no name: their strongest features, or a language "
        "model at `endpoint`, which is sent what the profile says of each, and no row or key; "
        "null = nobody.",
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/@?#\s]+(/[^@?#\s]*)?$",
        description="For namer: openai: base URL of an OpenAI-compatible API, such as "
        "https://api.openai.com/v1; its key is in DEC_NAMER_API_KEY.",
    )
    model: str | None = Field(default=None, min_length=1, description="Of that endpoint.")
    timeout_s: PositiveFloat = Field(default=30.0, description="For each of its answers.")

    @model_validator(mode="after")
    def _somebody_to_ask(self) -> Explain:
        if self.namer == "openai" and not (self.endpoint and self.model):
            raise ValueError("explain.namer: openai needs explain.endpoint and explain.model")
        return self

    @field_validator("columns")
    @classmethod
    def _named_once(cls, names: list[str]) -> list[str]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {', '.join(twice)} more than once; name each column once")
        if "" in names:
            raise ValueError("none may be empty")
        return names


class Matching(Section):
    """When a cluster of a new model is one that we know, on the champion's reference sample."""

    survives: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the old cluster's rows that the new one must hold, or of the new "
        "one's that must come from the old; see decision 0023 for merges and splits.",
    )
    splits: float = Field(
        default=0.2, gt=0, le=1, description="Share of an old cluster's rows that makes a part."
    )
    dies: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="An old cluster with less than this share of its former rows is gone tonight, "
        "and a new one that the reference sample explains so little of is born.",
    )


class Gate(Section):
    """What a challenger must be to take the champion's place; null = the rule is off."""

    max_quality_loss: float | None = Field(
        default=0.05,
        ge=0,
        description="In silhouette against the champion, the mean over both embeddings; on the "
        "champion's reference sample or on tonight's, whichever is the smaller loss.",
    )
    max_churn: float | None = Field(
        default=0.5, ge=0, le=1, description="Share of the reference sample whose id changes."
    )
    max_cluster_share: float | None = Field(
        default=0.9, gt=0, le=1, description="Of the rows, in the largest cluster."
    )
    max_empty_share: float | None = Field(
        default=0.2, ge=0, le=1, description="Of the clusters, without any row of the sample."
    )
    max_psi: float | None = Field(
        default=0.25,
        ge=0,
        description="Population stability index of the feature that moved most, against the "
        "champion's reference sample.",
    )
    max_row_change: float | None = Field(
        default=0.5, ge=0, description="Of the number of rows against last night's, either way."
    )
    max_bad_shards: float | None = Field(
        default=0.05, ge=0, le=1, description="Share of the shards that are left out."
    )
    max_worse_than_kmeans: float | None = Field(
        default=0.05, ge=0, description="In modularity, of what is shipped against plain k-means."
    )


class Storage(Section):
    """Which object store s3:// means, and how to talk to it; null leaves it to the environment.

    Credentials are no settings: they come from the environment, a profile or a role.
    """

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/@\s]+/?$",
        description="URL of a store that is not AWS; null: AWS_ENDPOINT_URL, or AWS.",
    )
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$", description="AWS_REGION.")
    addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto",
        description="path: host/bucket/key; virtual: bucket.host/key; auto: virtual for AWS.",
    )
    anonymous_buckets: list[str] = Field(
        default=[], description="Buckets that are read without credentials."
    )
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None,
        description="On the server's side, asked for with every write but Iceberg's metadata.",
    )
    kms_key: str | None = Field(default=None, description="Id or ARN of the key, for aws:kms.")

    @model_validator(mode="after")
    def _key_of_kms(self) -> Storage:
        if self.kms_key and not (self.encryption or "").startswith("aws:kms"):
            raise ValueError("storage.kms_key is for storage.encryption: aws:kms; set that too")
        return self


class Execution(Section):
    """On how much hardware, and in which portions; not what is learnt from which rows."""

    workers: PositiveInt = Field(default=2, description="Training workers.")
    min_workers: PositiveInt | None = Field(
        default=None,
        description="Elastic: training begins and goes on with as few, and grows when nodes come; "
        "null = begins with exactly `workers`, and goes on with what is left.",
    )
    cpus_per_worker: PositiveFloat | None = Field(
        default=None, description="CPUs each reserves; null shares out what the cluster has."
    )
    gpus_per_worker: int = Field(
        default=0, ge=0, le=1, description="GPUs each reserves: one, or none; never a share of one."
    )
    placement: Literal["pack", "spread"] = Field(
        default="pack",
        description="Of training workers: on few nodes, which add up faster, or on many.",
    )
    actors: PositiveInt | None = Field(
        default=None, description="Actors that assign, at most; null = `workers`."
    )
    min_actors: PositiveInt | None = Field(
        default=None,
        description="Elastic: assigning begins with as few, and takes nodes that come; null = "
        "exactly `actors`.",
    )
    cpus_per_actor: PositiveFloat | None = Field(
        default=None, description="CPUs each reserves; null = `cpus_per_worker`."
    )
    gpus_per_actor: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Share of a GPU that each reserves: 0.25 puts four on one.",
    )
    cache_mib: int = Field(
        default=2048,
        ge=0,
        description="Training rows a worker may keep in memory; else it streams.",
    )
    target_slice_mib: PositiveInt = Field(
        default=64, description="Parquet bytes of the wanted columns in one unit of work."
    )
    checkpoint_seconds: PositiveInt = Field(
        default=300, description="A killed training loses at most this much, and a pass."
    )
    grace_seconds: PositiveInt = Field(
        default=25,  # Kubernetes kills after 30
        description="On SIGTERM a training saves where it is, which may take this long; then the "
        "run leaves anyway.",
    )
    retries: int = Field(
        default=2,
        ge=0,
        description="Times that a stage goes on after losing workers, without getting further.",
    )
    node_wait_seconds: int = Field(
        default=120,
        ge=0,
        description="Wait for the replacement of a lost node, before going on with fewer workers.",
    )
    scale_up_seconds: int = Field(
        default=900,
        ge=0,
        description="Wait for nodes that an autoscaler has yet to add; a GPU's take minutes.",
    )
    lease_seconds: PositiveInt = Field(
        default=60,
        description="A run that shows no life for this long is taken for dead: another start of "
        "its ds may go on.",
    )


class Retention(Section):
    """What `dec gc` keeps."""

    snapshots: PositiveInt = Field(default=30, description="Newest snapshots that are kept.")
    days: int = Field(
        default=30, ge=0, description="Snapshots that were the newest within this time stay too."
    )
    unpublished_days: PositiveInt = Field(
        default=7, description="A run that died is removed when it wrote nothing for this long."
    )
    tuning_days: PositiveInt = Field(
        default=30,
        description="A tuning, its trials and what it recommends, is removed when it is so old.",
    )
    champions: PositiveInt = Field(
        default=5, description="Newest champions that `dec rollback` can go back to."
    )


class Prices(Section):
    """What things cost, for `dec plan`; null leaves them out of the bill."""

    currency: str = Field(default="USD", description="Only shown.")
    cpu_core_hour: float | None = Field(default=None, ge=0, description="A core for an hour.")
    gpu_hour: float | None = Field(default=None, ge=0, description="A GPU for an hour.")
    get_requests_per_1000: float | None = Field(
        default=None, ge=0, description="GET and HEAD requests to the object store."
    )
    put_requests_per_1000: float | None = Field(
        default=None, ge=0, description="PUT, POST and LIST requests to the object store."
    )
    read_gib: float | None = Field(
        default=None, ge=0, description="Transfer from the object store, where that is not free."
    )


class Mlflow(Section):
    """An MLflow tracking store; its credentials are in MLFLOW_TRACKING_USERNAME and so on."""

    uri: str = Field(min_length=1, description="https://…, or a file: sqlite:////path/mlflow.db.")
    experiment: str = Field(default="dec-pipeline", min_length=1)


class Openlineage(Section):
    """Where lineage goes, and under which name; a server's key is in OPENLINEAGE_API_KEY."""

    to: str = Field(
        min_length=1, description="URL of a server, or a file that grows by one line an event."
    )
    namespace: str = Field(default="dec-pipeline", min_length=1, description="Of the job.")
    job: str = Field(default="dec", min_length=1, description="Its name, the same every night.")

    @field_validator("to")
    @classmethod
    def _server_or_file(cls, to: str) -> str:
        if "://" in to and not to.startswith(("http://", "https://")):
            raise ValueError("must be the http(s):// URL of a server, or the path of a local file")
        return to


class Track(Section):
    """Who else is told how a run goes; null: nobody. What fails there never ends a run."""

    mlflow: Mlflow | None = None
    tensorboard: str | None = Field(
        default=None,
        min_length=1,
        description="A folder, local or s3://, in which each run gets one of its own.",
    )
    openlineage: Openlineage | None = None


class Config(Section):
    """All settings of a run."""

    source: Source
    output: str = Field(min_length=1, description="The lake: a folder, or s3://bucket/prefix/.")
    clusters: Clusters = Field(
        description="K, the number of clusters; auto, or {most: 30}, finds it in the sample."
    )
    model: Model = Model()
    augment: Augment = Augment()
    pretrain: Pretrain = Pretrain()
    centroids: Centroids = Centroids()
    refine: Refine = Refine()
    evaluate: Evaluate = Evaluate()
    schedule: Schedule = Schedule()
    matching: Matching = Matching()
    gate: Gate = Gate()
    assign: Assign = Assign()
    explain: Explain = Explain()
    lake: Lake = Lake()
    execution: Execution = Execution()
    retention: Retention = Retention()
    storage: Storage = Storage()
    prices: Prices = Prices()
    track: Track = Track()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _sample_feeds_every_cluster(self) -> Config:
        needed = MIN_SAMPLE_ROWS_PER_CLUSTER * self.most_clusters
        name = "clusters.most" if isinstance(self.clusters, AutoClusters) else "clusters"
        if self.centroids.sample_rows < needed:
            raise ValueError(
                f"centroids.sample_rows={self.centroids.sample_rows} must be >= {needed} "
                f"({MIN_SAMPLE_ROWS_PER_CLUSTER} rows for each of {name}={self.most_clusters})"
            )
        return self

    @model_validator(mode="after")
    def _label_is_no_feature(self) -> Config:
        if self.evaluate.label in self.source.feature_patterns:
            raise ValueError(
                f"evaluate.label={self.evaluate.label!r} is in source.features too; ground truth "
                "is for scoring only. Take it out of one of them"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_not_explained(self) -> Config:
        if both := sorted(set(self.explain.columns) & set(self.source.keys)):
            raise ValueError(
                f"explain.columns names {', '.join(both)}, which source.keys does too; a profile "
                "would hold keys, and dec forget would not find them. Take it out of one of them"
            )
        return self

    @model_validator(mode="after")
    def _fewest_are_no_more_than_most(self) -> Config:
        run = self.execution
        for few, fewest, many, most in (
            ("min_workers", run.min_workers, "workers", run.workers),
            ("min_actors", run.min_actors, "actors", run.actors or run.workers),
        ):
            if fewest is not None and fewest > most:
                raise ValueError(
                    f"execution.{few}={fewest} must be <= execution.{many}, which is {most}"
                )
        return self

    @model_validator(mode="after")
    def _catalog_on_s3(self) -> Config:
        if self.lake.format == "iceberg" and not self.lake.catalog and "://" in self.output:
            raise ValueError(
                f"lake.catalog must be set for output={self.output}: a SQLite file cannot lie in "
                "an object store. Give {type: rest, uri: https://…}, {type: glue}, or {type: sql, "
                "uri: sqlite:////a/local/path.db} where one machine is all that publishes"
            )
        return self

    @property
    def most_clusters(self) -> int:
        """K; where that is found in the data, the most that may be found.

        What a model has is in its artifacts, and that is what stages go by.
        """
        return self.clusters.most if isinstance(self.clusters, AutoClusters) else self.clusters

    @property
    def clusters_as_json(self) -> Any:
        """The setting ``clusters``, for fingerprints."""
        return self.model_dump(mode="json", include={"clusters"})["clusters"]

    def result_settings(self) -> dict[str, Any]:
        """The settings that change the result, as JSON values.

        The size of slices is among them: it decides which rows share a part file.
        """
        where = {"output", "lake", "execution", "retention", "storage", "prices", "track"}
        of_nights = {"schedule", "matching", "gate", "assign"}
        settings = self.model_dump(mode="json", exclude={*where, *of_nights, "explain"})
        return settings | {"target_slice_mib": self.execution.target_slice_mib}

    def fit_settings(self) -> dict[str, Any]:
        """The settings that decide what is learnt from given rows, as JSON values."""
        source = {"features", "scaling", "nulls", "fit_rows", "held_out", "image_shape"}
        sections = {"clusters", "model", "augment", "pretrain", "centroids", "refine", "seed"}
        settings = self.model_dump(mode="json", include=sections)
        return settings | {"source": self.source.model_dump(mode="json", include=source)}

    def to_yaml(self) -> str:
        """The resolved config, every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply ``a.b=value`` overrides to it.

    Args:
        path: A YAML file.
        overrides: Settings as ``section.name=value``; the value is YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, or settings are wrong; the message has one
            line for each wrong setting.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"config {path} cannot be read: {reason}; give a YAML file") from None
    settings = _parse_yaml(text, where=f"config {path}")
    if not isinstance(settings, dict):
        raise ConfigError(f"config {path} holds no settings; expected YAML such as 'clusters: 10'")
    for override in overrides:
        _apply(settings, override)
    if found := find_credential(settings):
        raise ConfigError(
            f"{found}; a config never does. Take it out: credentials come from the environment "
            "(AWS_ACCESS_KEY_ID and so on), a profile or a role"
        )
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error))) from None


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-13-45 looks like a date
        reason = re.sub(r"\s+", " ", _without_excerpt(error))
        raise ConfigError(f"{where} is not valid YAML: {reason}") from None


def _without_excerpt(error: Exception) -> str:
    """What is wrong with a YAML text, and where, but none of its lines: they may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        problem = re.sub(r"'[^'<]{3,}'", "'…'", error.problem or "it")  # may be a name in the text
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    return str(error)


def _apply(settings: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator or not all(name.split(".")):
        raise ConfigError(f"--set {override!r} must look like refine.alpha=1.0")
    *sections, last = name.split(".")
    for section in sections:
        inner = settings.get(section)
        settings[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        settings = inner
    settings[last] = _parse_yaml(value, where=f"--set {name}")


def _describe(error: ValidationError) -> Iterator[str]:
    for issue in error.errors():
        # pydantic puts the branch of a union behind the field: source.path.list[str]
        location = [str(part) for part in issue["loc"] if not re.search(r"[\[\]]", str(part))]
        path = ".".join(location) or "config"
        got = issue.get("input")
        match issue["type"]:
            case "missing":
                yield f"{path} is missing; the config must set it"
            case "extra_forbidden":
                known = _settings_of(location[:-1])
                near = difflib.get_close_matches(location[-1], known, n=1)
                hint = f"known here: {', '.join(known)}"
                if near:
                    hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?"
                yield f"{path} is not a setting; {hint}"
            case "value_error":
                message = issue["msg"].removeprefix("Value error, ")
                yield message if path == "config" else f"{path}={got!r} {message}"
            case _:
                message = issue["msg"].replace("Input should be", "must be")
                yield f"{path}={got!r} {message[0].lower()}{message[1:]}"


def _settings_of(location: Sequence[str]) -> list[str]:
    """Names of the settings in the section at this path."""
    section: Any = Config
    for name in location:
        if name.isdecimal():  # of a list, whose items may be a section
            section = Feature
            continue
        section = section.model_fields[name].annotation
        if isinstance(section, types.UnionType) or typing.get_origin(section) is typing.Union:
            kinds = (getattr(kind, "__origin__", kind) for kind in typing.get_args(section))
            section = next(kind for kind in kinds if hasattr(kind, "model_fields"))
    return list(section.model_fields)
