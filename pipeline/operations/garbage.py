"""``dec gc``: remove old snapshots, tunings and unpublished runs, and what only they name.

Files are kept by name, not by folder: every file, model and run that a kept snapshot, a kept run or
the registry's entries of the newest champions name. Others are removed if they are old enough by
the store's clock and the lease of their ds is free; ``dec gc`` holds it meanwhile. So a run that is
resumed at the same time is either complete or starts again.

With an Iceberg or Delta table, nothing is removed while the table is behind the log. When it is up
to date, it names the files of the newest snapshot, which is always kept; its own history reaches no
further back than the kept snapshots. A table that the config no longer names is ignored.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.artifacts.records import StoredFile
from pipeline.config import Retention
from pipeline.errors import ConfigError, InputError, LeaseHeld, TransientError
from pipeline.insight.profiles.files import COPIES, profile_path
from pipeline.insight.profiles.files import FOLDER as PROFILES
from pipeline.lake.lease import is_free, is_held, store_time, take
from pipeline.lake.parts import DELTA_FOLDER
from pipeline.lake.receipts import read_receipts, withdrawn_parts
from pipeline.lake.snapshots import (
    FOLDER,
    SnapshotFile,
    latest_snapshot,
    read_file_list,
    read_snapshot,
    snapshot_files,
)
from pipeline.operations.holdings import files_of_snapshot
from pipeline.registry.entries import FOLDER as REGISTRY
from pipeline.registry.entries import entry_numbers, read_entry
from pipeline.runs import RunFolder
from pipeline.schema import NAME_PATTERN
from pipeline.storage import FoundFile, Store, why

_DAY_S = 86_400.0
_TUNINGS = "tuning"  # of pipeline.tuning.trials; the lease of each has its name
# Nothing younger is removed, whatever the settings say: longer than an upload, a reader's query or
# the difference between the clocks of machines that share a folder.
_SAFETY_S = _DAY_S
_LEASE_S = 60.0
_DELETED_AT_A_TIME = 1000
# Files of a published run that stay when its rows are removed: small, and the table's history. Its
# report is removed with the rows: it shows keys, and dec forget could no longer look them up.
_HISTORY = re.compile(r"runs/[^/]+/((run|manifest|metrics)\.json|config\.yaml)")
# Temporary files of processes that were killed.
_LEFTOVER = re.compile(r"(.*/)?\.([0-9a-f]{32}\.tmp|write-check-[0-9a-f]{32})")


@dataclass(frozen=True)
class Removal:
    """Files to remove together."""

    # "snapshots", "published run", "unpublished run", "unlisted files", "tuning", "model",
    # "unlisted tables", "cached footers", "leases" or "leftovers".
    kind: str
    name: str
    files: tuple[str, ...]  # paths below the output, in the order of removal
    bytes: int
    ds: str | None = None  # logical date whose lease is needed; None: no lease
    # Files of the run and their versions when it was chosen; a change keeps the run.
    seen: frozenset[tuple[str, str]] = frozenset()


@dataclass
class Collection:
    """What ``dec gc`` did, or with ``dry_run`` would do.

    ``skipped`` has what could not be removed, with the reason; ``kept_runs`` are kept whole.
    """

    removals: list[Removal] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept_snapshots: list[int] = field(default_factory=list)
    kept_runs: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Total size of the removed files."""
        return sum(removal.bytes for removal in self.removals)


def collect(
    lake: Store,
    retention: Retention,
    *,
    dry_run: bool,
    tables: bool = False,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Collection:
    """Remove what retention does not keep.

    ``dry_run`` removes and writes nothing. ``tables``: whether an Iceberg or Delta table follows
    the log. ``on_wait`` is called with a line when a lease has to be waited for.

    Raises:
        InputError: A file that a snapshot names cannot be read, the table may be behind the log,
            or ``dec forget`` was interrupted; nothing was removed.
    """
    found = Collection()
    latest = latest_snapshot(lake)
    if latest is None and not (lake.walk("runs") or lake.walk(_TUNINGS)):
        return found
    _require_forgotten(lake)
    if tables and latest is not None:
        _require_tables_in_step(lake, latest)
    # Ages are differences of times by one clock; this machine's may be wrong by days.
    now = time.time() if dry_run else store_time(lake)
    census = _Census(lake, retention, now)
    found.kept_snapshots = census.kept_snapshots
    found.skipped += [f"{name}: at work" for name in census.worked_on]
    remove = _Remover(lake, dry_run, (census.newest, census.newest_entry), on_wait, found)
    tunings, leftovers = census.tunings, (*census.footers(), *census.leftovers())
    for removal in (*census.snapshots(), *census.runs(), *tunings, *leftovers):
        remove(removal)
    # Models last, by the runs that remain: one of them may have been resumed meanwhile.
    gone = {r.name.removeprefix("runs/") for r in found.removals if r.kind.endswith(" run")}
    for removal in census.models_and_tables(gone):
        remove(removal)
    found.kept_runs = sorted(census.run_files.keys() - gone)
    return found


def _require_forgotten(lake: Store) -> None:
    """A command that was killed left files that nothing names yet, and a table with old ones."""
    for receipt in read_receipts(lake):
        if not receipt.finished:
            raise InputError(
                f"{lake.locate(receipt.path)}: dec forget was interrupted; nothing was removed. "
                "Run it again: it finishes that first"
            )


def _require_tables_in_step(lake: Store, latest: SnapshotFile) -> None:
    """A run that was killed between its commits to log and table left the table behind."""
    for ds, partition in latest.partitions.items():
        if not lake.exists(f"runs/{partition.run_id}/stages/publish/done.json"):
            raise InputError(
                f"ds {ds}: run {partition.run_id} is in the log, but the table may still name the "
                "files of the run before; nothing was removed. Run the same run id again: it "
                "updates the table"
            )


@dataclass(frozen=True)
class _Remover:
    """Removes files unless log or registry have newer entries than the census saw."""

    lake: Store
    dry_run: bool
    newest: tuple[int, int]  # numbers of the newest snapshot and of the registry's newest entry
    on_wait: Callable[[str], None]
    result: Collection

    def __call__(self, removal: Removal) -> None:
        """Remove these files, or record why not."""
        if self.dry_run:
            self.result.removals.append(removal)
            return
        try:
            with ExitStack() as held:
                lease = None
                if removal.ds is not None:
                    lease = take(
                        self.lake, removal.ds, "dec gc", seconds=_LEASE_S, on_wait=self.on_wait
                    )
                    held.callback(lease.release)
                if reason := self._changed(removal):
                    self.result.skipped.append(f"{removal.name}: {reason}")
                    return
                for start in range(0, len(removal.files), _DELETED_AT_A_TIME):
                    if lease:
                        lease.confirm()  # a run that took it over may use these files again
                    self.lake.delete(removal.files[start : start + _DELETED_AT_A_TIME])
                if "/" in removal.name:
                    for folder in {"/".join(path.split("/")[:2]) for path in removal.files}:
                        self.lake.prune(folder)
                self.result.removals.append(removal)
        except LeaseHeld as held:
            self.result.skipped.append(f"{removal.name}: {held}")
        except PermissionError as error:
            raise ConfigError(
                f"{self.lake.locate(removal.name)} cannot be removed: {why(error)}; "
                "dec gc needs the right to delete below output"
            ) from None
        except OSError as error:
            raise TransientError(
                f"{self.lake.locate(removal.name)} cannot be removed: {why(error)}; "
                "run it again, it continues with what is left"
            ) from error

    def _changed(self, removal: Removal) -> str | None:
        snapshot, entry = self.newest
        if max(snapshot_files(self.lake), default=0) != snapshot:
            return "another run published meanwhile; run it again"
        if max(entry_numbers(self.lake), default=0) != entry:
            return "the registry changed meanwhile; run it again"
        if removal.seen and removal.seen != _versions(self.lake.walk(removal.name)):
            return "resumed meanwhile"
        return None


class _Census:
    """All files below the output, and which of them are kept."""

    def __init__(self, lake: Store, retention: Retention, now: float) -> None:
        self._lake, self._retention, self._now = lake, retention, now
        self._snapshots = snapshot_files(lake)
        self.newest = max(self._snapshots, default=0)
        self.kept_snapshots = self._kept_snapshots()
        self.run_files = _by_folder("runs", lake.walk("runs"))
        for run, files in _by_folder(DELTA_FOLDER, lake.walk(DELTA_FOLDER)).items():
            self.run_files.setdefault(run, {}).update(files)
        self._withdrawn = withdrawn_parts(lake)
        self._protected: set[str] = set()
        self._models: set[str] = set()
        self._published: set[str] = set()
        self._read_kept_snapshots()
        self.newest_entry = self._read_registry()
        self.worked_on: list[str] = []
        self.tunings = list(self._old_tunings())
        self._candidates: set[str] = set()
        for run in self.run_files:
            if run in self._published or not self._is_old(run):
                self._protect_listed(run)
            elif (ds := RunFolder(self._lake, run).ds) and is_held(lake, ds):
                self._protect_listed(run)
                self.worked_on.append(f"run {run}")
            else:
                self._candidates.add(run)

    def snapshots(self) -> Iterator[Removal]:
        """Snapshots beyond retention, oldest first, so that the log never has gaps."""
        old = [file for n, file in self._snapshots.items() if n not in self.kept_snapshots]
        if old:
            paths = tuple(f"{FOLDER}/{file.name}" for file in old)
            yield Removal("snapshots", FOLDER, paths, sum(file.bytes for file in old))

    def runs(self) -> Iterator[Removal]:
        """Runs that no kept snapshot names, and files of published runs that nothing lists."""
        for run, files in self.run_files.items():
            if run in self._candidates:
                published = f"runs/{run}/metrics.json" in files
                kind = "published run" if published else "unpublished run"
                going = [p for p in files if not (published and _HISTORY.fullmatch(p))]
            elif run in self._published:
                kind = "unlisted files"
                folders = (
                    *(f"runs/{run}/assignments/", f"{DELTA_FOLDER}/{run}/"),
                    f"runs/{run}/{PROFILES}/",
                )
                staged = (p for p in files if p.startswith(folders) and self._aged(files[p]))
                going = [p for p in staged if not _LEFTOVER.fullmatch(p)]
            else:
                continue
            if going := [path for path in going if path not in self._protected]:
                # Markers first: without them, a run that is resumed does its work again. run.json
                # last: it names the ds whose lease is needed.
                going.sort(key=lambda p: (not p.endswith("/done.json"), p.endswith("/run.json")))
                removal = _removal(kind, f"runs/{run}", going, files)
                of_run = [file for path, file in files.items() if path.startswith("runs/")]
                yield replace(removal, ds=RunFolder(self._lake, run).ds, seen=_versions(of_run))

    def models_and_tables(self, gone: set[str]) -> Iterator[Removal]:
        """Models and files of the registry that nothing names, no remaining run either."""
        models, tables = set(self._models), set(self._protected)
        for run, files in self.run_files.items():
            if run not in gone:
                for path in files:
                    if path.endswith("/done.json"):
                        with suppress(FileNotFoundError):
                            text = self._lake.read_bytes(path).decode("utf-8", "replace")
                            models |= set(re.findall(rf"models/({NAME_PATTERN})/", text))
                            tables |= set(re.findall(rf"{REGISTRY}/{NAME_PATTERN}", text))
        for model, files in _by_folder("models", self._lake.walk("models")).items():
            if model not in models and all(map(self._aged, files.values())):
                yield _removal("model", f"models/{model}", list(files), files)
        files = self._listed(REGISTRY)
        written = (path for path in files if path.endswith(".parquet"))  # all entries are kept
        if left := [path for path in written if path not in tables and self._aged(files[path])]:
            yield _removal("unlisted tables", REGISTRY, left, files)

    def leftovers(self) -> Iterator[Removal]:
        """Leases and temporary files of processes that were killed."""
        claims = _by_folder("leases", self._lake.walk("leases"))
        files = {path: file for of_ds in claims.values() for path, file in of_ds.items()}
        ended = [ds for ds, old in claims.items() if all(map(self._aged, old.values()))]
        if old := [path for ds in ended if is_free(self._lake, ds) for path in claims[ds]]:
            yield _removal("leases", "leases", old, files)
        files |= {file.name: file for file in self._lake.list()}
        for folder in (FOLDER, REGISTRY, "footers"):
            files |= self._listed(folder)
        for folder in COPIES:
            files |= {f"{folder}/{file.name}": file for file in self._lake.walk(folder)}
        for run in self.run_files.keys() - self._candidates:
            files |= self.run_files[run]
        if left := [p for p, f in files.items() if _LEFTOVER.fullmatch(p) and self._aged(f)]:
            yield _removal("leftovers", "", left, files)

    def footers(self) -> Iterator[Removal]:
        """Cached footers that no recent night used: each night rewrites those that it uses."""
        files = {p: f for p, f in self._listed("footers").items() if p.endswith(".parquet")}
        newest = max((file.modified for file in files.values()), default=0)
        before = min(newest, self._now - _seconds(self._retention.unpublished_days))
        if old := [path for path, file in files.items() if file.modified < before]:
            yield _removal("cached footers", "footers", old, files)

    def _old_tunings(self) -> Iterator[Removal]:
        """Trials of abandoned tunings; their sample is in a run, and removed with it."""
        wanted = _seconds(self._retention.tuning_days)
        for tuning, files in _by_folder(_TUNINGS, self._lake.walk(_TUNINGS)).items():
            if self._now - max(file.modified for file in files.values()) <= wanted:
                continue
            if is_held(self._lake, tuning):
                self.worked_on.append(f"tuning {tuning}")
                continue
            # tuning.json last: without it, the trials would count for another table.
            order = sorted(files, key=lambda path: path.endswith("/tuning.json"))
            removal = _removal("tuning", f"{_TUNINGS}/{tuning}", order, files)
            yield replace(removal, ds=tuning, seen=_versions(files.values()))

    def _listed(self, folder: str) -> dict[str, FoundFile]:
        return {f"{folder}/{file.name}": file for file in self._lake.list(folder)}

    def _aged(self, file: FoundFile) -> bool:
        return self._now - file.modified > _SAFETY_S

    def _kept_snapshots(self) -> list[int]:
        numbers = list(self._snapshots)
        times = [self._snapshots[number].modified for number in numbers]
        wanted = _seconds(self._retention.days)
        for place in range(len(numbers)):
            beyond = len(numbers) - place > self._retention.snapshots
            # It was the newest until the next one came.
            if not beyond or self._now - times[place + 1] <= wanted:
                return numbers[place:]
        return []

    def _read_kept_snapshots(self) -> None:
        lists: dict[str, int] = {}
        for number in self.kept_snapshots:
            for partition in read_snapshot(self._lake, number).partitions.values():
                lists.setdefault(partition.files, number)
                self._models.add(partition.model_id)
                self._published.add(partition.run_id)
        for path, number in lists.items():
            listed = files_of_snapshot(self._lake, number, path)
            self._protected |= {path, *_with_profiles(file.path for file in listed)}

    def _read_registry(self) -> int:
        """Protect files of entries with the newest champions; returns the newest entry's number."""
        numbers = entry_numbers(self._lake)
        champions: set[tuple[str, str]] = set()
        for number in reversed(numbers):
            entry = read_entry(self._lake, number)
            # A champion may have several entries: a cluster was renamed, or keys were forgotten.
            champions.add((entry.champion.run_id, entry.champion.model.model_id))
            if len(champions) > self._retention.champions:
                break
            self._protected |= set(_stored_files(entry.model_dump(mode="json")))
            self._models.add(entry.champion.model.model_id)
        return max(numbers, default=0)

    def _is_old(self, run: str) -> bool:
        files = self.run_files[run]
        # If it was published, no kept snapshot names it.
        published = f"runs/{run}/metrics.json" in files
        wanted = _seconds(0 if published else self._retention.unpublished_days)
        return self._now - max(file.modified for file in files.values()) > wanted

    def _protect_listed(self, run: str) -> None:
        """Protect the part files that a kept run lists; they may lie in other runs' folders."""
        for path in self.run_files[run]:
            if re.fullmatch(r"runs/[^/]+/stages/assign/files[^/]*\.json", path):
                with suppress(FileNotFoundError, InputError):
                    listed = read_file_list(self._lake, path)
                    # Parts that dec forget replaced are kept by snapshots, not by runs.
                    files = {file.path for file in listed.files} - self._withdrawn
                    self._protected |= {path, *_with_profiles(files)}


def _seconds(days: float) -> float:
    """Minimum age in seconds of what is removed after so many days."""
    return max(days * _DAY_S, _SAFETY_S)


def _with_profiles(parts: Iterable[str]) -> Iterator[str]:
    """Part files, and the profile of each."""
    for path in parts:
        yield path
        yield profile_path(path)


def _by_folder(root: str, files: Iterable[FoundFile]) -> dict[str, dict[str, FoundFile]]:
    """Files by their folder below the root, then by their path below the output."""
    folders: dict[str, dict[str, FoundFile]] = defaultdict(dict)
    for file in files:
        name, separator, _ = file.name.partition("/")
        if separator and re.fullmatch(NAME_PATTERN, name):
            folders[name][f"{root}/{file.name}"] = file
    return dict(sorted(folders.items()))


def _stored_files(content: Any) -> Iterator[str]:
    """Paths of all files that an artifact names, at any depth."""
    if isinstance(content, dict):
        if content.keys() == StoredFile.model_fields.keys():
            yield content["path"]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _stored_files(part)


def _removal(kind: str, name: str, paths: list[str], files: dict[str, FoundFile]) -> Removal:
    return Removal(kind, name, tuple(paths), sum(files[path].bytes for path in paths))


def _versions(files: Iterable[FoundFile]) -> frozenset[tuple[str, str]]:
    return frozenset((file.url, file.version) for file in files)
