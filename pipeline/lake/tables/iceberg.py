"""Apache Iceberg: a table in a catalog, whose data files are the part files where they lie.

Write, audit, publish: the ds is replaced on a branch, the branch is compared with what was written,
and only then, and only if the snapshot log says so, does ``main`` move there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchNamespaceError,
    NoSuchTableError,
    RESTError,
    TableAlreadyExistsError,
    ValidationException,
)
from pyiceberg.expressions import BooleanExpression, EqualTo
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table as PyIcebergTable
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from pipeline.config import Lake
from pipeline.errors import CommitError, PipelineError
from pipeline.lake.tables import (
    ATTEMPTS,
    COMMIT_PROPERTY,
    DS_PROPERTY,
    TableCommit,
    failed,
    files_of,
    lost_every_race,
    unknown_state,
)
from pipeline.lake.tables.columns import check_same_columns, table_schema
from pipeline.storage import S3_SCHEME, Store, arrow_filesystem

# Settings that are secret come from PYICEBERG_CATALOG__DEC__… or ~/.pyiceberg.yaml, by this name.
CATALOG = "dec"
_FOLDER = "iceberg"
_MAIN = "main"
_DS = "ds"
_FILE_IO = "pipeline.lake.tables.iceberg.LakeFileIO"

# It warns for every column and file that a dictionary is an encoding, not a type.
logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)


class LakeFileIO(PyArrowFileIO):
    """Iceberg's files through the same S3 client as everything else."""

    def _initialize_fs(self, scheme: str, netloc: str | None = None) -> fs.FileSystem:
        if scheme == "s3":
            return arrow_filesystem(f"{S3_SCHEME}{netloc}")[0]
        return super()._initialize_fs(scheme, netloc)


class IcebergTable:
    """See ``pipeline.lake.tables.Table``."""

    def __init__(self, settings: Lake, lake: Store) -> None:
        self._lake = lake
        self._name = settings.table
        self._sqlite: str | None = None
        properties = dict(settings.catalog)
        if not properties:
            self._sqlite = lake.locate(f"{_FOLDER}/catalog.db")
            path = re.sub("[%?#]", lambda found: quote(found[0]), self._sqlite)  # not a URL's
            properties = {"type": "sql", "uri": f"sqlite:///{path}"}
        self._properties = {"py-io-impl": _FILE_IO} | properties
        self._catalog: Catalog | None = None

    @property
    def location(self) -> str:
        """The table's name, and the location of its catalog."""
        return f"Iceberg table {self._name} in {self._properties.get('uri', 'the catalog')}"

    def columns(self) -> pa.Schema | None:
        """Columns of the table; None where it does not exist yet."""
        if self._sqlite and not os.path.exists(self._sqlite):
            return None  # looking would create it
        try:
            return self._opened().load_table(self._name).schema().as_arrow()
        except (NoSuchTableError, NoSuchNamespaceError):
            return None
        except PipelineError:
            raise
        except Exception as error:  # whatever the catalog's own library raises
            raise failed(f"{self.location} cannot be read", error) from error

    def prepare(self, commit: TableCommit) -> None:
        """Write the ds to a branch of its own, and check its files and rows."""
        try:
            self._stage(commit)
        except PipelineError:
            raise
        except Exception as error:  # of the catalog's library or of the storage: main is untouched
            raise failed(f"{self.location} cannot be written", error) from error

    def follow(self, commit: TableCommit, serves: Callable[[], bool]) -> bool:
        """Move ``main`` to the branch."""
        for _ in range(ATTEMPTS):
            table = self._load(commit)
            if _landed(table, commit):
                self._drop_branch(table, commit)
                return True
            if not serves():
                self._drop_branch(table, commit)
                return False
            try:
                branch = _branch(commit)
                if not _is_ahead(table, branch):  # another commit came after staging
                    self._stage(commit)
                    continue
                # Refused by the catalog unless main is where it was when the table was loaded.
                moved = table.manage_snapshots().set_current_snapshot(ref_name=branch)
                moved.remove_branch(branch).commit()
            except CommitFailedException:
                continue
            except Exception as error:  # whatever it was, main may have moved
                if _landed(self._load(commit), commit):
                    return True
                raise unknown_state(self.location, commit, error) from error
            return True
        raise lost_every_race(self.location, commit)

    def _stage(self, commit: TableCommit) -> None:
        for _ in range(ATTEMPTS):
            try:
                table = self._load_or_create(commit)
                check_same_columns(self.location, table.schema().as_arrow(), commit.columns)
                if _landed(table, commit):
                    return
                self._write(table, commit)
            except (CommitFailedException, ValidationException):
                continue
            except ValueError as error:
                if "sequence number" in str(error):  # pyiceberg's error where others were faster
                    continue
                raise
            return
        raise lost_every_race(self.location, commit)

    def _write(self, table: PyIcebergTable, commit: TableCommit) -> None:
        branch, base = _branch(commit), _head(table)
        self._drop_branch(table, commit)  # of an earlier attempt
        # By itself: pyiceberg's retries, with it in the same transaction, would lose the branch's
        # parent, and with it every other ds.
        table.manage_snapshots().create_branch(base.snapshot_id, branch).commit()
        replaced = _files(table, commit)
        with table.transaction() as transaction:
            if replaced:
                transaction.delete(
                    _is_ds(commit), snapshot_properties=commit.properties, branch=branch
                )
            transaction.add_files(
                files_of(self._lake, commit.files),
                snapshot_properties=commit.properties,
                # The check looks in main, where a run that is published again has its files.
                check_duplicate_files=False,
                branch=branch,
            )
        self._audit(table, commit, base, replaced)

    def _audit(
        self, table: PyIcebergTable, commit: TableCommit, base: Snapshot, replaced: dict[str, int]
    ) -> None:
        """Check the files and rows of the ds, and that the others have as many rows as before."""
        staged = _files(table, commit)
        tip = table.snapshot_by_name(_branch(commit))
        rows, others = sum(staged.values()), _rows(tip) - sum(staged.values())
        before = _rows(base) - sum(replaced.values())
        expected = set(files_of(self._lake, commit.files)), commit.rows, before
        if (set(staged), rows, others) != expected:
            raise CommitError(
                f"{self.location}, branch {_branch(commit)}: {rows} rows in {len(staged)} files "
                f"for ds {commit.ds} and {others} rows besides; expected {commit.rows} in "
                f"{len(commit.files)} and {before}. Nothing is published; look at the branch, and "
                "run the same run id again"
            )

    def _drop_branch(self, table: PyIcebergTable, commit: TableCommit) -> None:
        branch = _branch(commit)
        if branch in table.refs():
            # Where others change the table, the branch stays until the next attempt.
            with contextlib.suppress(CommitFailedException, RESTError):
                table.manage_snapshots().remove_branch(branch).commit()

    def _load_or_create(self, commit: TableCommit) -> PyIcebergTable:
        if self._sqlite:
            os.makedirs(os.path.dirname(self._sqlite), exist_ok=True)
        catalog = self._opened()
        with contextlib.suppress(NoSuchTableError, NoSuchNamespaceError):
            return catalog.load_table(self._name)
        namespace = self._name.rpartition(".")[0]
        try:
            catalog.create_namespace(namespace)
        except Exception:  # each kind of catalog has its own for one that is there, or just came
            if not catalog.namespace_exists(namespace):
                raise
        location = self._lake.locate(f"{_FOLDER}/{self._name}")
        schema = table_schema(commit.columns)
        with contextlib.suppress(TableAlreadyExistsError):  # another first run
            with catalog.create_table_transaction(self._name, schema, location) as creation:
                with creation.update_spec() as partitions:
                    partitions.add_identity(_DS)
                with creation.update_snapshot().fast_append():
                    pass  # an empty first snapshot: without one, there are no branches
        return catalog.load_table(self._name)

    def _load(self, commit: TableCommit) -> PyIcebergTable:
        try:
            return self._opened().load_table(self._name)
        except Exception as error:
            raise unknown_state(self.location, commit, error) from error

    def _opened(self) -> Catalog:
        # A SQL catalog makes its two tables when it is first opened, and first runs may do so at
        # the same time: the later one looks again.
        last = 3 if self._properties.get("type") == "sql" else 1
        for attempt in range(1, last + 1):
            if self._catalog is None:
                try:
                    self._catalog = load_catalog(CATALOG, **self._properties)
                except Exception as error:  # no such type, a library of its own missing, no answer
                    if attempt == last:
                        raise failed(f"{self.location} cannot be opened", error) from error
        assert self._catalog is not None
        return self._catalog


def _is_ds(commit: TableCommit) -> BooleanExpression:
    equal: Callable[..., BooleanExpression] = EqualTo  # pydantic hides its signature
    return equal(_DS, commit.ds)


def _branch(commit: TableCommit) -> str:
    return f"audit-{commit.commit_id}"


def _files(table: PyIcebergTable, commit: TableCommit) -> dict[str, int]:
    """Files of the ds on the commit's branch, and the rows of each."""
    scan = table.scan(_is_ds(commit)).use_ref(_branch(commit))
    return {task.file.file_path: task.file.record_count for task in scan.plan_files()}


def _rows(snapshot: Snapshot | None) -> int:
    """Rows of the table as of a snapshot."""
    assert snapshot is not None
    assert snapshot.summary is not None
    return int(snapshot.summary.get("total-records") or 0)


def _landed(table: PyIcebergTable, commit: TableCommit) -> bool:
    """Whether this commit is the newest of its ds in main."""
    for snapshot in ancestors_of(_head(table), table.metadata):
        if snapshot.summary and snapshot.summary.get(DS_PROPERTY) == commit.ds:
            return snapshot.summary.get(COMMIT_PROPERTY) == commit.commit_id
    return False


def _is_ahead(table: PyIcebergTable, branch: str) -> bool:
    """Whether moving main to the branch loses nothing: main's head is among its ancestors."""
    if branch not in table.refs():
        return False
    head = _head(table).snapshot_id
    tip = table.snapshot_by_name(branch)
    return any(snapshot.snapshot_id == head for snapshot in ancestors_of(tip, table.metadata))


def _head(table: PyIcebergTable) -> Snapshot:
    """The newest snapshot of main."""
    head = table.current_snapshot()
    assert head is not None  # the table was created with one
    return head
