"""Recognise files of lake tables, so that dead rows are never read as if they were plain Parquet.

A Parquet file of a Delta, Iceberg or Hudi table may hold rows that were deleted or replaced since;
only the table's metadata tells. Metadata lies in a folder of the table, at or above its files.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.errors import InputError, StorageRefused
from pipeline.storage import S3_SCHEME, FoundFile, Store, absolute

# Folders that are looked at on an object store: each costs three listings, and the root of a table
# is above its partitions, so those nearest to the location are looked at first.
_MOST_REMOTE_FOLDERS = 256
_THREADS = 16

_NAMES = {"delta": "the Delta Lake", "iceberg": "the Apache Iceberg", "hudi": "the Apache Hudi"}


@dataclass(frozen=True)
class RecognisedTable:
    """A lake table that a location belongs to."""

    format: str  # delta, iceberg or hudi
    root: str  # folder of the table


def refuse_lake_table(location: str, files: Sequence[FoundFile]) -> None:
    """Refuse plain files that a lake table owns.

    Raises:
        InputError: The location lies in a table, is one, or holds one; names the format.
    """
    found = table_of(location, [file.url for file in files])
    if found is None:
        return
    if found.format == "hudi":
        instead = "export its live rows to plain Parquet, since Hudi tables cannot be read"
    else:
        instead = (
            f"read the table with source.format: {found.format}, and source.table in place of "
            "source.path"
        )
    raise InputError(
        f"source.path={location} names files of {_NAMES[found.format]} table {found.root}; they "
        f"also hold rows that were deleted or replaced. Either {instead}; or, where every row of "
        "every file is meant, deleted ones too, set source.format: files"
    )


def table_of(location: str, urls: Iterable[str]) -> RecognisedTable | None:
    """The first lake table at or above a location, or at or above one of the files found there."""
    remote = absolute(location).startswith(S3_SCHEME)
    folders = _above(_fixed(absolute(location)))
    below = {folder for parent in _parents(urls, remote) for folder in _above(parent)}
    folders += sorted(below - set(folders), key=lambda folder: (folder.count("/"), folder))
    if not remote:
        return next((found for folder in folders if (found := _in_folder(folder))), None)
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = pool.map(_in_folder, folders[:_MOST_REMOTE_FOLDERS])
        return next((found for found in looked if found), None)


def _fixed(location: str) -> str:
    """The location, or of a glob the folder above its first wildcard."""
    if os.path.lexists(location) or not glob.has_magic(location):
        return location
    parts = location.split("/")
    return "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), parts)) or "/"


def _parents(urls: Iterable[str], remote: bool) -> Iterator[str]:
    """Folders of the files, also of those that local links lead to."""
    seen: set[str] = set()
    for url in urls:
        parent = url.rpartition("/")[0] or "/"
        if parent not in seen:
            seen.add(parent)
            yield parent
        if not remote and os.path.islink(url):
            yield os.path.dirname(os.path.realpath(url))


def _above(folder: str) -> list[str]:
    """A folder and all above it, the nearest first; locally also by its real path."""
    if folder.startswith(S3_SCHEME):
        parts = folder.removeprefix(S3_SCHEME).strip("/").split("/")
        return [S3_SCHEME + "/".join(parts[:n]) for n in range(len(parts), 0, -1)]
    found: dict[str, None] = {}
    for path in (folder, os.path.realpath(folder)):
        while path not in found:
            found[path] = None
            path = os.path.dirname(path)
    return list(found)


def _in_folder(folder: str) -> RecognisedTable | None:
    """The table whose root is this folder."""
    for table_format, metadata, suffixes in (
        ("delta", "_delta_log", (".json", ".parquet")),
        ("iceberg", "metadata", (".metadata.json", ".metadata.json.gz")),
        ("hudi", ".hoodie", ("",)),
    ):
        # A role may be denied what is above its own folders.
        with contextlib.suppress(PermissionError, NotADirectoryError, StorageRefused):
            names = (file.name for file in Store(folder).list(metadata))
            if any(name.endswith(suffixes) for name in names):
                return RecognisedTable(table_format, folder)
    return None
