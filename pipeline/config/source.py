"""The section ``source``: what to cluster."""

from __future__ import annotations

import fnmatch
import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipeline.config.sections import Affects, Location, PositiveFloat, PositiveInt, Section
from pipeline.errors import ConfigError
from pipeline.schema import RESERVED_COLUMNS, SHARD_KEY_COLUMNS

# The branch of a union is chosen by the value, so that a wrong one is one error; tags in brackets
# are left out of the paths in messages.
Locations = Annotated[
    Annotated[Location, Tag("[one]")] | Annotated[list[Location], Tag("[list]")],
    Discriminator(lambda value: "[list]" if isinstance(value, list) else "[one]"),
]


# Properties of pyiceberg that hold a credential: s3.access-key-id, credential, token, …
_CREDENTIAL_PROPERTY = re.compile(
    r"access-?key|secret|token$|passw|credential|signature|(^|\.)(key|oauth2)$", re.I
)


class Feature(Section, affects=Affects.MODEL):
    """Feature column with a type, an entry of `features`; see decision 0032."""

    column: str = Field(min_length=1)
    """Name of the column, or a glob."""
    type: Literal["auto", "number", "boolean", "category", "timestamp", "vector"] = "auto"
    """Meaning of the values; auto follows the column's own type."""
    # Not written where it is None, so that fingerprints of other features stay.
    dtype: Literal["float16", "float32"] | None = Field(
        None, exclude_if=lambda dtype: dtype is None
    )
    """Type of the numbers in a column of fixed-size bytes that is a vector, little-endian."""
    weight: PositiveFloat = 1.0
    """Weight of the column in distances and in the loss."""
    values: Annotated[int, Field(ge=1, le=4096)] = 128
    """Maximum number of distinct values of a category, the most frequent ones; all others count as
    one."""

    @model_validator(mode="after")
    def _dtype_of_a_vector(self) -> Feature:
        if self.dtype is not None and self.type not in ("auto", "vector"):
            raise ValueError(
                f"column {self.column}: dtype={self.dtype} is for type: vector, of which the "
                f"column has the bytes; the type is {self.type}. Leave one of them out"
            )
        return self


FeatureEntry = Annotated[
    Annotated[str, Tag("[name]")] | Annotated[Feature, Tag("[typed]")],
    Discriminator(lambda entry: "[typed]" if isinstance(entry, dict | Feature) else "[name]"),
]


class Source(Section, affects=Affects.MODEL):
    """Input table: its location, its columns, and the rows to learn from."""

    path: Annotated[Locations | None, Affects.RESULT] = None
    """File, folder or glob of Parquet files, local or s3://, or a list of those; {ds} stands for
    the logical date. Required unless `table` is set."""
    format: Annotated[Literal["auto", "files", "delta", "iceberg"], Affects.RESULT] = "auto"
    """Kind of input; auto: plain Parquet files at `path`, and an error where they belong to a lake
    table; files: plain files in any case, with rows that such a table deleted; delta, iceberg: the
    live rows of `table`."""
    table: Annotated[Location | None, Affects.RESULT] = Field(None, min_length=1)
    """Folder of a Delta table, local or s3://; or the name of an Iceberg table in `catalog`, or the
    location of its metadata.json."""
    version: Annotated[str | int, Affects.RESULT] = "latest"
    """Version of `table`: latest, a number (Iceberg: id of a snapshot), or the newest as of a time
    such as 2026-02-01T00:00:00Z."""
    where: Annotated[str | None, Affects.RESULT] = None
    """Condition that the rows of `table` meet, such as country = 'nl' AND day >= '2026-01-01'; its
    files are left out where the table's partitions and statistics allow."""
    catalog: Annotated[dict[str, str], Affects.EXECUTION] = Field({})
    """Properties of the Iceberg catalog that has `table`, as pyiceberg defines them, without
    credentials: those come from variables PYICEBERG_CATALOG__DEC__…; `name` is that of the catalog,
    dec by default."""
    features: list[FeatureEntry]
    """Columns to cluster by: vectors or scalars, names or globs such as f_*. An entry {column,
    type, weight} gives a column a type: number, boolean, category, timestamp or vector."""
    keys: Annotated[list[str], Affects.RESULT] = Field([])
    """Columns copied into the assignments; without any, shard name and row number."""
    scaling: Literal["standard", "minmax", "unit_norm", "none"] = "standard"
    """Scaling of the features before training."""
    nulls: Literal["error", "mean", "drop"] = "error"
    """Treatment of null, NaN and infinite features: stop the run, use the mean, or drop the row.
    Columns with a type encode missing values instead."""
    on_bad_shard: Annotated[Literal["error", "quarantine"], Affects.RESULT] = "error"
    """Treatment of a corrupt, truncated, vanished or replaced shard: stop the run, or leave the
    whole shard out."""
    max_bad_share: Annotated[float, Affects.RESULT] = Field(0.1, ge=0, le=1)
    """Maximum share of the shards that quarantine may leave out; more stop the run."""
    fit_rows: PositiveInt | None = None
    """Number of rows to train on, drawn by seed; null = all."""
    held_out: float = Field(0.02, ge=0, lt=1)
    """Share of the rows held out of training, to detect overfitting."""
    image_shape: list[PositiveInt] | None = None
    """Shape of the images, [height, width] or [height, width, channels], where `features` is one
    column of pixels in row-major order; turns augmentation on."""
    example: Annotated[Literal["digits"] | None, Affects.RESULT] = None
    """Example dataset that is written to `path` when nothing is there."""

    @field_validator("path", "features")
    @classmethod
    def _not_empty(cls, value: str | list[Any] | None) -> str | list[Any] | None:
        if value is None:
            return None
        if not value or "" in ([value] if isinstance(value, str) else value):
            raise ValueError("must name at least one, and none may be empty")
        return value

    @field_validator("catalog")
    @classmethod
    def _no_credentials(cls, properties: dict[str, str]) -> dict[str, str]:
        return without_credentials("source.catalog", properties)

    @field_validator("features", "keys")
    @classmethod
    def _no_duplicates(cls, entries: list[Any]) -> list[Any]:
        no_duplicates([_column_of(entry) for entry in entries])
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
                f"names {', '.join(ours)}; names that begin with dec_ are reserved. "
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
    def locations(self) -> list[str]:
        """The entries of ``path``, also where it is only one; the location of ``table``."""
        if self.table is not None or self.path is None:
            # A name in a catalog is no location.
            named = self.format == "iceberg" and self.table and "/" not in self.table
            return [self.table] if self.table and not named else []
        return [self.path] if isinstance(self.path, str) else self.path

    def misplaced(self) -> str | None:
        """Why the settings of plain files and of lake tables do not fit together; None: they do."""
        plain = self.format in ("auto", "files")
        if self.path is None and plain:
            return "source.path is missing; the config must set it"
        if self.table is None and not plain:
            return f"source.table is missing; source.format={self.format} reads a table"
        if not plain and self.path is not None:
            return (
                f"source.path={self.path!r} is for plain files, but source.format={self.format} "
                "reads source.table; take one of them out"
            )
        if not plain and self.example is not None:
            return "source.example is written as plain files; take source.format out"
        for name in ("table", "version", "where", "catalog"):
            if plain and getattr(self, name) != type(self).model_fields[name].default:
                return (
                    f"source.{name}={getattr(self, name)!r} is for lake tables; set "
                    "source.format: delta or iceberg in place of source.path, or take it out"
                )
        return None

    @property
    def feature_patterns(self) -> tuple[str, ...]:
        """Names and globs of the feature columns, in their order."""
        return tuple(_column_of(entry) for entry in self.features)

    def feature(self, column: str) -> Feature | None:
        """The typed entry for a feature column; None where it has none.

        An entry with the column's own name wins over a glob.
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


def no_duplicates(names: list[str]) -> None:
    """Refuse column names that occur twice."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"names {', '.join(twice)} more than once; name each column once")


def without_credentials(setting: str, properties: dict[str, str]) -> dict[str, str]:
    """Properties of a catalog, which hold no credential.

    Raises:
        ConfigError: One does.
    """
    for name, value in properties.items():
        if _CREDENTIAL_PROPERTY.search(name) or re.search(r"://[^/?#]*@", value):
            # A plain error of pydantic would repeat the value.
            raise ConfigError(
                f"{setting}.{name} holds a credential; take it out of the config and set "
                f"the variable PYICEBERG_CATALOG__DEC__{re.sub('[.]', '__', name).upper()}"
            )
    return properties
