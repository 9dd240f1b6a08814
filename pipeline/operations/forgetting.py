"""``dec forget``: remove rows by their keys from everything that is read from now on.

First all files that hold such rows are found, and written again without them
(``pipeline.operations.holdings``). Then a receipt says which file replaces which. From there on
the change is decided: the registry gets an entry, the log a snapshot, both by put-if-absent, and
staged files are removed. A command that is killed before the receipt has changed nothing; after
it, the next ``dec forget`` finishes the change first.

What a model has learnt from a row, and sums over many rows (the scaler, bins of the reference
sample), stay. Files that older snapshots name stay until ``dec gc`` removes those.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import utc_now
from pipeline.errors import CommitConflict, ConfigError
from pipeline.insight.profiles.files import as_it_is_now
from pipeline.lake.lease import take
from pipeline.lake.parts import DELTA_FOLDER
from pipeline.lake.receipts import Count, Kind, Receipt, read_receipts
from pipeline.lake.snapshots import (
    FileList,
    Partition,
    amend,
    latest_snapshot,
    read_file_list,
    serves,
    snapshot_files,
)
from pipeline.lake.tables import Table, commit_of
from pipeline.operations.forgotten_keys import KeySet
from pipeline.operations.holdings import COPY, Census, Holding
from pipeline.registry import entries as registry
from pipeline.runs import RunFolder
from pipeline.storage import Store, sha256, why

_LEASE_S = 60.0


@dataclass
class Forgotten:
    """What ``dec forget`` did, or with ``dry_run`` would do."""

    # Receipts that this call wrote or finished; empty where nothing was found.
    receipts: list[Receipt] = field(default_factory=list)
    counts: tuple[Count, ...] = ()  # rows to remove
    files: int = 0
    held_by: tuple[int, ...] = ()  # snapshots that still hold some of the rows, until ``dec gc``


def forget(
    lake: Store,
    keys: KeySet,
    *,
    who: str,
    dry_run: bool = False,
    table: Table | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Forgotten:
    """Remove the rows that have one of these keys.

    ``who`` requests it, for the receipt; ``table`` follows the log. ``on_wait`` is called with a
    line when a lease has to be waited for.

    Raises:
        InputError: A partition has other key columns, or a file cannot be read.
        LeaseHeld: Another process works on a ds whose files hold some of the rows, or may be
            reading such a file; nothing was removed.
        CommitConflict: Another ``dec forget`` runs at the same time; run it again.
        CommitStateUnknown: The storage failed meanwhile; run it again.
    """
    done = Forgotten()
    if not dry_run:
        for receipt in read_receipts(lake):
            if not receipt.finished:
                of = {*receipt.partitions, *(count.ds for count in receipt.counts if count.ds)}
                with _leases(lake, of | _ds_of(lake, receipt.removed), on_wait) as hold:
                    done.receipts.append(_Change(lake, receipt, table, hold).finish())
    while True:
        census = Census(lake, keys)
        found = census.holdings()
        going = [holding for holding in found if not holding.only_old]
        done.counts, done.files = _counts(going), len(going)
        done.held_by = tuple(sorted({n for holding in found for n in holding.snapshots}))
        if dry_run or not going:
            return done
        removed = [h.path for h in going if not h.named or h.kind != "assignments"]
        of = {ds for holding in going for ds in holding.ds} | _ds_of(lake, removed)
        with _leases(lake, of, on_wait) as hold:
            if max(snapshot_files(lake), default=0) != census.newest:
                continue  # another run published before the leases were taken
            receipt = Receipt(
                number=max((receipt.number for receipt in read_receipts(lake)), default=0) + 1,
                at=utc_now(),
                who=who,
                salt=(salt := secrets.token_hex(16)),
                keys=keys.hashes(salt),
                counts=done.counts,
                files=census.rewrite(going),
                partitions=tuple(sorted({ds for h in going if h.snapshots for ds in h.ds})),
                held_by=done.held_by,
            )
            hold()
            if not lake.create_json(receipt.path, receipt.model_dump(mode="json")):
                raise CommitConflict(
                    f"{lake.locate(receipt.path)}: another dec forget runs at the same "
                    "time; run it again"
                )
            done.receipts.append(_Change(lake, receipt, table, hold).finish())
            done.held_by = done.receipts[-1].held_by
            return done


def _counts(holdings: Sequence[Holding]) -> tuple[Count, ...]:
    of: dict[tuple[Kind, str | None, bool], list[int]] = defaultdict(list)
    for holding in holdings:
        for ds in holding.ds or (None,):
            of[holding.kind, ds, not holding.named].append(holding.rows)
    return tuple(
        Count(kind=kind, ds=ds, staged=staged, rows=sum(rows), files=len(rows))
        for (kind, ds, staged), rows in sorted(of.items(), key=lambda item: str(item[0]))
    )


def _markers(lake: Store, removed: Collection[str]) -> Iterator[str]:
    """Markers of incomplete runs whose stages lose work with these files."""
    if not removed:
        return
    own = {path.split("/")[1] for path in removed if "/assignments/" in path}
    own |= {path.split("/")[1] for path in removed if path.startswith(f"{DELTA_FOLDER}/")}
    for file in lake.walk("runs"):
        marker = re.fullmatch(r"([^/]+)/stages/([^/]+)/done\.json", file.name)
        if marker and not lake.exists(f"runs/{marker[1]}/metrics.json"):
            path = f"runs/{file.name}"
            text = lake.read_bytes(path).decode("utf-8", "replace")
            # The marker of assign names a list of its parts, not each of them.
            parts = marker[2] == "assign" and marker[1] in own
            if parts or any(f'"{name}"' in text for name in removed):
                yield path


def _ds_of(lake: Store, removed: Collection[str]) -> set[str]:
    """The ds of each run that may be reading these files."""
    runs = {path.split("/")[1] for path in _markers(lake, removed)}
    return {ds for run in runs if (ds := RunFolder(lake, run).ds)}


@contextmanager
def _leases(
    lake: Store, of: Collection[str], on_wait: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Hold the leases of these ds; yields a function that confirms that they are still held."""
    with ExitStack() as held:
        leases = []
        for ds in sorted(of):
            lease = take(lake, ds, "dec forget", seconds=_LEASE_S, on_wait=on_wait)
            held.callback(lease.release)
            leases.append(lease)

        def hold() -> None:
            for lease in leases:
                lease.confirm()

        yield hold


class _Change:
    """Carry out a receipt; each step skips what an earlier attempt has done."""

    def __init__(
        self, lake: Store, receipt: Receipt, table: Table | None, hold: Callable[[], None]
    ) -> None:
        self._lake, self._receipt, self._table, self._hold = lake, receipt, table, hold
        self._parts = {
            f.old: PartFile(path=f.new, rows=f.rows, bytes=f.bytes)
            for f in receipt.files
            if f.kind == "assignments" and f.new
        }

    def finish(self) -> Receipt:
        """Let registry, log and table name the new files, and remove what was staged."""
        receipt, name = self._receipt, f"forget-{self._receipt.number}"
        registry.append_forgotten(self._lake, name, receipt.who, hold=self._hold)
        number = receipt.snapshot
        if self._parts:
            snapshot = amend(self._lake, name, self._changed, hold=self._hold)
            number = snapshot.snapshot if snapshot else None
            self._let_the_table_follow()
        self._remove_staged()
        self._put_copies_again()
        newest = max(receipt.held_by, default=0)
        between = (n for n in snapshot_files(self._lake) if newest < n < (number or 0))
        finished = receipt.model_copy(
            update={
                "snapshot": number,
                "held_by": tuple(sorted({*receipt.held_by, *between})),
                "finished": True,
            }
        )
        self._lake.write_json(receipt.path, finished.model_dump(mode="json"))
        return finished

    def _changed(self, partition: Partition) -> Partition:
        """The partition with the new files in place of the old."""
        listed = read_file_list(self._lake, partition.files).files
        files = tuple(self._parts.get(file.path, file) for file in listed)
        if files == listed:
            return partition
        rows = sum(file.rows for file in files)
        content = FileList(rows=rows, files=files).model_dump_json(indent=2).encode()
        path = f"{partition.files.rpartition('/')[0]}/files-{sha256(content)[:12]}.json"
        self._lake.write_bytes(path, content)
        return partition.model_copy(update={"files": path, "rows": rows})

    def _let_the_table_follow(self) -> None:
        latest = latest_snapshot(self._lake)
        if self._table is None or latest is None:
            return
        for ds in self._receipt.partitions:
            if partition := latest.partitions.get(ds):
                digest = sha256(partition.files.encode())
                commit_id = f"forget-{self._receipt.number}-{digest[:16]}"
                commit = commit_of(self._lake, ds, partition, commit_id)
                self._table.prepare(commit)
                self._table.follow(commit, partial(serves, self._lake, ds, partition))

    def _put_copies_again(self) -> None:
        """Copy the exemplars again from the run that serves the ds; old copies were removed."""
        latest = latest_snapshot(self._lake)
        for file in self._receipt.files:
            copy = COPY.fullmatch(file.old)
            partition = latest.partitions.get(copy[1]) if copy and latest else None
            if partition and not self._lake.exists(file.old):
                table = f"runs/{partition.run_id}/stages/explain/exemplars.parquet"
                # A run without the table writes it, and the copy, when it resumes.
                with suppress(FileNotFoundError):
                    content = self._lake.read_bytes(as_it_is_now(self._lake, table))
                    self._lake.write_bytes(file.old, content)

    def _remove_staged(self) -> None:
        """Remove files that only a run's markers name, or that the registry no longer names."""
        paths = self._receipt.removed
        if not paths:
            return
        self._hold()
        for marker in list(_markers(self._lake, paths)):
            # An empty marker counts as none: the run does that work again.
            self._lake.write_bytes(marker, b"")
        try:
            self._lake.delete(paths)
        except PermissionError as error:
            raise ConfigError(
                f"{self._lake.url}: staged files cannot be removed: {why(error)}; dec forget needs "
                "the right to delete below output. Run it again: it continues with what is left"
            ) from None
