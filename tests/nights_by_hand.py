"""Nights whose rows were written by hand, published as runs publish theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Reference
from pipeline.artifacts.records import StoredFile, fingerprint_of
from pipeline.input.samples import FEATURES, HELD_OUT
from pipeline.lake.parts import statistics_of, write_part
from pipeline.lake.snapshots import FileList, Partition, SnapshotFile, publish
from pipeline.registry.entries import CLUSTER_SCHEMA, TRANSITION_SCHEMA, Entry, append
from pipeline.schema import assignment_schema
from pipeline.storage import Store, parquet_bytes, sha256


def part_of(keys: pa.Table, clusters: Sequence[int], run: str, ds: str) -> pa.Table:
    """The assignments of these keys."""
    rows = len(keys)
    constant = {
        name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))
        for name, value in (("model_id", "m"), ("run_id", run), ("ds", ds))
    }
    found = {
        "cluster_id": pa.array(clusters, pa.int32()),
        "confidence": pa.array(np.linspace(0.5, 1, rows), pa.float32()),
        "cluster_id_2": pa.array(np.zeros(rows), pa.int32()),
        "confidence_2": pa.array(np.zeros(rows), pa.float32()),
        "distance": pa.array(np.ones(rows), pa.float32()),
        "is_outlier": pa.array(np.zeros(rows, bool)),
        **constant,
    }
    schema = assignment_schema(keys.schema, keys.column_names)
    columns = {name: keys[name] for name in keys.column_names} | found
    return pa.table([columns[name] for name in schema.names], schema=schema)


def write_assignments(
    lake: Store, run: str, ds: str, parts: Sequence[tuple[pa.Table, Sequence[int]]]
) -> list[PartFile]:
    """Write part files of keys and clusters where a run writes its own."""
    files = []
    for number, (keys, clusters) in enumerate(parts):
        table = part_of(keys, clusters, run, ds)
        path = f"runs/{run}/assignments/part-{number}.parquet"
        statistics = statistics_of(fingerprint_of([run, number]), len(table), table, None)
        size = write_part(lake, path, table, statistics)
        files.append(PartFile(path=path, rows=len(table), bytes=size))
    return files


def publish_files(lake: Store, run: str, ds: str, files: Sequence[PartFile]) -> SnapshotFile:
    """Let the ds consist of these files."""
    rows = sum(file.rows for file in files)
    content = FileList(rows=rows, files=tuple(files)).model_dump_json(indent=2).encode()
    path = f"runs/{run}/stages/assign/files-{sha256(content)[:12]}.json"
    lake.write_bytes(path, content)
    lake.write_json(f"runs/{run}/run.json", {"run_id": run, "ds": ds, "version": "0"})
    partition = Partition(run_id=run, model_id="m", rows=rows, files=path)
    return publish(lake, ds, partition, f"{run}-{sha256(content)[:16]}")


def publish_night(
    lake: Store,
    run: str,
    ds: str,
    parts: Sequence[tuple[pa.Table, Sequence[int]]],
    carried: Sequence[PartFile] = (),
) -> list[PartFile]:
    """Write and publish a night; its own files are returned."""
    files = write_assignments(lake, run, ds, parts)
    publish_files(lake, run, ds, [*files, *carried])
    return files


def ids(*values: Any, kind: pa.DataType | None = None) -> pa.Table:
    """A table of one key column, id."""
    return pa.table({"id": pa.array(values, kind)})


# ----------------------------------------------------------------------------------- the registry


def store_table(lake: Store, path: str, table: pa.Table) -> StoredFile:
    """A table as a file that artifacts name."""
    content = parquet_bytes(table)
    lake.write_bytes(path, content)
    return StoredFile(path=path, sha256=sha256(content), bytes=len(content))


def sample_of(keys: pa.Table) -> pa.Table:
    """Sampled rows with these keys, of two features."""
    features = pa.FixedSizeListArray.from_arrays(np.arange(2.0 * len(keys)), 2)
    held_out = pa.array(np.zeros(len(keys), bool))
    return keys.append_column(FEATURES, features).append_column(HELD_OUT, held_out)


def cluster(cluster_id: int, **columns: Any) -> dict[str, Any]:
    """A row of the clusters table."""
    row = {"born": "2026-01-01", "died": None, "name": None, "parents": [], "size": 1}
    seen = {"model_id": "m", "centroid": [0.0], "exemplars": []}
    return {"cluster_id": cluster_id, **row, **seen, **columns}


def register(
    lake: Store,
    clusters: Sequence[dict[str, Any]],
    *,
    run: str = "r1",
    ds: str = "2026-01-01",
    sample: Sequence[pa.Table] = (),
    transitions: Sequence[dict[str, Any]] = (),
    after: int = 0,
) -> Entry:
    """Let a champion serve whose reference sample has these parts."""
    folder = f"runs/{run}/stages"
    parts = [
        store_table(lake, f"{folder}/sample/part-{number:06}.parquet", part)
        for number, part in enumerate(sample)
    ]
    nothing = StoredFile(path=f"{folder}/none", sha256="", bytes=0)
    champion = Champion(
        model=ClusteringModel(
            model_id="m",
            kind="kmeans",
            weights=None,
            centroids=nothing,
            scaler=nothing,
            scaling="standard",
        ),
        run_id=run,
        ds=ds,
        refit_ds=ds,
        ids=nothing,
        reference=Reference(
            sample=Sample(
                parts=tuple(parts),
                rows=sum(map(len, sample)),
                scanned_rows=0,
                missing_values=0,
                scaler=nothing,
                scaling="standard",
            ),
            features=(),
            bins=nothing,
        ),
        settings="s",
    )
    table = pa.Table.from_pylist(list(clusters), CLUSTER_SCHEMA)
    moves = pa.Table.from_pylist(list(transitions), TRANSITION_SCHEMA)
    return append(
        lake,
        after,
        action="promote",
        commit_id=f"{run}-{after}",
        who=f"run {run}",
        reason="by hand",
        champion=champion,
        clusters=store_table(lake, f"{folder}/identify/clusters.parquet", table),
        transitions=(store_table(lake, f"{folder}/identify/transitions.parquet", moves),),
    )
