"""Apache Iceberg: the live files of one snapshot, by pyiceberg's plan of a scan."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyarrow import fs
from pyiceberg import expressions
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, StaticTable, Table
from pyiceberg.transforms import IdentityTransform

from pipeline.artifacts.inputs import LakeTable, encode_schema
from pipeline.config.source import Source
from pipeline.errors import InputError
from pipeline.input.lake_tables.conditions import Both, Condition, parse
from pipeline.input.lake_tables.entries import Deletes, FileEntry, TableFile, located, table_file
from pipeline.input.lake_tables.planning import as_of
from pipeline.input.lake_tables.views import FIELD_ID, NAMES
from pipeline.storage import S3_SCHEME, arrow_filesystem

# Settings that are secret come from PYICEBERG_CATALOG__DEC__…, as for the output.
_CATALOG = "dec"
_FILE_IO = "pipeline.input.lake_tables.iceberg.SourceFileIO"
_TYPES = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
_FRAME_BYTES = 8  # length and checksum around a deletion vector


class SourceFileIO(PyArrowFileIO):
    """Iceberg's files through the same S3 client as everything else."""

    def _initialize_fs(self, scheme: str, netloc: str | None = None) -> fs.FileSystem:
        if scheme in ("s3", "s3a", "s3n"):
            return arrow_filesystem(f"{S3_SCHEME}{netloc}")[0]
        return super()._initialize_fs(scheme, netloc)


def plan(source: Source) -> list[TableFile]:
    """The live files of the snapshot that the config names, with their entries.

    Raises:
        InputError: There is no such table or snapshot, or its files need what this cannot do.
    """
    opened = _open(source)
    wanted = as_of(source.version)
    snapshot = opened.current_snapshot()
    if isinstance(wanted, int):
        snapshot = opened.snapshot_by_id(wanted)
    elif isinstance(wanted, datetime.datetime):
        snapshot = opened.snapshot_as_of_timestamp(int(wanted.timestamp() * 1000))
    if snapshot is None:
        if wanted is None:
            return []  # nothing was ever written to it
        known = ", ".join(str(one.snapshot_id) for one in opened.snapshots()[-5:])
        raise InputError(
            f"source.version={source.version}: table {source.table} has no such snapshot, or it "
            f"has expired; the newest are {known}"
        )
    # The latest has the table's columns of now, also those that changed since its snapshot.
    scan = opened.scan(snapshot_id=None if wanted is None else snapshot.snapshot_id)
    schema = scan.projection()
    columns = _columns(opened, schema, source)
    table = LakeTable(
        format="iceberg",
        location=str(source.table),
        version=str(snapshot.snapshot_id),
        columns=encode_schema(columns),
        where=source.where,
    )
    if source.where:
        scan = scan.filter(_expression(parse(source.where, columns)))
    try:
        tasks = scan.plan_files()
    except ValueError as error:
        if "equality deletes" not in str(error):
            raise
        raise InputError(
            f"source.table={source.table} has equality deletes, which cannot be applied here; "
            "compact the table with the engine that writes it (rewrite_data_files), then run again"
        ) from None
    return list(_files(table, opened, schema, tasks))


def _open(source: Source) -> Table:
    assert source.table is not None
    if "/" in source.table:
        return StaticTable.from_metadata(source.table, {"py-io-impl": _FILE_IO})
    properties = {"py-io-impl": _FILE_IO} | source.catalog
    name = properties.pop("name", _CATALOG)
    try:
        return load_catalog(name, **properties).load_table(source.table)
    except (NoSuchTableError, NoSuchNamespaceError):
        raise InputError(
            f"source.table={source.table}: the catalog has no such table; give namespace.name, or "
            "the location of its metadata.json"
        ) from None


def _columns(opened: Table, schema: Schema, source: Source) -> pa.Schema:
    """The table's columns; in metadata, how files store them."""
    mapping = opened.name_mapping() if "schema.name-mapping.default" in opened.properties else None
    names = {field.field_id: list(field.names) for field in mapping} if mapping else {}
    fields = []
    for field, arrow in zip(schema.fields, schema.as_arrow(), strict=True):
        if field.initial_default is not None:
            raise InputError(
                f"source.table={source.table}, column {field.name}: its default for older files "
                "cannot be applied here; write the table again with the values"
            )
        metadata = {FIELD_ID: str(field.field_id)}
        if mapping is not None:
            metadata[NAMES] = json.dumps(names.get(field.field_id, []))
        fields.append(pa.field(field.name, _TYPES.get(arrow.type, arrow.type), metadata=metadata))
    return pa.schema(fields)


def _files(
    table: LakeTable, opened: Table, schema: Schema, tasks: Iterable[FileScanTask]
) -> Iterator[TableFile]:
    root = located("", opened.location()).rstrip("/")
    specs = opened.specs()
    for task in tasks:
        file = task.file
        if file.file_format != FileFormat.PARQUET:
            raise InputError(
                f"source.table={table.location} has {file.file_format.value} files, such as "
                f"{file.file_path}; only Parquet can be read. Write the table again as Parquet"
            )
        url = located(root, file.file_path)
        entry = FileEntry(
            _constants(specs[file.spec_id], file, schema),
            tuple(
                _deletes(table, file, deletes)
                for deletes in sorted(task.delete_files, key=lambda one: one.file_path)
            ),
            filtered=not isinstance(task.residual, expressions.AlwaysTrue),
        )
        name = url.removeprefix(f"{root}/")
        yield table_file(table, url, name, file.file_size_in_bytes, entry)


def _constants(spec: PartitionSpec, file: DataFile, schema: Schema) -> dict[str, str | None]:
    """Values of columns that the table is partitioned by, for files that lack them."""
    found = {}
    for place, field in enumerate(spec.fields):
        if not isinstance(field.transform, IdentityTransform):
            continue
        column = schema.find_column_name(field.source_id)
        if column is None or column not in schema.as_arrow().names:
            continue  # it was dropped
        value = file.partition[place]
        if isinstance(value, bytes):
            continue
        found[column] = None if value is None else _text(value, schema, column)
    return found


def _text(value: Any, schema: Schema, column: str) -> str:
    kind = schema.as_arrow().field(column).type
    if isinstance(value, int) and pa.types.is_temporal(kind):
        stored = pa.scalar(value, pa.int32() if pa.types.is_date32(kind) else pa.int64())
        return str(stored.cast(kind).cast(pa.string()).as_py())
    return str(pa.scalar(value, kind).cast(pa.string()).as_py())


def _deletes(table: LakeTable, file: DataFile, deletes: DataFile) -> Deletes:
    """Where the rows of a file that one of its delete files names are listed."""
    url = located("", deletes.file_path)
    if deletes.file_format == FileFormat.PARQUET:
        return Deletes("positions", url, text=file.file_path)
    offset = getattr(deletes, "content_offset", None)
    size = getattr(deletes, "content_size_in_bytes", None)
    if deletes.file_format == FileFormat.PUFFIN and offset is not None and size is not None:
        return Deletes("vector", url, offset, size - _FRAME_BYTES)
    raise InputError(
        f"source.table={table.location}: deletes in {deletes.file_format.value}, such as "
        f"{deletes.file_path}, cannot be applied here; compact the table, then run again"
    )


of: Any = expressions  # whose constructors its annotations do not describe

_COMPARISONS: Mapping[str, Any] = {
    "=": of.EqualTo,
    "!=": of.NotEqualTo,
    "<": of.LessThan,
    "<=": of.LessThanOrEqual,
    ">": of.GreaterThan,
    ">=": of.GreaterThanOrEqual,
}


def _expression(condition: Condition) -> expressions.BooleanExpression:
    """The condition in pyiceberg's terms."""
    if isinstance(condition, Both):
        sides = _expression(condition.left), _expression(condition.right)
        joined: expressions.BooleanExpression
        joined = of.And(*sides) if condition.sign == "and" else of.Or(*sides)
        return joined
    column, sign, values = condition.column, condition.sign, condition.values
    found: expressions.BooleanExpression
    if sign in ("is null", "is not null"):
        found = of.IsNull(column) if sign == "is null" else of.NotNull(column)
    elif sign in ("in", "not in"):
        found = of.In(column, values) if sign == "in" else of.NotIn(column, values)
    else:
        found = _COMPARISONS[sign](column, values[0])
    # Where pyiceberg takes NULL for different from a value, SQL does not.
    return of.And(found, of.NotNull(column)) if sign in ("!=", "not in") else found
