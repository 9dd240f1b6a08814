"""Delta Lake: the live files of one version, by deltalake's replay of the table's log.

deltalake does not hand out which deletion vector belongs to which file. So where a table has the
feature, these are read from its log by the same rule (the newest action of a path wins), and must
fit the files that deltalake found.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from pipeline.artifacts.inputs import LakeTable, encode_schema
from pipeline.config.source import Source
from pipeline.errors import InputError, PipelineError
from pipeline.input.lake_tables.conditions import ColumnStatistics, decided, parse
from pipeline.input.lake_tables.deletion_vectors import z85_decoded
from pipeline.input.lake_tables.entries import Deletes, FileEntry, TableFile, located, table_file
from pipeline.input.lake_tables.planning import as_of
from pipeline.input.lake_tables.views import FIELD_ID, NAMES
from pipeline.storage import S3_SCHEME, Store, absolute, open_input, s3

# Features of the protocol that a reader must know, and this one does. Types are widened as the
# columns are cast to the table's; the others change nothing for a reader of given files.
_FEATURES = {
    *("columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "typeWidening-preview"),
    *("v2Checkpoint", "vacuumProtocolCheck"),
}
_LOG = "_delta_log"
_MILLISECOND = datetime.timedelta(milliseconds=1)


def plan(source: Source) -> list[TableFile]:
    """The live files of the version that the config names, with their entries.

    Raises:
        InputError: There is no such table or version, or its files need what this cannot do.
    """
    assert source.table is not None
    root = absolute(source.table).rstrip("/")
    opened = _open(root, source)
    features = set(opened.protocol().reader_features or ())
    if unknown := sorted(features - _FEATURES):
        raise InputError(
            f"source.table={source.table} needs {', '.join(unknown)}, which this version does not "
            "read; rewrite the table without, or export it to plain Parquet"
        )
    mapping = opened.metadata().configuration.get("delta.columnMapping.mode", "none")
    schema = _columns(opened, mapping)
    table = LakeTable(
        format="delta",
        location=root,
        version=str(opened.version()),
        columns=encode_schema(schema),
        where=source.where,
    )
    adds = pa.table(opened.get_add_actions())
    if len(paths := set(adds["path"].to_pylist())) < len(adds):
        raise InputError(
            f"source.table={source.table}: version {table.version} names a file twice; its log is "
            "damaged. Give a version before that, or restore the table to one"
        )
    vectors = {}
    if "deletionVectors" in features:
        vectors = _deletion_vectors(root, opened.version())
        if lost := vectors.keys() - paths:
            raise PipelineError(
                f"source.table={source.table}: its log has a deletion vector for {min(lost)}, "
                "which is no live file; this is a defect, please report it"
            )
    return list(_files(table, root, adds, schema, vectors))


def _open(root: str, source: Source) -> DeltaTable:
    options = s3.object_store_options(root) if root.startswith(S3_SCHEME) else None
    if "%" in root:
        raise InputError(
            f"source.table={source.table}: deltalake does not open tables whose path has a %; "
            "rename the folder"
        )
    wanted = as_of(source.version)
    number = wanted if isinstance(wanted, int) else None
    try:
        opened = DeltaTable(root, version=number, storage_options=options)
    except TableNotFoundError:
        raise InputError(
            f"source.table={source.table}: there is no Delta table at {root}; give the folder that "
            "has _delta_log"
        ) from None
    except Exception as error:
        if number is not None and re.search(r"version", str(error), re.I):
            raise InputError(
                f"source.version={source.version}: {root} has no such version, or its log no "
                "longer reaches back to it; give a version that dec plan or history() shows"
            ) from None
        raise
    if isinstance(wanted, datetime.datetime):
        opened.load_as_version(wanted)
        version = opened.version()  # the first one, too, where all are later
        times = [c["timestamp"] / 1000 for c in opened.history() if c.get("version") == version]
        name = f"{version:020}.json"
        times += [file.modified for file in Store(root).list(_LOG) if file.name == name]
        if times and min(times) > wanted.timestamp():
            raise InputError(
                f"source.version={source.version} is before the first version of {root} that its "
                "log still has; give a later time"
            )
    return opened


def _columns(opened: DeltaTable, mapping: str) -> pa.Schema:
    """The table's columns; in metadata, how files store them."""
    plain = pa.schema(opened.schema().to_arrow())
    about = {field["name"]: field for field in json.loads(opened.schema().to_json())["fields"]}
    fields = []
    for field in plain:
        metadata = {NAMES: json.dumps([field.name])}
        if mapping != "none":
            mapped = about[field.name]["metadata"]
            metadata[NAMES] = json.dumps([mapped["delta.columnMapping.physicalName"]])
            if mapping == "id":
                metadata[FIELD_ID] = str(mapped["delta.columnMapping.id"])
        fields.append(pa.field(field.name, _type(field.type), metadata=metadata))
    return pa.schema(fields)


def _type(kind: pa.DataType) -> pa.DataType:
    """The type without views, which are only a layout."""
    if kind == pa.string_view():
        return pa.string()
    return pa.binary() if kind == pa.binary_view() else kind


def _files(
    table: LakeTable,
    root: str,
    adds: pa.Table,
    schema: pa.Schema,
    vectors: Mapping[str, Deletes],
) -> Iterator[TableFile]:
    """The files that may hold rows that are asked for."""
    condition = parse(table.where, schema) if table.where else None
    parts = _struct(adds, "partition")
    texts = {name: column.cast(pa.string()).to_pylist() for name, column in parts.items()}
    statistics = _Statistics(adds, parts, schema)
    rows = adds["num_records"].to_pylist() if "num_records" in adds.column_names else None
    for place, (path, size) in enumerate(
        zip(adds["path"].to_pylist(), adds["size_bytes"].to_pylist(), strict=True)
    ):
        filtered = False
        if condition is not None:
            may, must = decided(
                condition, partial(statistics.of, place), rows[place] if rows else None
            )
            if not may:
                continue
            filtered = not must
        name = unquote(path)
        deletes = (vectors[path],) if path in vectors else ()
        constants = {column: values[place] for column, values in texts.items()}
        entry = FileEntry(constants, deletes, filtered)
        yield table_file(table, located(root, name), name, size, entry)


class _Statistics:
    """What the log says of the columns that a condition names, by file."""

    def __init__(self, adds: pa.Table, parts: Mapping[str, pa.Array], schema: pa.Schema) -> None:
        self._schema = schema
        self._parts = parts
        self._of = {name: _struct(adds, name) for name in ("min", "max", "null_count")}

    def of(self, place: int, name: str) -> ColumnStatistics:
        """Those of a column in one file."""
        if name in self._parts:
            value = self._parts[name][place].as_py()
            return ColumnStatistics(value, value, math.inf if value is None else 0, exact=True)
        field = self._schema.field(name)
        (stored,) = json.loads(field.metadata[NAMES])
        found = {kind: of[stored][place] for kind, of in self._of.items() if stored in of}
        try:
            least, most = (found[kind].cast(field.type).as_py() for kind in ("min", "max"))
        except (KeyError, pa.ArrowException):  # it has none, or none of this type
            least = most = None
        if isinstance(most, datetime.datetime):
            most += _MILLISECOND  # the log has whole milliseconds, rounded down
        return ColumnStatistics(least, most, found["null_count"].as_py() if found else None)


def _struct(adds: pa.Table, name: str) -> dict[str, pa.Array]:
    """The fields of a struct column, by name."""
    if name not in adds.column_names:
        return {}
    column = adds[name].combine_chunks()
    return {field.name: pc.struct_field(column, i) for i, field in enumerate(column.type)}


# ----------------------------------------------------------------------------- deletion vectors


def _deletion_vectors(root: str, version: int) -> dict[str, Deletes]:
    """Deletion vectors of the live files, by their paths in the log."""
    log = Store(root)
    names = [file.name for file in log.list(_LOG)]
    checkpoint, files = _checkpoint(names, version)
    newest: dict[str, Deletes | None] = {}  # by path; None: without one, or no longer live
    for number in range(version, checkpoint, -1):
        added: dict[str, Deletes | None] = {}
        removed: list[str] = []
        for line in log.read_bytes(f"{_LOG}/{number:020}.json").splitlines():
            action = json.loads(line)
            if add := action.get("add"):
                added[add["path"]] = _deletes(root, add.get("deletionVector"))
            elif remove := action.get("remove"):
                removed.append(remove["path"])
        # A commit that changes a vector removes the path and adds it again.
        for path, deletes in (*added.items(), *((path, None) for path in removed)):
            newest.setdefault(path, deletes)
    for path, vector in _of_checkpoint(log, files):
        if path not in newest:
            newest[path] = _deletes(root, vector)
    return {path: deletes for path, deletes in newest.items() if deletes is not None}


def _checkpoint(names: Sequence[str], version: int) -> tuple[int, list[str]]:
    """The newest complete checkpoint up to a version, and its files; -1 without any."""
    pattern = re.compile(
        r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10})|\.([^.]+))?\.(?:parquet|json)"
    )
    found: dict[tuple[int, str], list[str]] = {}
    for name in names:
        if (match := pattern.fullmatch(name)) and int(match[1]) <= version:
            # Parts of one checkpoint have their number in common; others stand alone.
            kind = match[3] or f"alone {name}"
            found.setdefault((int(match[1]), kind), []).append(name)
    complete = {
        number: files
        for (number, kind), files in sorted(found.items())
        if not kind.isdigit() or len(files) == int(kind)
    }
    newest = max(complete, default=-1)
    return newest, complete.get(newest, [])


def _of_checkpoint(log: Store, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and deletion vector of the files in a checkpoint, and in its sidecars, that have one."""
    for name in names:
        if name.endswith(".json"):
            for line in log.read_bytes(f"{_LOG}/{name}").splitlines():
                action = json.loads(line)
                yield from _added([action.get("add")])
                if sidecar := action.get("sidecar"):
                    yield from _of_checkpoint(log, [_sidecar(sidecar["path"])])
            continue
        with open_input(log.locate(f"{_LOG}/{name}")) as source:
            parquet = pq.ParquetFile(source)
            wanted = ["add.path", "add.deletionVector", "sidecar.path"]
            for batch in parquet.iter_batches(columns=wanted):
                columns = batch.to_pydict()
                yield from _added(columns.get("add", ()))
                paths = [one["path"] for one in columns.get("sidecar", ()) if one]
                yield from _of_checkpoint(log, [_sidecar(path) for path in paths if path])


def _added(adds: Iterable[Mapping[str, Any] | None]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for add in adds:
        if add and add.get("path") is not None and (vector := add.get("deletionVector")):
            if vector.get("storageType") is not None:
                yield add["path"], vector


def _sidecar(path: str) -> str:
    return f"_sidecars/{path.rpartition('/')[2]}"


def _deletes(root: str, vector: Mapping[str, Any] | None) -> Deletes | None:
    """Where a deletion vector of the log is stored."""
    if not vector:
        return None
    kind, text, size = (vector[name] for name in ("storageType", "pathOrInlineDv", "sizeInBytes"))
    if kind == "i":
        return Deletes("inline", size=size, text=text)
    if kind == "u":  # a name below the table: a prefix, then a UUID in Z85
        name = uuid.UUID(bytes=z85_decoded(text[-20:]))
        text = f"{text[:-20]}/deletion_vector_{name}.bin".removeprefix("/")
    elif kind == "p":
        text = unquote(text)
    else:
        raise InputError(f"source.table={root}: deletion vectors of kind {kind!r} are unknown")
    return Deletes("vector", located(root, text), vector.get("offset") or 1, size)
