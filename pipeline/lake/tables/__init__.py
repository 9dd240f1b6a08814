"""Iceberg and Delta tables over the same part files, for engines that read table formats.

The snapshot log decides what is published; a table follows it. So a publish has three steps: the
table *prepares* (everything that can be refused is refused here), the log decides, and the table
*follows*, unless another run has replaced ours in the log meanwhile. After a kill between the last
two, readers of the table see all of the previous publish until the run is run again
(infra/decisions/0013-tables-follow-the-log.md).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.assignments import PartFile
from pipeline.config import Config
from pipeline.errors import (
    CommitConflict,
    CommitStateUnknown,
    ConfigError,
    PipelineError,
    TransientError,
)
from pipeline.lake.snapshots import Partition, read_file_list
from pipeline.lake.tables.columns import check_columns, check_same_columns
from pipeline.storage import S3_SCHEME, Store, open_input, why

# Each lost race means that another writer committed to the table; more than this is a livelock.
ATTEMPTS = 20

# Names of properties of a table's commits.
DS_PROPERTY = "dec.ds"
COMMIT_PROPERTY = "dec.commit-id"

_LIBRARY = {"iceberg": "pyiceberg", "delta": "deltalake"}


@dataclass(frozen=True)
class TableCommit:
    """One publish to a table: replace the ds by these files."""

    ds: str
    run_id: str
    model_id: str
    commit_id: str  # id of this publish, the same for each attempt at it
    rows: int
    files: tuple[PartFile, ...]
    columns: pa.Schema

    @property
    def properties(self) -> dict[str, str]:
        """Properties of the commit in the table's history."""
        return {
            "dec.run-id": self.run_id,
            "dec.model-id": self.model_id,
            DS_PROPERTY: self.ds,
            COMMIT_PROPERTY: self.commit_id,
        }


def commit_of(lake: Store, ds: str, partition: Partition, commit_id: str) -> TableCommit:
    """The commit that gives a table the rows of a partition."""
    files = read_file_list(lake, partition.files).files
    with open_input(lake.locate(files[0].path)) as source:
        columns = pq.read_schema(source)
    return TableCommit(
        ds=ds,
        run_id=partition.run_id,
        model_id=partition.model_id,
        commit_id=commit_id,
        rows=partition.rows,
        # pyiceberg passes over files without rows; the log keeps them.
        files=tuple(file for file in files if file.rows),
        columns=columns.remove_metadata(),
    )


class Table(Protocol):
    """The assignments table in one of the formats; `ds` is its partition column."""

    @property
    def location(self) -> str:
        """Location or name of the table, for messages."""

    def columns(self) -> pa.Schema | None:
        """Columns of the table; None where it does not exist yet."""

    def prepare(self, commit: TableCommit) -> None:
        """Do everything that can be done before readers see the commit.

        Raises:
            PipelineError: The commit is impossible; readers see no change.
        """

    def follow(self, commit: TableCommit, serves: Callable[[], bool]) -> bool:
        """Make a prepared commit visible; a second call changes nothing.

        ``serves`` returns whether the log still has this publish. It is called after the table's
        state was read, so that a commit never overwrites the one that replaced it in the log.
        Returns whether the table has the commit; False where the log has moved on.

        Raises:
            CommitStateUnknown: It is unknown whether the commit succeeded.
        """


def open_table(config: Config, lake: Store) -> Table | None:
    """The table that the config asks for; None for plain Parquet.

    Raises:
        ConfigError: Its library is not installed, its catalog cannot be used, or the location of
            the lake has characters that readers of the format misread.
    """
    table_format = config.lake.format
    if table_format == "parquet":
        return None
    if importlib.util.find_spec(_LIBRARY[table_format]) is None:
        raise ConfigError(
            f"lake.format={table_format} needs {_LIBRARY[table_format]}, which is not installed; "
            f"run: pip install 'dec-pipeline[{table_format}]'"
        )
    _check_location(table_format, lake)
    if table_format == "iceberg":
        from pipeline.lake.tables.iceberg import IcebergTable

        return IcebergTable(config.lake, lake)
    from pipeline.lake.tables.delta import DeltaLakeTable

    return DeltaLakeTable(lake)


def _check_location(table_format: str, lake: Store) -> None:
    # deltalake decodes %41 in a path as it does in a URL; as URLs, ? and # end a path for both.
    misread = {"delta": r"%[0-9A-Fa-f]{2}|\\", "iceberg": r"(?!)"}[table_format]
    if lake.url.startswith(S3_SCHEME):
        misread += r"|[?#]"
    if found := re.search(misread, lake.url):
        raise ConfigError(
            f"output={lake.url} holds {found[0]}, which readers of lake.format={table_format} take "
            "for something else; give a location without it, or lake.format: parquet"
        )


def check_table(config: Config, lake: Store, columns: pa.Schema | None = None) -> None:
    """Check before the night's work that its result will fit into the table.

    ``columns`` are the columns of the assignments; None: they are not known yet.

    Raises:
        ConfigError: The table cannot be opened.
        InputError: A key column has a type that the format lacks, or the table other columns.
    """
    table = open_table(config, lake)
    if table is None:
        return
    there = table.columns()
    if columns is not None:
        check_columns(config.lake.format, columns)
        if there is not None:
            check_same_columns(table.location, there, columns)


# -------------------------------------------------------------------------------------- errors


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REFUSALS = re.compile(
    r"(status|http|code)\W{0,3}40[13]\b|forbidden|unauthori[sz]ed|access.?denied|permission", re.I
)
_PASSING = (
    *("ServiceUnavailableError", "ServerError", "TooManyRequestsError", "CommitFailed"),
    "IntegrityError",  # of a SQL catalog: another was first
)


def failed(what: str, error: BaseException) -> PipelineError:
    """The error to raise where a table cannot be used and nothing is published yet.

    Exceptions of the libraries share no base class.
    """
    name = type(error).__name__
    if isinstance(error, PermissionError) or _REFUSALS.search(f"{name} {error}"):
        return ConfigError(f"{what}: {_why(error)}; give credentials that may read and write it")
    passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    if passing or name.startswith(_PASSING) or "database is locked" in str(error):
        return TransientError(
            f"{what}: {_why(error)}; nothing is published. Run the same run id again"
        )
    return ConfigError(f"{what}: {_why(error)}; look at the table and at lake.catalog")


def _why(error: BaseException) -> str:
    """Message without terminal colours and SQL statements."""
    return _COLOURS.sub("", why(error)).replace(" ↳", ":").partition(" [SQL:")[0]


def unknown_state(location: str, commit: TableCommit, error: BaseException) -> CommitStateUnknown:
    """The error to raise where it is unknown whether the table has this commit."""
    return CommitStateUnknown(
        f"{location}: {_why(error)}; run {commit.run_id} is published in the snapshot log, whether "
        "in the table too is not known, and nothing was deleted. Run the same run id again: it "
        "looks first"
    )


def lost_every_race(location: str, commit: TableCommit) -> CommitConflict:
    """The error to raise where other writers always committed first."""
    return CommitConflict(
        f"{location}: others committed {ATTEMPTS} times while run {commit.run_id} was about to; "
        "run the same run id again"
    )


def files_of(lake: Store, files: Sequence[PartFile]) -> list[str]:
    """Absolute locations of part files."""
    return [lake.locate(file.path) for file in files]
