"""Find the files that hold rows with some keys, and write them again without those rows.

Finding reads only footers and key columns. A file is written again under a new name, since readers
may have the old one open.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import fingerprint_of
from pipeline.errors import InputError, TransientError
from pipeline.input.samples import FEATURES
from pipeline.insight.profiles.files import profile_path, read_profile, write_profile
from pipeline.lake.parts import (
    DELTA_FOLDER,
    key_columns,
    part_path,
    statistics_in,
    statistics_of,
    write_part,
)
from pipeline.lake.receipts import Kind, Rewritten
from pipeline.lake.snapshots import read_file_list, read_snapshot, snapshot_files
from pipeline.operations.forgotten_keys import KeySet, key_table
from pipeline.registry import entries as registry
from pipeline.runs import RunFolder
from pipeline.schema import exemplar_key, with_column
from pipeline.storage import Store, open_input, parquet_bytes, sha256, why

# Files to read at a time; nearly all of a scan is waiting for the store.
_AT_A_TIME = 16
# Parts in memory at a time, each a slice.
_REWRITTEN_AT_A_TIME = 4
_EXEMPLARS = "exemplars"
_PART = re.compile(rf"(runs/[^/]+/assignments|{DELTA_FOLDER}/[^/]+)/.*\.parquet")
# Exemplars of a part, or of several during a merge; of a run; and COPY, those that serve a ds.
_OF_PARTS = re.compile(r"runs/[^/]+/(profiles|stages/explain/merged)/.*\.parquet")
_OF_RUN = re.compile(r"runs/[^/]+/stages/explain/exemplars[^/]*\.parquet")
# The map of a report, and the report: the map and the run's exemplars tell which keys it shows.
_MAP = re.compile(r"runs/[^/]+/stages/report/map[^/]*\.parquet")
PAGE = re.compile(r"runs/([^/]+)/report/index\.html")
_OF_STAGE = re.compile(r"(runs/[^/]+/stages|registry)/.*\.parquet")
# The first that a path matches decides.
_KINDS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (_PART, "assignments"),
    (_OF_PARTS, "exemplars"),
    (_OF_RUN, "exemplars"),
    (_MAP, "report"),
    (_OF_STAGE, "reference sample"),
)
COPY = re.compile(r"cluster_exemplars/ds=([^/]+)/exemplars\.parquet")


@dataclass(frozen=True)
class Holding:
    """A file that has some of the rows."""

    path: str
    kind: Kind
    rows: int = 0
    ds: tuple[str, ...] = ()  # partitions that name it, or the ds of its run
    snapshots: tuple[int, ...] = ()
    # Whether the newest snapshot or the registry names it, or a complete run, whose model may be
    # promoted.
    named: bool = False
    run: str = ""  # run whose folder it lies in; empty: none

    @property
    def only_old(self) -> bool:
        """Whether only older snapshots name it, so that it stays until ``dec gc``."""
        return bool(self.snapshots) and not self.named


class Census:
    """Every file that may hold rows, and what names it; ``newest`` is the newest snapshot."""

    def __init__(self, lake: Store, keys: KeySet) -> None:
        self._lake, self._keys = lake, keys
        self._cast: dict[str, KeySet] = {}
        self.newest = 0
        self._files: dict[str, Holding] = {}
        self._add_published()
        self._add_others()

    def holdings(self) -> list[Holding]:
        """The files that hold some of the rows."""
        with ThreadPoolExecutor(_AT_A_TIME) as readers:
            looked_at = readers.map(self._looked_at, self._files.values())
            found = [holding for holding in looked_at if holding is not None]
        return [*found, *self._pages(found)]

    def rewrite(self, holdings: Sequence[Holding]) -> tuple[Rewritten, ...]:
        """Write files that are named again without the rows; nothing names the new files yet."""
        with ThreadPoolExecutor(_REWRITTEN_AT_A_TIME) as writers:
            return tuple(writers.map(self._rewritten, holdings))

    def _pages(self, found: Sequence[Holding]) -> Iterator[Holding]:
        """Reports of runs whose exemplars or map have some; they are removed, to be made again."""
        shown: dict[str, list[Holding]] = defaultdict(list)
        for holding in found:
            if _MAP.fullmatch(holding.path) or _OF_RUN.fullmatch(holding.path):
                shown[holding.run].append(holding)
        for run, tables in sorted(shown.items()):
            path = f"runs/{run}/report/index.html"
            if self._lake.exists(path):
                rows = sum(table.rows for table in tables)
                yield Holding(path, "report", rows=rows, ds=tables[0].ds, named=True, run=run)

    def _add_published(self) -> None:
        """Add the part files that snapshots name; each list is read once."""
        lists: dict[str, tuple[PartFile, ...]] = {}
        snapshots: dict[str, set[int]] = defaultdict(set)
        partitions: dict[str, set[str]] = defaultdict(set)
        for number in sorted(snapshot_files(self._lake)):
            self.newest = number
            partitions.clear()  # only those of the newest count
            for ds, partition in read_snapshot(self._lake, number).partitions.items():
                path = partition.files
                if path not in lists:
                    lists[path] = files_of_snapshot(self._lake, number, path)
                for file in lists[path]:
                    snapshots[file.path].add(number)
                    partitions[file.path].add(ds)
        for path, numbers in snapshots.items():
            self._files[path] = Holding(
                path,
                "assignments",
                ds=tuple(sorted(partitions.get(path, ()))),
                snapshots=tuple(sorted(numbers)),
                named=path in partitions,
            )

    def _add_others(self) -> None:
        """Add the files of runs that no snapshot names, and those that the registry names."""
        named = set()
        for number in registry.entry_numbers(self._lake):
            entry = registry.read_entry(self._lake, number)
            parts = entry.champion.reference.sample.parts
            named |= {entry.clusters.path, *(part.path for part in parts)}
        runs: dict[str, tuple[tuple[str, ...], bool]] = {"": ((), True)}  # ds; whether complete
        for folder in ("runs", DELTA_FOLDER, registry.FOLDER, "cluster_exemplars"):
            for file in self._lake.walk(folder):
                path = f"{folder}/{file.name}"
                if path in self._files or path.rpartition("/")[2].startswith("."):
                    continue
                if copy := COPY.fullmatch(path):
                    self._files[path] = Holding(path, "exemplars", ds=(copy[1],))
                    continue
                matching = ((pattern, kind) for pattern, kind in _KINDS if pattern.fullmatch(path))
                if not (found := next(matching, None)):
                    continue
                pattern, kind = found
                # The registry's folder has tables of challengers, too.
                run = "" if folder == registry.FOLDER else file.name.partition("/")[0]
                if run not in runs:
                    ds = RunFolder(self._lake, run).ds
                    complete = self._lake.exists(f"runs/{run}/metrics.json")
                    runs[run] = ((ds,) if ds else (), complete)
                of_ds, complete = runs[run]
                # A part that is written again gets its own profile.
                kept = path in named or (complete and pattern not in (_PART, _OF_PARTS))
                self._files[path] = Holding(path, kind, ds=of_ds, named=kept, run=run)

    def _looked_at(self, file: Holding) -> Holding | None:
        """The file with the number of its rows; None where it holds none."""
        try:
            with open_input(self._lake.locate(file.path)) as source:
                parquet = pq.ParquetFile(source)
                schema = parquet.schema_arrow
                if file.kind == "exemplars":
                    return self._with_exemplars(file, parquet)
                if _EXEMPLARS in schema.names and file.kind != "assignments":
                    rows = int(self._listed(parquet.read([_EXEMPLARS])).sum())
                    return replace(file, kind="exemplars", rows=rows) if rows else None
                if not self._has_rows(file, schema):
                    return None
                keys = self._keys_for(schema)
                rows = 0
                for group in range(parquet.num_row_groups):
                    if keys.may_be_in(parquet.metadata.row_group(group)):
                        table = parquet.read_row_group(group, columns=keys.names)
                        rows += int(keys.found_in(table).sum())
        except (FileNotFoundError, pa.ArrowInvalid):
            if file.snapshots and file.named:
                raise InputError(
                    f"{self._lake.locate(file.path)} is gone or damaged, so it is unknown whether "
                    "it holds any of the rows; nothing was removed. Publish its ds again first"
                ) from None
            return None  # a run that resumes could not read it either
        except OSError as error:
            raise TransientError(
                f"{self._lake.locate(file.path)}: {why(error)}; it is unknown whether it holds any "
                "of the rows, and nothing was removed. Run it again"
            ) from error
        return replace(file, rows=rows) if rows else None

    def _with_exemplars(self, file: Holding, parquet: pq.ParquetFile) -> Holding | None:
        names = [exemplar_key(name) for name in self._keys.names]
        if not {*names} <= {*parquet.schema_arrow.names}:
            return None  # of a table with other keys
        # The last row group of a profile has its exemplars.
        first = parquet.num_row_groups - 1 if _OF_PARTS.fullmatch(file.path) else 0
        groups = list(range(first, parquet.num_row_groups))
        rows = int(self._among_exemplars(parquet.read_row_groups(groups, columns=names)).sum())
        return replace(file, rows=rows) if rows else None

    def _among_exemplars(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which rows have one of the keys."""
        table = table.select([exemplar_key(name) for name in self._keys.names])
        table = table.rename_columns(self._keys.names)
        return self._keys_for(table.schema).found_in(table)

    def _has_rows(self, file: Holding, schema: pa.Schema) -> bool:
        if file.kind != "assignments":
            ours = FEATURES in schema.names or file.kind == "report"
            return ours and {*self._keys.names} <= {*schema.names}
        if {*key_columns(schema)} == {*self._keys.names}:
            return True
        if file.named:
            raise InputError(
                f"rows of ds {', '.join(file.ds)} have the keys {key_columns(schema)}, not "
                f"source.keys={self._keys.names}; nothing was removed. Use the config that it was "
                "published with"
            )
        return False

    def _keys_for(self, schema: pa.Schema) -> KeySet:
        types = str([schema.field(name).type for name in self._keys.names])
        if types not in self._cast:
            self._cast[types] = self._keys.cast(schema)
        return self._cast[types]

    def _listed(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which exemplars of all lists, one after the other, have one of the keys."""
        texts = table[_EXEMPLARS].combine_chunks().flatten().dictionary_encode()
        if not len(texts):
            return np.zeros(0, bool)
        keys = next(iter(self._cast.values()), self._keys)
        known = key_table(texts.dictionary.to_pylist(), keys.schema)
        found: NDArray[np.bool_] = keys.found_in(known)[texts.indices.to_numpy()]
        return found

    def _rewritten(self, holding: Holding) -> Rewritten:
        gone = {"kind": holding.kind, "old": holding.path, "removed": holding.rows}
        if not holding.named or PAGE.fullmatch(holding.path):
            return Rewritten(**gone, new=None)
        with open_input(self._lake.locate(holding.path)) as source:
            parquet = pq.ParquetFile(source)
            table = parquet.read()
            statistics = statistics_in(parquet.metadata)
        if _OF_RUN.fullmatch(holding.path):
            table = table.filter(pa.array(~self._among_exemplars(table)))
        elif holding.kind == "exemplars":
            table = _without(table, self._listed(table))
        else:
            keys = self._keys_for(table.schema)
            gone_B = keys.found_in(table.select(keys.names))
            table = table.filter(pa.array(~gone_B))
        if holding.kind != "assignments":
            content = parquet_bytes(table)
            digest = sha256(content)
            path = f"{holding.path.removesuffix('.parquet')}-{digest[:12]}.parquet"
            self._lake.write_bytes(path, content)
            return Rewritten(**gone, new=path, sha256=digest, bytes=len(content), rows=len(table))
        if statistics is None:
            raise InputError(
                f"{self._lake.locate(holding.path)} is not a part file that this version reads; "
                "nothing was removed"
            )
        # No longer the slice's part: no later night may carry it over, nor this run reuse it.
        identity = fingerprint_of([statistics.identity, sha256(np.packbits(gone_B).tobytes())])
        # The file lacks the label: its classes cannot be counted again without the source.
        now = statistics_of(identity, statistics.rows_in - holding.rows, table, None)
        names = ("identity", "rows_in", "rows", "cluster_rows", "confidence_sum", "contingency")
        now = replace(statistics, **{name: getattr(now, name) for name in names})
        path = part_path(holding.path.rpartition("/")[0], identity)
        self._write_profile(holding.path, path, identity)
        size = write_part(self._lake, path, table, now)
        return Rewritten(**gone, new=path, bytes=size, rows=len(table))

    def _write_profile(self, old: str, new: str, identity: str) -> None:
        """Write the profile of a part without the exemplars among the rows; its sums stay."""
        try:
            profile = read_profile(self._lake, profile_path(old))
        except (FileNotFoundError, pa.ArrowException, KeyError, ValueError):
            return  # of an older version, or damaged: nothing reads its keys
        kept_B = pa.array(~self._among_exemplars(profile.exemplars))
        profile = replace(profile, exemplars=profile.exemplars.filter(kept_B))
        write_profile(self._lake, profile_path(new), profile, identity)


def _without(table: pa.Table, gone_B: NDArray[np.bool_]) -> pa.Table:
    """The clusters table without some of the exemplars of its lists."""
    lists = table[_EXEMPLARS].combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy()[~gone_B]
    counts = np.bincount(parents, minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    kept = lists.flatten().filter(pa.array(~gone_B))
    return with_column(table, _EXEMPLARS, pa.ListArray.from_arrays(offsets, kept).cast(lists.type))


def files_of_snapshot(lake: Store, number: int, path: str) -> tuple[PartFile, ...]:
    """Part files of a list that a snapshot names.

    Raises:
        InputError: The list does not exist, or cannot be understood.
    """
    try:
        return read_file_list(lake, path).files
    except FileNotFoundError:
        raise InputError(
            f"snapshot {number} names {lake.locate(path)}, which does not exist; nothing was "
            "removed. Restore it, or remove that snapshot"
        ) from None
