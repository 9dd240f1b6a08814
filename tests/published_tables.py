"""Runs that are ready to be published into a table, and libraries that read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipeline.artifacts.assignments import Assignments, Snapshot
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Serving
from pipeline.artifacts.records import StoredFile
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.lake import snapshots
from pipeline.lake.parts import parts_folder, statistics_of, write_part
from pipeline.lake.tables import Table, TableCommit, commit_of, open_table
from pipeline.schema import assignment_schema
from pipeline.stages import publish as publishing
from pipeline.storage import Store

FORMATS = ("iceberg", "delta")
NONE = StoredFile(path="none", sha256="", bytes=0)


def config_of(lake: Path | str, table_format: str, **settings: Any) -> Config:
    return Config.model_validate(
        {
            "source": {"path": "in", "features": ["x"]},
            "output": str(lake),
            "clusters": 3,
            "lake": {"format": table_format, **settings},
        }
    )


class Night:
    """A run that is ready to be published: its part files are there, as the real writer writes."""

    def __init__(
        self,
        config: Config,
        run_id: str,
        ds: str,
        ids: range,
        keys: dict[str, pa.Array] | None = None,
        parts: int = 2,
    ) -> None:
        self.config, self.run_id, self.ds, self.ids = config, run_id, ds, ids
        self.lake = Store(config.output)
        keys = keys or {"id": pa.array(ids, pa.int64())}
        table = assigned(keys, len(ids), run_id, ds)
        folder = parts_folder(run_id, config.lake.format)
        files = []
        for number in range(parts):
            first, end = (n * len(ids) // parts for n in (number, number + 1))
            rows = table.slice(first, end - first)
            path = f"{folder}/part-{number}.parquet"
            size = write_part(self.lake, path, rows, statistics_of("i", len(rows), rows, None))
            files.append({"path": path, "rows": len(rows), "bytes": size})
        listing = json.dumps({"rows": len(ids), "files": files}).encode()
        self.context = Context(run_id, ds, self.lake)
        self.assignments = Assignments(
            files=self.context.store(f"runs/{run_id}/stages/assign/files.json", listing),
            file_count=parts,
            rows_in=len(ids),
            rows_dropped=0,
            rows=len(ids),
            cluster_rows=(),
            mean_confidence=0.5,
            scores=None,
        )
        self.model = ClusteringModel(
            model_id="m-1",
            kind="dec",
            weights=None,
            centroids=NONE,
            scaler=NONE,
            scaling="none",
        )

    def publish(self) -> Snapshot:
        champion = Champion.model_construct(model=self.model)
        serving = Serving.model_construct(champion=champion, entry=1, refused=False)
        return publishing.publish.run(self.config, self.context, serving, self.assignments)

    @property
    def commit(self) -> TableCommit:
        partition = snapshots.Partition(
            run_id=self.run_id,
            model_id="m-1",
            rows=len(self.ids),
            files=self.assignments.files.path,
        )
        commit_id = f"{self.run_id}-{self.assignments.fingerprint[:16]}"
        return commit_of(self.lake, self.ds, partition, commit_id)

    @property
    def table(self) -> Table:
        table = open_table(self.config, self.lake)
        assert table is not None
        return table


def assigned(keys: dict[str, pa.Array], rows: int, run_id: str, ds: str) -> pa.Table:
    schema = assignment_schema(pa.table(keys).schema, list(keys))
    numbers = {
        "cluster_id": np.sort(np.arange(rows) % 3),
        "cluster_id_2": (np.sort(np.arange(rows) % 3) + 1) % 3,
        "confidence": np.full(rows, 0.5),
        "confidence_2": np.full(rows, 0.25),
        "distance": np.full(rows, 1.5),
        "is_outlier": np.zeros(rows, bool),
    }
    columns = {n: pa.array(v).cast(schema.field(n).type) for n, v in numbers.items()}
    for name, value in {"model_id": "m-1", "run_id": run_id, "ds": ds}.items():
        columns[name] = pa.array([value] * rows).dictionary_encode()
    columns |= keys
    return pa.table([columns[name] for name in schema.names], schema=schema)


Reader = Callable[[Config], pa.Table]


def with_pyiceberg(config: Config) -> pa.Table:
    return iceberg_table(config).scan().to_arrow()


def iceberg_table(config: Config) -> Any:
    table = open_table(config, Store(config.output))
    return table._opened().load_table(config.lake.table)  # type: ignore[union-attr]


def delta_table(config: Config) -> Any:
    import deltalake

    url = Store(config.output).locate("delta")
    from pipeline.lake.tables.delta import storage_options

    return deltalake.DeltaTable(url, storage_options=storage_options(url))


def with_deltalake(config: Config) -> pa.Table:
    return delta_table(config).to_pyarrow_table()


def with_polars(config: Config) -> pa.Table:
    if config.lake.format == "delta":
        return pl.scan_delta(delta_table(config)).collect().to_arrow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # its own is another package
        return pl.scan_iceberg(iceberg_table(config)).collect().to_arrow()


def with_duckdb(config: Config) -> pa.Table:
    """DuckDB reads the data files that the table names; its extensions are downloads."""
    if config.lake.format == "delta":
        files = delta_table(config).file_uris()
    else:
        files = [task.file.file_path for task in iceberg_table(config).scan().plan_files()]
    return duckdb.read_parquet(files).to_arrow_table()


READERS: dict[str, list[Reader]] = {
    "iceberg": [with_pyiceberg, with_polars, with_duckdb],
    "delta": [with_deltalake, with_polars, with_duckdb],
}


def first_reader(config: Config) -> Reader:
    return READERS[config.lake.format][0]


def rows_of(table: pa.Table) -> list[tuple[str, str, int]]:
    """(ds, run, key) of every row; twice what is there twice."""
    columns = (table[name].to_pylist() for name in ("ds", "run_id", "id"))
    return sorted(zip(*columns, strict=True))


def expected(*nights: Night) -> list[tuple[str, str, int]]:
    return sorted((night.ds, night.run_id, i) for night in nights for i in night.ids)


def versions(config: Config) -> int:
    """Commits that the table has seen, on whatever branch."""
    if config.lake.format == "delta":
        return int(delta_table(config).version())
    return len(iceberg_table(config).snapshots())


def publish_at_once(config: Config) -> list[Night]:
    """Runs of three ds, all of them the first that the table sees."""
    nights = [Night(config, f"r{n}", f"2026-01-0{n}", range(n * 5)) for n in range(1, 4)]
    with ThreadPoolExecutor() as pool:
        for end in [pool.submit(night.publish) for night in nights]:
            end.result(timeout=120)
    return nights
