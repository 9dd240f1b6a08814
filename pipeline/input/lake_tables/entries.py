"""What a lake table says of one of its data files, beside the file itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.inputs import LakeTable
from pipeline.errors import BadShard, InputError, says_out_of_memory
from pipeline.input.bad_shards import TABLE_VERSION, storage_error
from pipeline.input.lake_tables.deletion_vectors import deleted_rows, framed, z85_decoded
from pipeline.storage import S3_SCHEME, FoundFile, absolute, open_input, why


@dataclass(frozen=True)
class Deletes:
    """Where deleted rows of a file are listed.

    ``kind``: ``vector``, a framed deletion vector at ``offset``; ``inline``, one whose bitmap is
    ``text`` in Z85; ``positions``, an Iceberg file of positions, in which the data file is called
    ``text``.
    """

    kind: str
    url: str = ""
    offset: int = 0
    size: int = 0
    text: str = ""

    def rows(self) -> NDArray[np.int64]:
        """Numbers of the deleted rows.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged.
        """
        if self.kind == "inline":
            return deleted_rows(z85_decoded(self.text)[: self.size])
        with open_input(self.url) as file:
            if self.kind == "positions":
                here = pc.field("file_path") == self.text
                positions = pq.read_table(file, columns=["pos"], filters=here)["pos"]
                rows: NDArray[np.int64] = positions.to_numpy().astype(np.int64)
                return rows
            content = file.read_at(self.size + 8, self.offset)
        return deleted_rows(framed(content))


@dataclass(frozen=True)
class FileEntry:
    """Entry of a data file in a table."""

    constants: Mapping[str, str | None] = field(default_factory=dict)  # columns of its partition
    deletes: tuple[Deletes, ...] = ()
    filtered: bool = False  # whether ``source.where`` keeps only some of its rows

    @property
    def plain(self) -> bool:
        """Whether all rows of the file are alive and wanted."""
        return not self.deletes and not self.filtered

    def to_json(self) -> str:
        """The entry as text."""
        deletes = [
            {name: value for name, value in dataclasses.asdict(one).items() if value}
            for one in self.deletes
        ]
        content = {"constants": self.constants, "deletes": deletes, "filtered": self.filtered}
        return json.dumps({name: value for name, value in content.items() if value})

    @classmethod
    def of_json(cls, text: str) -> FileEntry:
        """The entry that ``to_json`` wrote."""
        content: dict[str, Any] = json.loads(text)
        deletes = tuple(Deletes(**one) for one in content.pop("deletes", ()))
        return cls(deletes=deletes, **content)

    def deleted(self, shard: str, url: str) -> NDArray[np.int64]:
        """Numbers of all deleted rows, in no order.

        Raises:
            BadShard: A list of them is gone or damaged.
            PipelineError: The storage fails.
        """
        found = [np.zeros(0, np.int64)]
        for one in self.deletes:
            where = one.url or "in the table's log"
            try:
                found.append(one.rows())
            except (FileNotFoundError, ValueError, pa.ArrowException) as error:
                if says_out_of_memory(error):
                    raise
                reason = f"its deleted rows, {where}, cannot be read: {why(error)}"
                raise BadShard(
                    f"shard {shard}: {reason}. Set source.version to one whose files exist, or "
                    "start a new run id with the latest",
                    url,
                    reason,
                ) from None
            except OSError as error:
                raise storage_error(f"{shard}, its deleted rows {where}", error) from None
        return np.concatenate(found)


@dataclass(frozen=True)
class TableFile(FoundFile):
    """A data file in a table's plan."""

    table: LakeTable | None = None
    entry: FileEntry = field(default_factory=FileEntry)


def table_file(table: LakeTable, url: str, name: str, size: int, entry: FileEntry) -> TableFile:
    """A data file, whose version is its path and the identity of its deletes.

    Tables never write a file again under the same path, so that its size is enough to tell it.
    """
    deletes = FileEntry(deletes=entry.deletes, filtered=entry.filtered).to_json()
    content = deletes + (table.where or "") * entry.filtered
    identity = "" if entry.plain else hashlib.sha256(content.encode()).hexdigest()[:20]
    version = f"{TABLE_VERSION}{size:x}-{identity}"
    return TableFile(url, name, size, version, table=table, entry=entry)


def table_of_files(files: Any) -> LakeTable | None:
    """The table that a list of shards was planned by; None for plain files."""
    first = next(iter(files), None)
    return first.table if isinstance(first, TableFile) else None


# Column of a table of shards, and of pieces, with the JSON of each file's entry.
ENTRY = "entry"


def with_entries(shards: pa.Table, files: Sequence[FoundFile]) -> pa.Table:
    """A table of shards with the entries of these files, one for each."""
    entries = [file.entry.to_json() if isinstance(file, TableFile) else "{}" for file in files]
    return shards.append_column(ENTRY, pa.array(entries, pa.string()))


def located(root: str, path: str) -> str:
    """Absolute location of a file in a table: a path below it, or a URL.

    Raises:
        InputError: It lies where nothing can be read.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        if path.startswith("file:"):
            return absolute(path.removeprefix("file:"))
        return path if path.startswith("/") else f"{root}/{path}"
    if scheme in ("s3", "s3a", "s3n"):
        return S3_SCHEME + rest
    if scheme == "file":
        return rest
    raise InputError(
        f"source.table={root} has a file at {scheme}://, which cannot be read; expected files on "
        "local disks or s3://"
    )
