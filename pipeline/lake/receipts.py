"""Receipts of ``dec forget``: ``forgotten/<n>.json``, which never contain a key.

A receipt is written, by put-if-absent, once all rewritten files are in place and before anything
refers to them. From then on it maps old files to new ones, and a later ``dec forget`` finishes what
it began. Later runs treat the old part files as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt

from pipeline.artifacts.records import LakePath, Name, Record
from pipeline.errors import InputError
from pipeline.storage import Store, why

FOLDER = "forgotten"

Kind = Literal["assignments", "reference sample", "exemplars", "report"]


class Rewritten(Record):
    """A file that held rows to be forgotten."""

    kind: Kind
    old: LakePath
    # Path of the file that takes its place; None: a staged file that was removed, which its run
    # makes again from the source.
    new: LakePath | None
    # Digest of the new file, if it is known; like the next two, empty without a new file.
    sha256: str = ""
    bytes: int = 0
    rows: int = 0
    removed: int  # rows, or exemplars, removed from it


class Count(Record):
    """Rows that were removed."""

    kind: Kind
    # Logical date of the partition, or of the file's run; None where there is none. A file that
    # several partitions name counts in each.
    ds: str | None
    staged: bool  # whether neither a published partition nor the registry named the files
    rows: int  # number of rows; for "exemplars", of keys in lists
    files: int  # number of files that held them


class Receipt(Record):
    """Content of ``forgotten/<n>.json``."""

    number: PositiveInt
    at: str  # time in UTC, by the clock of the machine
    who: str  # login and machine
    salt: str  # random hex digits, put before the text of each key before hashing
    # SHA-256 of salt and key, of each key that was asked for; see
    # ``pipeline.operations.forgotten_keys.KeySet.hashes``.
    keys: tuple[str, ...]
    counts: tuple[Count, ...]
    files: tuple[Rewritten, ...]
    partitions: tuple[Name, ...]  # ds of the published partitions that change
    # The first that names the new files; None: this has not come so far, or no published file held
    # any of the rows.
    snapshot: int | None = None
    # Older snapshots whose files still hold some of the rows, until ``dec gc``.
    held_by: tuple[int, ...] = ()
    finished: bool = False

    @property
    def path(self) -> str:
        """Path of the receipt, below the output."""
        return f"{FOLDER}/{self.number}.json"

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths that go at once; parts that snapshots name wait for ``dec gc``."""
        return tuple(f.old for f in self.files if f.new is None or f.kind != "assignments")


def read_receipts(lake: Store) -> list[Receipt]:
    """All receipts, oldest first.

    Raises:
        InputError: This version cannot read one of them.
    """
    found = []
    for file in lake.list(FOLDER):
        if re.fullmatch(r"\d+\.json", file.name):
            try:
                found.append(Receipt.model_validate(lake.read_json(f"{FOLDER}/{file.name}")))
            except ValueError as error:
                raise InputError(
                    f"{file.url} is not a receipt that this version reads: {why(error)}"
                ) from None
    return sorted(found, key=lambda receipt: receipt.number)


def withdrawn_parts(lake: Store) -> frozenset[str]:
    """Paths of old part files, which only earlier snapshots may name."""
    return frozenset(
        file.old
        for receipt in read_receipts(lake)
        for file in receipt.files
        if file.kind == "assignments" and file.new is not None
    )


def folder_for_parts(lake: Store, folder: str) -> str:
    """Folder for a run's parts: another one where it would reuse withdrawn parts."""
    times = sum(
        any(file.new and file.old.startswith(f"{folder}/") for file in receipt.files)
        for receipt in read_receipts(lake)
    )
    return f"{folder}/again-{times}" if times else folder


def replacements(receipts: list[Receipt]) -> Mapping[str, Rewritten]:
    """New files by the path of the old one."""
    return {file.old: file for r in receipts for file in r.files if file.new is not None}
