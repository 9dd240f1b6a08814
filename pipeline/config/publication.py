"""Sections of what is published: how clusters are described, and in which table format."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.sections import Affects, PositiveFloat, Section
from pipeline.config.source import no_duplicates, without_credentials


class Explain(Section, affects=Affects.DESCRIPTIONS):
    """Description of the clusters: profiles, exemplars, rules and names."""

    columns: Annotated[list[str], Affects.PROFILES] = Field([])
    """Additional columns that clusters are profiled and described by, but rows are not clustered
    by: numbers, booleans, categories, dates and timestamps. The profile holds their frequent
    values, so name no column that identifies persons."""
    exemplars: Annotated[int, Affects.PROFILES] = Field(5, ge=0, le=1000)
    """Number of example rows per cluster and kind: most central, most typical and most ambiguous.
    Very many clusters get fewer."""
    tree_depth: int | None = Field(5, ge=1, le=8)  # 256 leaves: more is no explanation
    """Maximum depth of the decision tree that describes clusters by rules in your own columns; null
    = no tree."""
    namer: Literal["features", "openai"] | None = "features"
    """Source of names for unnamed clusters: their strongest features, or a language model at
    `endpoint`, which sees the profile of each cluster but no rows or keys; null = no names."""
    endpoint: str | None = Field(None, pattern=r"^https?://[^/@?#\s]+(/[^@?#\s]*)?$")
    """Base URL of an OpenAI-compatible API for `namer: openai`, such as https://api.openai.com/v1;
    the variable DEC_NAMER_API_KEY holds its key."""
    model: str | None = Field(None, min_length=1)
    """Name of the language model at `endpoint`."""
    timeout_s: Annotated[PositiveFloat, Affects.EXECUTION] = 30.0
    """Timeout of a request to `endpoint`, in seconds."""

    @model_validator(mode="after")
    def _openai_has_a_model(self) -> Explain:
        if self.namer == "openai" and not (self.endpoint and self.model):
            raise ValueError("explain.namer: openai needs explain.endpoint and explain.model")
        return self

    @field_validator("columns")
    @classmethod
    def _named_once(cls, names: list[str]) -> list[str]:
        no_duplicates(names)
        if "" in names:
            raise ValueError("must not hold an empty name")
        return names


class Lake(Section, affects=Affects.PUBLICATION):
    """Table format of the published assignments.

    In every format the snapshot log decides what is published; a table follows it.
    """

    format: Literal["parquet", "iceberg", "delta"] = "parquet"
    """Table format; parquet: plain files that the snapshot log lists."""
    table: str = Field(
        "dec.assignments", pattern=r"^[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*$"
    )
    """Name of the Iceberg table in the catalog, as namespace.name."""
    catalog: dict[str, str] = Field({})
    """Properties of the Iceberg catalog, as pyiceberg defines them, without credentials; {} is a
    SQLite file below a local output."""

    @field_validator("catalog")
    @classmethod
    def _no_credentials(cls, properties: dict[str, str]) -> dict[str, str]:
        return without_credentials("lake.catalog", properties)
