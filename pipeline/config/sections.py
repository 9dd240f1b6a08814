"""Sections of the config, and the metadata of their settings.

A section declares once what its settings affect; a setting that differs says so in its annotation:
``keys: Annotated[list[str], Affects.RESULT]``. Fingerprints, default run ids, the comparison of
settings on resume and ``configs/README.md`` are derived from that.
"""

from __future__ import annotations

import enum
import functools
import operator
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from pipeline.locations import checked_location

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A file or folder, local or s3://; the type of every setting that names one.
Location = Annotated[str, AfterValidator(checked_location)]


class Affects(enum.Enum):
    """What a setting affects; no text, since sections have the same names."""

    MODEL = "model"
    RESULT = "result"
    PROFILES = "profiles"
    DESCRIPTIONS = "descriptions"
    NIGHTS = "nights"
    PUBLICATION = "publication"
    EXECUTION = "execution"


@dataclass(frozen=True)
class DefaultVersion:
    """Version of a setting's default; without this marker, 1.

    Fingerprints leave out settings at their default, so that a new setting changes none of them.
    Raise the version when a default gets another value or another meaning: fingerprints of configs
    that rely on the default then change, and no others.
    """

    number: int


class Section(BaseModel):
    """A part of the config: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    affects: ClassVar[Affects]

    def __init_subclass__(cls, affects: Affects | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if affects is not None:
            cls.affects = affects


@dataclass(frozen=True)
class Setting:
    """A setting of the config."""

    path: str  # name with those of its sections: ``refine.alpha``
    field: FieldInfo
    affects: Affects

    def content(self, config: Section) -> dict[str, Any]:
        """The setting's part of a fingerprint, by its path; empty at a default of version 1."""
        return _content(self.path, self.field, operator.attrgetter(self.path)(config))

    def is_in(self, names: Collection[str | Affects]) -> bool:
        """Whether a name is this setting's path, one of its sections, or what it affects."""
        return any(
            name in (self.affects, self.path) or self.path.startswith(f"{name}.") for name in names
        )


@functools.cache
def settings_in(section: type[Section], prefix: str = "") -> tuple[Setting, ...]:
    """The settings of a section and of the sections in it, in the order of their definition."""
    found: list[Setting] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found += settings_in(inner, f"{prefix}{name}.")
        else:
            affects = (marker for marker in field.metadata if isinstance(marker, Affects))
            found.append(Setting(prefix + name, field, next(affects, section.affects)))
    return tuple(found)


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections in an annotation: itself, an optional one, or one in a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for of in typing.get_args(annotation) for section in sections_in(of)]


def _content(path: str, field: FieldInfo, value: Any) -> dict[str, Any]:
    if field.is_required() or value != field.default:
        return {path: _json(value)}
    versions = (marker.number for marker in field.metadata if isinstance(marker, DefaultVersion))
    version = next(versions, 1)
    return {path: {"default_version": version}} if version > 1 else {}


def _json(value: Any) -> Any:
    if isinstance(value, Section):
        found: dict[str, Any] = {}
        for name, field in type(value).model_fields.items():
            found |= _content(name, field, getattr(value, name))
        return found
    return [_json(item) for item in value] if isinstance(value, list) else value
