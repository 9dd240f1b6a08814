"""The columns that the config selects, and checks of a shard's schema against them."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.artifacts.inputs import ColumnType
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.columns import (
    EXPECTED,
    category_family,
    column_type,
    is_vector,
    may_be,
    number_type,
    type_of_bytes,
    unknown_zone,
)
from pipeline.schema import is_bytes, storage_type, value_type


def field_of(schema: pa.Schema, name: str, shard: str, setting: str = "") -> pa.Field:
    """The field of a column that a shard must have exactly once; ``setting`` is for the message.

    Raises:
        InputError: The shard has no such column, or several.
    """
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"its columns are {listed(schema.names)}"
        if struct := _struct_above(schema, name):
            hint = f"{struct} is a struct, and fields of structs are not read: make it a column"
        where = f"{setting}: shard" if setting else "shard"
        raise InputError(f"{where} {shard} has no column {name}; {hint}")
    if schema.names.count(name) > 1:
        raise InputError(f"shard {shard} has more than one column {name}; rename one")
    return schema.field(name)


def _struct_above(schema: pa.Schema, name: str) -> str | None:
    """The struct that ``name`` would be a field of; None without one."""
    parts = name.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    structs = (n for n in above if n in schema.names and pa.types.is_struct(schema.field(n).type))
    return next(structs, None)


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many, the first twenty."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@dataclass(frozen=True)
class Selection:
    """The columns that the config selects, with its globs resolved."""

    features: tuple[str, ...]
    carried: tuple[str, ...]  # key columns and the label
    label: str | None
    types: Mapping[str, str]  # types of the features that the config gives one
    dtypes: Mapping[str, str]  # of features whose bytes are vectors
    folders: frozenset[str]  # features whose values are in the names of folders
    globs: tuple[str, ...]  # patterns among the features of the config
    unglobbed: frozenset[str]  # columns that no glob matches; see ``of``
    first_shard: str  # name of the shard that the globs were resolved against

    @property
    def all(self) -> tuple[str, ...]:
        """All columns to read, each once."""
        return tuple(dict.fromkeys((*self.features, *self.carried)))

    @classmethod
    def of(
        cls,
        config: Config,
        schema: pa.Schema,
        shard: str,
        hive_types: Mapping[str, pa.DataType],
        folders_above: Collection[str] = (),
    ) -> Selection:
        """Resolve the config's globs against the first shard that has rows.

        Keys, the label, the columns of folders above the source, and pandas' index are no features
        because a glob matches them; each can be named.

        Args:
            config: The settings.
            schema: Schema of the shard with its folders, and with the file's metadata.
            shard: Name of the shard.
            hive_types: Types of the columns in the names of folders.
            folders_above: Those of them that only folders above the source have.
        """
        features: list[str] = []
        globs: list[str] = []
        unglobbed = {*config.source.keys, *folders_above}
        unglobbed |= {config.evaluate.label} if config.evaluate.label else set()
        for pattern in config.source.feature_patterns:
            if pattern in schema.names or not re.search(r"[*?\[]", pattern):
                features.append(pattern)
                continue
            globs.append(pattern)
            others = unglobbed | pandas_index(schema)
            matches = [n for n in fnmatch.filter(schema.names, pattern) if n not in others]
            if not matches:
                raise InputError(
                    f"source.features: {pattern} matches no column of shard {shard}; "
                    f"its columns are {listed(schema.names)}"
                )
            features += matches
        if twice := sorted({name for name in features if features.count(name) > 1}):
            raise InputError(
                f"source.features names column {', '.join(twice)} more than once after its globs "
                "are resolved; name each column once"
            )
        label = config.evaluate.label
        carried = (*config.source.keys, *([label] if label else []))
        typed = {name: config.source.feature(name) for name in features}
        types = {name: feature.type for name, feature in typed.items() if feature}
        dtypes = {name: f.dtype for name, f in typed.items() if f and f.dtype}
        folders = frozenset(features) & hive_types.keys()
        return cls(
            *(tuple(features), tuple(dict.fromkeys(carried)), label, types, dtypes, folders),
            *(tuple(globs), frozenset(unglobbed), shard),
        )

    def type_of(self, name: str, kind: pa.DataType) -> ColumnType | None:
        """The type of a feature column of this Arrow type; None: plain numbers, or no feature."""
        given = self.types.get(name)
        # A new folder can turn numbers into text, so folders' columns need a type in the config.
        if given is None and (number_type(kind) is not None or name in self.folders):
            return None
        return column_type(kind) if given in (None, "auto") else typing.cast(ColumnType, given)

    def check_globs(self, schema: pa.Schema, shard: str) -> None:
        """Check that the globs match in a shard what they match in the first one.

        ``schema`` is that of the shard with its folders, and with the file's metadata.

        Raises:
            InputError: One of the two shards lacks a column that the other has.
        """
        known = {*self.features, *self.unglobbed}
        for pattern in self.globs:
            here = set(fnmatch.filter(schema.names, pattern)) - pandas_index(schema)
            there = set(fnmatch.filter(self.features, pattern))
            if more := sorted(here - known):
                raise _differs(more[0], pattern, shard, self.first_shard)
            if fewer := sorted(there - set(schema.names)):
                raise _differs(fewer[0], pattern, self.first_shard, shard)

    def with_vectors(self, schema: pa.Schema, shard: str) -> pa.Schema:
        """The schema with vectors in place of bytes that are vectors.

        Raises:
            InputError: A row's bytes are not a whole number of values.
        """
        for name in schema.names:
            if name in self.dtypes and schema.names.count(name) == 1:
                place = schema.get_field_index(name)
                try:
                    kind = type_of_bytes(schema.field(place).type, self.dtypes[name])
                except ValueError as error:
                    raise InputError(
                        f"shard {shard}, column {name}: {error}; correct its dtype in "
                        "source.features"
                    ) from None
                schema = schema.set(place, schema.field(place).with_type(kind))
        return schema

    def check(self, schema: pa.Schema, shard: str) -> None:
        """Check that a shard has all columns, of types that fit.

        Raises:
            InputError: A column is missing, or of the wrong type.
        """
        for name in self.all:
            field_of(schema, name, shard)
        for name in self.carried:
            kind = schema.field(name).type
            if name != self.label and pa.types.is_nested(value_type(storage_type(kind))):
                raise InputError(
                    f"shard {shard}, column {name}: type {kind} cannot be a key; keys have one "
                    "number, text, time, truth value or sequence of bytes a row. Write their parts "
                    "as columns, or use another key"
                )
        if self.label is not None:
            kind = schema.field(self.label).type
            plain = value_type(storage_type(kind))
            if pa.types.is_nested(plain) or is_bytes(plain):
                raise InputError(
                    f"shard {shard}, column {self.label}: type {kind} cannot be a label; "
                    "evaluate.label must name a column of numbers or strings"
                )
        for name in self.features:
            self._check_feature(name, schema.field(name).type, shard)

    def _check_feature(self, name: str, kind: pa.DataType, shard: str) -> None:
        where = f"shard {shard}, column {name}"
        if pa.types.is_null(kind):
            return  # missing in all rows of the shard
        found = self.type_of(name, kind)
        if found is None:
            if number_type(kind) is not None:
                return
            hint = (
                "features must be numbers, booleans, strings, timestamps, dates or vectors of "
                "numbers. Convert the column or take it out of source.features"
            )
            if name in self.folders:
                hint = (
                    "names of folders are categories only where source.features says so: "
                    f"{{column: {name}, type: category}}"
                )
            raise InputError(f"{where}: type {kind} is not a number; {hint}")
        if found == "timestamp" and (reason := unknown_zone(kind)):
            raise InputError(
                f"{where}: {reason}; hours of the day need the zone's rules. "
                "Write the column in UTC or without a zone"
            )
        if not may_be(kind, found):
            own = column_type(kind)
            hint = f"Make it type: {own}" if own else "Convert the column"
            expected = EXPECTED[found]
            if found == "vector" and is_bytes(storage_type(kind)):
                expected += ", or bytes of one size with dtype: float16 or float32"
            raise InputError(
                f"{where}: type {kind} cannot be a {found}, the type in source.features; "
                f"expected {expected}. {hint}, or take it out of source.features"
            )

    def check_same_meaning(
        self, schema: pa.Schema, shard: str, first: pa.Schema, first_shard: str
    ) -> None:
        """Check that feature columns mean the same in a shard as in the first one.

        Raises:
            InputError: One does not.
        """
        for name in self.features:
            kind, expected = schema.field(name).type, first.field(name).type
            if pa.types.is_null(kind) or pa.types.is_null(expected):
                continue
            if is_vector(kind) != is_vector(expected):
                raise InputError(
                    f"shard {shard}, column {name}: type {kind}; expected {expected} as in shard "
                    f"{first_shard}: vectors in all shards, or scalars in all"
                )
            here, there = self.type_of(name, kind), self.type_of(name, expected)
            families = category_family(kind), category_family(expected)
            if here != there or (here == "category" and families[0] != families[1]):
                raise InputError(
                    f"shard {shard}, column {name}: type {kind} does not mean what {expected} "
                    f"means in shard {first_shard}; write the column with one type, or set its "
                    "type in source.features"
                )


def _differs(column: str, pattern: str, having: str, lacking: str) -> InputError:
    return InputError(
        f"source.features: {pattern} matches column {column} of shard {having}, which shard "
        f"{lacking} lacks; a glob must match the same columns in all shards. Write the column to "
        "every shard, or name the columns one by one"
    )


def pandas_index(schema: pa.Schema) -> set[str]:
    """Columns of a file that pandas wrote as the index of a frame."""
    try:
        index = json.loads((schema.metadata or {}).get(b"pandas", "{}"))["index_columns"]
    except (KeyError, TypeError, ValueError):
        return set()
    return {name for name in index if isinstance(name, str)}  # a range is no column


def unified(schemas: Sequence[tuple[str, pa.Schema]], names: Sequence[str]) -> pa.Schema:
    """One type for each of these columns that holds the values of every shard, of at least one.

    Raises:
        InputError: No type holds the values of all shards.
    """
    (_, first), *others = schemas
    fields = [first.field(name).remove_metadata() for name in names]
    for shard, other in others:
        for place, left in enumerate(fields):
            right = other.field(left.name).remove_metadata()
            try:
                fields[place] = _unified_field(left, right)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise InputError(
                    f"shard {shard}, column {left.name}: type {right.type} does not fit "
                    f"{left.type} as in the shards before; write the column with one type"
                ) from None
    return pa.schema(fields)


def _unified_field(left: pa.Field, right: pa.Field) -> pa.Field:
    if left.type == right.type:
        return left.with_nullable(left.nullable or right.nullable)
    # Dictionaries survive only where every shard has the same; else their plain values do.
    left, right = (side.with_type(value_type(side.type)) for side in (left, right))
    kinds = left.type, right.type
    if any(map(pa.types.is_decimal, kinds)) and any(map(pa.types.is_floating, kinds)):
        raise pa.ArrowTypeError("floats round decimals")
    schemas = [pa.schema([side]) for side in (left, right)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0)
