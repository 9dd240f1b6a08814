"""Delta Lake: the table ``<output>/delta/``, whose part files lie in it.

They have to: readers resolve the paths in Delta's log below the table. And nothing else may lie
there, for VACUUM removes every file of that folder that the log does not name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipeline.lake.parts import DELTA_FOLDER
from pipeline.lake.tables import (
    ATTEMPTS,
    COMMIT_PROPERTY,
    DS_PROPERTY,
    TableCommit,
    failed,
    lost_every_race,
    unknown_state,
)
from pipeline.lake.tables.columns import check_same_columns, table_schema
from pipeline.storage import S3_SCHEME, Store, s3

# What deltalake raises: errors of its own, those of files and of their names, and Rust's.
_FAILURES = (DeltaError, OSError, ValueError, RuntimeError)
_DS = "ds"


class DeltaLakeTable:
    """See ``pipeline.lake.tables.Table``."""

    def __init__(self, lake: Store) -> None:
        self._url = lake.locate(DELTA_FOLDER)
        self._options = storage_options(self._url)

    @property
    def location(self) -> str:
        """URL of the folder."""
        return self._url

    def columns(self) -> pa.Schema | None:
        """Columns of the table; None where it does not exist yet."""
        table = self._load()
        return pa.schema(table.schema().to_arrow()) if table else None

    def prepare(self, commit: TableCommit) -> None:
        """Create the table, or check that it has the same columns."""
        there = self.columns()
        if there is not None:
            check_same_columns(self.location, there, commit.columns)
            return
        try:
            # "ignore": two first runs may create it at the same time.
            DeltaTable.create(
                self._url,
                schema=table_schema(commit.columns),
                mode="ignore",
                partition_by=[_DS],
                name="assignments",
                storage_options=self._options,
            )
        except _FAILURES as error:
            if (there := self.columns()) is None:
                raise failed(f"Delta table {self.location} cannot be created", error) from error
            check_same_columns(self.location, there, commit.columns)

    def follow(self, commit: TableCommit, serves: Callable[[], bool]) -> bool:
        """Replace the ds, in one version of the table that carries the commit's id."""
        for _ in range(ATTEMPTS):
            table = self._reload(commit)
            if self._has(table, commit):
                return True
            if not serves():
                return False
            try:
                self._replace(table, commit)
            except CommitFailedError:
                continue  # another version came first, or it was ours and its answer was lost
            except _FAILURES as error:
                if self._has(self._reload(commit), commit):
                    return True
                raise unknown_state(self.location, commit, error) from error
            return True
        raise lost_every_race(self.location, commit)

    def _replace(self, table: DeltaTable, commit: TableCommit) -> None:
        now = time.time_ns() // 1_000_000
        added: list[AddAction | RemoveAction] = [
            AddAction(
                path=file.path.removeprefix(f"{DELTA_FOLDER}/"),
                size=file.bytes,
                partition_values={_DS: commit.ds},
                modification_time=now,
                data_change=True,
                stats=json.dumps({"numRecords": file.rows}),
            )
            for file in commit.files
        ]
        table.create_write_transaction(
            added,
            mode="overwrite",
            schema=table_schema(commit.columns),
            partition_by=[_DS],
            partition_filters=[(_DS, "=", commit.ds)],
            commit_properties=CommitProperties(
                custom_metadata=dict(commit.properties),
                # Delta sees no conflict between two writers of a partition that was empty; so it
                # must not retry by itself: `follow` looks again first.
                max_commit_retries=0,
                app_transactions=[Transaction(commit.commit_id, 1)],
            ),
        )

    def _has(self, table: DeltaTable, commit: TableCommit) -> bool:
        """Whether this commit is the newest of its ds in the table."""
        for version in table.history():
            if version.get(DS_PROPERTY) == commit.ds:
                return bool(version.get(COMMIT_PROPERTY) == commit.commit_id)
        # Delta keeps its history for 30 days, and ids of transactions for good.
        return table.transaction_version(commit.commit_id) is not None

    def _reload(self, commit: TableCommit) -> DeltaTable:
        try:
            return DeltaTable(self._url, storage_options=self._options)
        except _FAILURES as error:
            raise unknown_state(self.location, commit, error) from error

    def _load(self) -> DeltaTable | None:
        try:
            return DeltaTable(self._url, storage_options=self._options)
        except TableNotFoundError:
            return None
        except _FAILURES as error:
            raise failed(f"Delta table {self.location} cannot be opened", error) from error


def storage_options(url: str) -> dict[str, str] | None:
    """Options that deltalake does not find in the environment by itself; no credentials."""
    if not url.startswith(S3_SCHEME):
        return None
    settings = s3.settings_here()
    chosen = {
        "aws_server_side_encryption": settings.get("encryption"),
        "aws_sse_kms_key_id": settings.get("kms_key"),
    }
    # Versions are created by put-if-absent, as snapshots are: no lock service is needed.
    options = s3.object_store_options(url) | {"conditional_put": "etag"}
    return options | {name: value for name, value in chosen.items() if value}
