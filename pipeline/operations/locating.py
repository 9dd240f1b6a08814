"""``dec locate``: the cluster of a row, the evidence for it, and similar exemplars."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.artifacts.assignments import Assignments, PartFile
from pipeline.artifacts.inputs import LakeTable, Manifest
from pipeline.errors import InputError, PipelineError
from pipeline.input.bad_shards import ShardVersion, is_as_pinned
from pipeline.input.feed import in_parallel
from pipeline.input.hive import hive_column, hive_values
from pipeline.input.parquet.opening import ShardFile
from pipeline.input.reading import OpenShard, Reader, pieces_of
from pipeline.insight.contrasts import means_of_two
from pipeline.insight.explained_runs import ExplainedRun, feature_label, key_names, read_exemplars
from pipeline.lake.parts import key_columns
from pipeline.lake.snapshots import latest_snapshot, read_file_list
from pipeline.model.devices import embeddings
from pipeline.operations.forgotten_keys import KeySet, key_table
from pipeline.registry.clusters import keys_as_json
from pipeline.registry.models import feature_names, load_model, load_vocabulary, settings_of
from pipeline.runs import RunFolder
from pipeline.schema import SHARD_KEY_COLUMNS, cast_to, decoded, matrix_of, with_column
from pipeline.storage import Store, open_input, why

# Rows of a batch while a key is looked for in a lake table.
_BATCH_ROWS = 65_536
# Files to read at a time: nearly all of it is waiting for a store.
_AT_A_TIME = 16
MOST_ROWS = 20  # maximum number of rows to show for one key


def parts_of_run(lake: Store, run_id: str) -> tuple[PartFile, ...]:
    """Part files of a run's ds: those that are published, or else those that it wrote.

    Raises:
        InputError: There is no such run, or it has not assigned yet.
    """
    assignments = RunFolder(lake, run_id).artifact("assign", Assignments)
    latest = latest_snapshot(lake)
    path = assignments.files.path
    for partition in latest.partitions.values() if latest else ():
        if partition.run_id == run_id:
            path = partition.files  # without what was forgotten
    try:
        return read_file_list(lake, path).files
    except FileNotFoundError:
        raise _gone(lake.locate(path)) from None


def _gone(what: str) -> InputError:
    return InputError(f"{what} is gone: deleted by dec gc or by hand")


def key_schema(lake: Store, files: Sequence[PartFile]) -> pa.Schema:
    """Names and types of a run's key columns."""
    try:
        with open_input(lake.locate(files[0].path)) as source:
            schema = pq.read_schema(source)
    except (FileNotFoundError, IndexError):
        raise _gone(lake.locate(files[0].path) if files else lake.url) from None
    return pa.schema([schema.field(name) for name in key_columns(schema)])


def asked_key(words: Sequence[str], schema: pa.Schema) -> KeySet:
    """The key in ``--key column=value``; where there is one key column, its value is enough.

    Raises:
        InputError: It names no key column, or a value of another type.
    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or (name not in schema.names and len(schema) == 1):
            if len(schema) != 1:
                raise InputError(
                    f"--key {word} must be column=value; the key columns are "
                    f"{', '.join(schema.names)}"
                )
            name, value = schema.names[0], word
        if name not in schema.names:
            raise InputError(
                f"--key {word}: {name} is not a key column; they are {', '.join(schema.names)}"
            )
        if values.setdefault(name, value) != value:
            raise InputError(f"--key {name} is given twice, with different values")
    wanted = pa.schema([field for field in schema if field.name in values])
    try:
        return KeySet(key_table([json.dumps(values)], wanted), "--key")
    except InputError:
        kinds = ", ".join(f"{field.name} is {field.type}" for field in wanted)
        raise InputError(f"--key {' '.join(words)} is not a value of its column: {kinds}") from None


def find_rows(lake: Store, files: Sequence[PartFile], key: KeySet) -> tuple[pa.Table, bool]:
    """At most ``MOST_ROWS`` assignments with a key, by file, and whether there are more.

    Reads the footer of each file, the key columns of row groups that may hold the key, and other
    columns only of row groups that do. Memory holds one row group per thread.

    Raises:
        InputError: A file is gone.
    """
    found: list[pa.Table] = []
    rows = 0
    reads = (partial(_rows_in, lake, file, key) for file in files)
    for table in in_parallel(reads, _AT_A_TIME):
        if len(table):
            found.append(table.slice(0, MOST_ROWS + 1))
            rows += len(found[-1])
        if rows > MOST_ROWS:
            break
    table = pa.concat_tables(found).slice(0, MOST_ROWS) if found else pa.table({})
    return table, rows > MOST_ROWS


def _rows_in(lake: Store, file: PartFile, key: KeySet) -> pa.Table:
    try:
        with open_input(lake.locate(file.path)) as source:
            parquet = pq.ParquetFile(source)
            found = [parquet.schema_arrow.empty_table()]
            for group in range(parquet.num_row_groups):
                if not key.may_be_in(parquet.metadata.row_group(group)):
                    continue
                held_B = key.found_in(parquet.read_row_group(group, columns=key.names))
                if held_B.any():
                    found.append(parquet.read_row_group(group).filter(pa.array(held_B)))
    except FileNotFoundError:
        raise _gone(lake.locate(file.path)) from None
    table = pa.concat_tables(found)
    # Each file has dictionaries of its own.
    return pa.table([decoded(column) for column in table.columns], table.column_names)


# --------------------------------------------------------------------------- the row in the input


def raw_rows(lake: Store, run_id: str, rows: pa.Table) -> list[NDArray[np.float64] | str]:
    """Raw features of located rows, each of shape (features,); or the reason why they are unknown.

    Reads only row groups that may hold the key, of the version that the run has pinned.
    """
    try:
        manifest = RunFolder(lake, run_id).artifact("pin", Manifest)
        reader = Reader(
            features=manifest.features,
            dtype=manifest.dtype,
            nulls="mean",  # keeps missing values as NaN
            carried=pa.schema([]),
            shard_keys=False,
            table=manifest.table,
        )
        pieces = pieces_of(manifest, lake)
        names = list(manifest.keys or SHARD_KEY_COLUMNS)
        found = []
        for row in range(len(rows)):
            key = rows.slice(row, 1).select(names)
            found.append(_raw_row(reader, manifest, pieces, key))
        return found
    except (PipelineError, OSError, pa.ArrowException) as error:
        reason = why(error) if isinstance(error, OSError) else str(error)
        return [reason.partition(";")[0]] * len(rows)


def _raw_row(
    reader: Reader, manifest: Manifest, pieces: pa.Table, key: pa.Table
) -> NDArray[np.float64] | str:
    gone: list[str] = []
    places = _places(manifest, pieces, key, gone)
    first = list(itertools.islice(places, 2))
    if not first and gone:
        return f"shard {gone[0]} is gone, or changed since the run read it"
    if not first:
        return "the input no longer has a row with that key"
    if len(first) > 1:
        return "the input has several rows with that key, and nothing tells them apart"
    piece, position = first[0]
    one = pieces.slice(piece, 1)
    for name, value in (("row_start", position), ("rows", 1)):
        one = with_column(one, name, pa.array([value], pa.int64()))
    (block,) = reader.blocks(one)
    return np.asarray(block.x_BF[0], np.float64)


def _places(
    manifest: Manifest, pieces: pa.Table, key: pa.Table, gone: list[str]
) -> Iterator[tuple[int, int]]:
    """Piece, and position in its row group, of every row of the input with this key.

    Names of shards that are gone or changed since they were pinned are added to ``gone``.
    """
    if not manifest.keys:
        shard, number = (key[name][0].as_py() for name in SHARD_KEY_COLUMNS)
        if manifest.table:  # row numbers count deleted rows too
            (held,) = np.nonzero(pc.equal(pieces["name"], shard).to_numpy(zero_copy_only=False))
            if len(held):
                yield from _numbered(manifest.table, pieces, (held[0], held[-1] + 1), number)
            return
        first, rows = pieces["first_row"].to_numpy(), pieces["rows"].to_numpy()
        held = pc.equal(pieces["name"], shard).to_numpy(zero_copy_only=False)
        for piece in np.flatnonzero(held & (first <= number) & (number < first + rows)):
            yield int(piece), int(number - first[piece])
        return
    keys = KeySet(key, "--key")
    edges = np.flatnonzero(np.diff(pieces["shard"].to_numpy(), prepend=-1, append=-1))
    shards = list(itertools.pairwise(edges.tolist()))
    reads = (partial(_in_shard, pieces, ends, keys, manifest.table) for ends in shards)
    for (first, _), found in zip(shards, in_parallel(reads, _AT_A_TIME), strict=True):
        if found is None:
            gone.append(pieces["name"][first].as_py())
        else:
            yield from found


def _in_shard(
    pieces: pa.Table, ends: tuple[int, int], keys: KeySet, of: LakeTable | None
) -> list[tuple[int, int]] | None:
    """The same in one shard; None where it is gone or changed since it was pinned."""
    shard = _shard_of(pieces, ends)
    url = shard.url
    found = []
    try:
        if not is_as_pinned(shard):
            return None
    except FileNotFoundError:
        return None
    with open_input(url) as source:
        parquet = ShardFile(source, shard.name)
        if of is not None:
            return _live_places(of, parquet, pieces, ends, keys)
        in_file = [name for name in keys.names if name in parquet.names]
        folder = hive_values(url)
        for piece in range(*ends):
            group = pieces["row_group"][piece].as_py()
            if not keys.may_be_in(parquet.footer.metadata.row_group(group)):
                continue
            table = parquet.read(group, in_file)
            columns = {}
            for field in keys.schema:
                if field.name in in_file:
                    columns[field.name] = cast_to(table[field.name], field.type)
                else:
                    rows = parquet.footer.rows[group]
                    columns[field.name] = hive_column(folder.get(field.name), rows, field.type)
            held_B = keys.found_in(pa.table(columns))
            found += [(piece, int(place)) for place in np.flatnonzero(held_B)]
    return found


def _shard_of(pieces: pa.Table, ends: tuple[int, int]) -> ShardVersion:
    return ShardVersion(*(pieces[name][ends[0]].as_py() for name in ("url", "name", "version")))


def _live_places(
    table: LakeTable,
    parquet: ShardFile,
    pieces: pa.Table,
    ends: tuple[int, int],
    wanted: KeySet | int,
) -> list[tuple[int, int]]:
    """The same among the live rows of a lake table's file, by key or by row number."""
    (first,) = pieces.slice(ends[0], 1).to_pylist()
    opened = OpenShard.of(table, parquet, first)
    names = wanted.names if isinstance(wanted, KeySet) else []
    found = []
    for piece in range(*ends):
        start = 0
        group = pieces["row_group"][piece].as_py()
        for rows, numbers_B in opened.batches(names, group, _BATCH_ROWS):
            if isinstance(wanted, KeySet):
                keys = {f.name: cast_to(rows[f.name], f.type) for f in wanted.schema}
                held_B = wanted.found_in(pa.table(keys))
            else:
                held_B = numbers_B == wanted
            found += [(piece, start + int(place)) for place in np.flatnonzero(held_B)]
            start += len(rows)
    return found


def _numbered(
    table: LakeTable, pieces: pa.Table, ends: tuple[int, int], number: int
) -> list[tuple[int, int]]:
    """The place of a row by its number in a lake table's file."""
    shard = _shard_of(pieces, ends)
    with suppress(FileNotFoundError):
        if is_as_pinned(shard):
            with open_input(shard.url) as source:
                return _live_places(table, ShardFile(source, shard.name), pieces, ends, number)
    return []


# ------------------------------------------------------------------- evidence and nearest exemplars


@dataclass(frozen=True)
class Evidence:
    """Evidence of one feature for the cluster of a row, against its runner-up."""

    feature: str  # name of the user's column, with the index of a component or a category's value
    value: float  # value of the row, in the user's units; for a category, 1 where the row has it
    mean: float
    other_mean: float
    # Distance of the value from ``mean``, in pooled standard deviations of both clusters.
    away: float
    other_away: float

    @property
    def weight(self) -> float:
        """How much nearer the value is to the cluster than to the runner-up; negative: farther."""
        return self.other_away - self.away


def evidence(
    found: ExplainedRun,
    profile: Sequence[dict[str, Any]],
    x_F: NDArray[np.float64],
    one: int,
    other: int,
) -> list[Evidence]:
    """Evidence of each feature, the strongest first; features without spread have none.

    ``profile`` has the rows of the run's profile about both clusters; ``x_F`` is the raw row, shape
    (features,).
    """
    names = {name: place for place, name in enumerate(feature_names(found.description.features))}
    words = _words(found)
    weighed = []
    for row, mean, other_mean, spread in means_of_two(profile, one, other):
        label, category = feature_label(row), row["value"]
        value = float(x_F[names[label]]) if label in names else np.nan
        if row["kind"] == "category" and label in words and category is not None:
            value = float(words[label].get(value) == category)
            label = f"{label} = {category}"
        elif label in words or (row["kind"] == "category" and category != "true"):
            continue  # of booleans, whose raw rows are 1 where they are true
        if spread is not None and np.isfinite(value):
            away, other_away = abs(value - mean) / spread, abs(value - other_mean) / spread
            weighed.append(Evidence(label, value, mean, other_mean, away, other_away))
    return sorted(weighed, key=lambda e: -abs(e.weight))


@dataclass(frozen=True)
class Near:
    """An exemplar near a row."""

    cluster_id: int
    kind: str  # central, typical or ambiguous
    keys: dict[str, Any]
    distance: float  # distance to the row in the model's embedding


def nearest_exemplars(
    found: ExplainedRun, x_F: NDArray[np.float64], clusters: Sequence[int], most: int
) -> list[Near]:
    """The exemplars of some clusters that are nearest to a row; empty if none has features.

    Raises:
        InputError: The model is gone.
    """
    table = read_exemplars(found, clusters)
    table = table.filter(pc.is_valid(table["features"]))
    if not len(table):
        return []
    x_EF = matrix_of(table["features"]).astype(np.float64)
    about = found.description
    try:
        settings = settings_of(found.lake, about.model)
        model = load_model(found.lake, about.model, settings)
    except FileNotFoundError:
        raise _gone(f"model {about.model.model_id}") from None
    with torch.inference_mode():
        z_BD = embeddings(
            model.clusters.encoder, model.scaler, torch.from_numpy(np.vstack([x_F, x_EF]))
        )
        away_E = torch.linalg.vector_norm(z_BD[1:] - z_BD[0], dim=1).numpy()
    keys = [json.loads(text) for text in keys_as_json(table.select(key_names(table.schema)))]
    near: dict[str, Near] = {}  # a row may be an exemplar of two kinds
    for place in np.argsort(away_E, kind="stable").tolist():
        cluster, kind = (table[name][place].as_py() for name in ("cluster_id", "kind"))
        one = Near(cluster, kind, keys[place], float(away_E[place]))
        near.setdefault(json.dumps(one.keys), one)
        if len(near) == most:
            break
    return list(near.values())


def why_none_near(found: ExplainedRun, clusters: Sequence[int]) -> str:
    """The reason why there are no nearest exemplars."""
    if not found.explanation.exemplars_kept:
        return "the run kept none (explain.exemplars=0)"
    if not len(read_exemplars(found, clusters)):
        return "none of these clusters has any: they have no rows, or those were forgotten"
    return (
        "the run kept their keys but not their features: rows are too wide, or clusters too many, "
        "to keep both"
    )


def _words(found: ExplainedRun) -> dict[str, dict[float, str]]:
    """Values of category columns by their code in raw rows; empty where the model is gone."""
    with suppress(FileNotFoundError):
        return load_vocabulary(found.lake, found.description.model.scaler)
    return {}
