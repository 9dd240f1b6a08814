"""Logs of numbered JSON files, created by put-if-absent and never changed; the newest decides.

The snapshots and the registry are such logs. Creating the next number changes the lake; of two
writers, the later one finds the record of the other. No lock, rename or compare-and-swap is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.artifacts.records import Record
from pipeline.errors import (
    CommitError,
    CommitStateUnknown,
    InputError,
    StorageRefused,
    TransientError,
)
from pipeline.storage import FoundFile, Store, why

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class CommitLog(Generic[R]):
    """One log."""

    folder: str
    kind: type[R]
    number_of: Callable[[R], int]
    noun: str  # name of a record in messages, with its article

    def path(self, number: int) -> str:
        """Path of the file with this number, below the output."""
        return f"{self.folder}/{number}.json"

    def files(self, lake: Store) -> dict[int, FoundFile]:
        """Existing files by number, ascending."""
        found = {
            int(match[1]): file
            for file in lake.list(self.folder)
            if (match := re.fullmatch(r"(\d+)\.json", file.name))
        }
        return dict(sorted(found.items()))

    def read(self, lake: Store, number: int) -> R:
        """The record of this number.

        Raises:
            FileNotFoundError: There is none.
            InputError: This version cannot read it.
        """
        try:
            record = self.kind.model_validate(lake.read_json(self.path(number)))
            if self.number_of(record) != number:
                raise ValueError(f"it says that it is number {self.number_of(record)}")
        except ValueError as error:  # of JSON and of pydantic
            raise InputError(
                f"{lake.locate(self.path(number))} is not {self.noun} that this version reads: "
                f"{why(error)}"
            ) from None
        return record

    def put(self, lake: Store, record: R, *, who: str, landed: str, again: str) -> R:
        """Create a record unless its number exists; returns the record that is there then.

        A put that was reported as failed, or as too late, may have succeeded: the client may have
        sent it twice. So the log is read before anything else happens.

        Messages name the run or login ``who`` made it, its effect once it ``landed``, such as
        "run a is published", and the command to run ``again``.

        Raises:
            CommitError: The storage refuses, and nothing was published.
            CommitStateUnknown: The storage failed, and it is unknown whether the put succeeded.
        """
        number = self.number_of(record)
        try:
            if lake.create_json(self.path(number), record.model_dump(mode="json")):
                return record
            return self.read(lake, number)
        except (OSError, TransientError) as error:
            refused = False
            try:
                return self.read(lake, number)
            except FileNotFoundError:
                if isinstance(error, TransientError) and not error.retryable:  # no room left
                    raise
                refused = isinstance(error, PermissionError)
            except (OSError, TransientError, StorageRefused):
                pass
            where = f"{lake.locate(self.path(number))}: {why(error)}"
            if refused:
                raise CommitError(
                    f"{where}; nothing was published. Allow {who} to create it, and run {again} "
                    "again"
                ) from error
            raise CommitStateUnknown(
                f"{where}; whether {landed} is not known and nothing was deleted. "
                f"Run {again} again: it looks first"
            ) from error
