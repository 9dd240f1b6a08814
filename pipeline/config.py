"""The settings of a run: one YAML file, one section a stage, defaults in code.

Everything here changes the result and is part of a stage's fingerprint, except ``output`` and
``execution``, which say where and on how much hardware the same result is computed.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

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


class Source(Section):
    """What to cluster."""

    path: Locations = Field(description="A file, folder or glob, local or s3://, or a list.")
    features: list[str] = Field(description="Vector columns or scalar columns; f_* is a glob.")
    keys: list[str] = Field(default=[], description="Columns carried into the assignments.")
    scaling: Literal["standard", "minmax", "unit_norm", "none"] = "standard"
    nulls: Literal["error", "mean", "drop"] = Field(
        default="error",
        description="What a null, NaN or infinite feature does: stop, take the mean, drop the row.",
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
    def _not_empty(cls, value: str | list[str]) -> str | list[str]:
        if not value or "" in ([value] if isinstance(value, str) else value):
            raise ValueError("must name at least one, and none may be empty")
        return value

    @field_validator("features", "keys")
    @classmethod
    def _no_duplicates(cls, names: list[str]) -> list[str]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {', '.join(twice)} more than once; name each column once")
        return names

    @field_validator("keys")
    @classmethod
    def _no_reserved_keys(cls, names: list[str]) -> list[str]:
        if taken := sorted(set(names) & set(RESERVED_COLUMNS)):
            raise ValueError(
                f"names {', '.join(taken)}, which the assignments table defines itself; "
                "rename that column in the input or use another key"
            )
        return names

    @field_validator("image_shape")
    @classmethod
    def _two_or_three_sides(cls, sides: list[int] | None) -> list[int] | None:
        if sides is not None and len(sides) not in (2, 3):
            raise ValueError("must be [height, width] or [height, width, channels], in pixels")
        return sides

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Names of the key columns in the output: the user's, or shard name and row number."""
        return tuple(self.keys) or SHARD_KEY_COLUMNS


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


class Execution(Section):
    """On how much hardware, and in which portions; not what is learnt from which rows."""

    workers: PositiveInt = Field(default=2, description="Training workers and assign actors.")
    cpus_per_worker: PositiveFloat | None = Field(
        default=None, description="CPUs each reserves; null shares out what the cluster has."
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
    retries: int = Field(default=2, ge=0, description="Times that a training starts over.")


class Config(Section):
    """All settings of a run."""

    source: Source
    output: str = Field(min_length=1, description="The lake: a folder, or s3://bucket/prefix/.")
    clusters: Annotated[int, Field(ge=2)] = Field(description="K, the number of clusters.")
    model: Model = Model()
    augment: Augment = Augment()
    pretrain: Pretrain = Pretrain()
    centroids: Centroids = Centroids()
    refine: Refine = Refine()
    evaluate: Evaluate = Evaluate()
    execution: Execution = Execution()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _sample_feeds_every_cluster(self) -> Config:
        needed = MIN_SAMPLE_ROWS_PER_CLUSTER * self.clusters
        if self.centroids.sample_rows < needed:
            raise ValueError(
                f"centroids.sample_rows={self.centroids.sample_rows} must be >= {needed} "
                f"({MIN_SAMPLE_ROWS_PER_CLUSTER} rows for each of clusters={self.clusters})"
            )
        return self

    @model_validator(mode="after")
    def _label_is_no_feature(self) -> Config:
        if self.evaluate.label in self.source.features:
            raise ValueError(
                f"evaluate.label={self.evaluate.label!r} is in source.features too; ground truth "
                "is for scoring only. Take it out of one of them"
            )
        return self

    def result_settings(self) -> dict[str, Any]:
        """The settings that change the result, as JSON values.

        The size of slices is among them: it decides which rows share a part file.
        """
        settings = self.model_dump(mode="json", exclude={"output", "execution"})
        return settings | {"target_slice_mib": self.execution.target_slice_mib}

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
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error))) from None


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-13-45 looks like a date
        reason = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"{where} is not valid YAML: {reason}") from None


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
        section = section.model_fields[name].annotation
        if isinstance(section, types.UnionType):
            section = next(arg for arg in typing.get_args(section) if arg is not type(None))
    return list(section.model_fields)
