"""Assigning: the rows of a slice → their clusters → one part file."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.artifacts import ClusteringModel, Manifest
from pipeline.config import Config
from pipeline.errors import NumericalError
from pipeline.lake.models import LoadedModel, load_model
from pipeline.lake.parts import (
    PartStatistics,
    part_identity,
    part_path,
    read_statistics,
    statistics_of,
    write_part,
)
from pipeline.lake.reading import Reader
from pipeline.model.dec import nearest_two
from pipeline.model.devices import embeddings
from pipeline.schema import SHARD_KEY_FIELDS, assignment_schema
from pipeline.storage import Store


@dataclass(frozen=True)
class AssignJob:
    """What every actor is told.

    Attributes:
        lake: The output folder.
        folder: Where parts go, below it.
        run_id: Written into every row, like the ones below.
        ds: The logical date.
        threads: To compute with.
    """

    config: Config
    manifest: Manifest
    model: ClusteringModel
    lake: Store
    folder: str
    run_id: str
    ds: str
    threads: int


class Assigner:
    """An actor that assigns slices, several calls at a time.

    Each call computes with one thread of its own, no more of them at once than the actor may use;
    the others read and write meanwhile. Calls that share out each product among all threads would
    wait for one another whenever one of them reads or writes.
    """

    def __init__(self, job: AssignJob) -> None:
        self._job = job
        self._threads = threading.Semaphore(job.threads)
        self._reader = Reader.of(job.config, job.manifest, carry=True)
        self._model: LoadedModel = load_model(job.lake, job.model, job.config, job.manifest.width)
        fields = {field.name: field for field in job.manifest.carried_schema}
        keys = [fields[name] for name in job.manifest.keys] or list(SHARD_KEY_FIELDS)
        self._schema = assignment_schema(tuple(keys))

    def __call__(self, pieces: pa.Table) -> pa.Table:
        """Assign a slice, unless its part is there already.

        Args:
            pieces: The slice.

        Returns:
            One row: the part's path, size in bytes, and statistics as JSON.
        """
        torch.set_num_threads(1)  # of the thread that calls
        job = self._job
        identity = part_identity(
            pieces,
            model=job.model.fingerprint,
            run=job.run_id,
            ds=job.ds,
            schema=str(self._schema),
            settings=f"{job.config.source.nulls} {job.manifest.label} {job.config.refine.alpha}",
        )
        path = part_path(job.folder, identity)
        done = read_statistics(job.lake, path, identity)
        statistics, size = done or self._write(pieces, path, identity)
        # As JSON: the classes in a contingency may be numbers or strings, not one Arrow type.
        row = {"path": path, "bytes": size, "statistics": json.dumps(asdict(statistics))}
        return pa.Table.from_pylist([row])

    def _write(self, pieces: pa.Table, path: str, identity: str) -> tuple[PartStatistics, int]:
        label_name = self._job.manifest.label
        tables: list[pa.Table] = [self._schema.empty_table()]
        labels: list[pa.ChunkedArray] = []
        for block in self._reader.blocks(pieces):
            assert block.carried is not None  # keys are always read here
            tables.append(self._table(block.carried, torch.from_numpy(np.array(block.x_BF))))
            if label_name:
                labels.append(block.carried[label_name])
        table = pa.concat_tables(tables).combine_chunks()
        order = np.argsort(table["cluster_id"].to_numpy(), kind="stable")
        label = None
        if labels:
            chunks = [chunk for column in labels for chunk in column.chunks]
            label = pc.take(pa.chunked_array(chunks, type=labels[0].type), order)
        rows_in = int(pieces["rows"].to_numpy().sum())
        table = table.take(order)
        statistics = statistics_of(identity, rows_in, table, label)
        return statistics, write_part(self._job.lake, path, table, statistics)

    def _table(self, carried: pa.Table, x_BF: Tensor) -> pa.Table:
        """The assignments of a block of raw rows."""
        with self._threads:
            found = assignments_of(self._model, x_BF)
        rows = len(x_BF)
        job = self._job
        constant = {"model_id": job.model.model_id, "run_id": job.run_id, "ds": job.ds}
        columns = {
            name: carried[name] for name in self._schema.names if name in carried.column_names
        }
        columns |= {name: pa.array(values) for name, values in found.items()}
        columns["is_outlier"] = pa.repeat(pa.scalar(False), rows)
        for name, value in constant.items():
            indices = pa.array(np.zeros(rows, np.int32))
            columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array([value]))
        return pa.table([columns[field.name] for field in self._schema], schema=self._schema)


@torch.inference_mode()
def assignments_of(model: LoadedModel, x_BF: Tensor) -> dict[str, Any]:
    """The nearest cluster and the runner-up of each row.

    Args:
        model: Scaler, encoder and centroids.
        x_BF: Raw rows, shape (rows, features).

    Returns:
        cluster_id and cluster_id_2, int32; confidence and confidence_2, their q (Xie et al. 2016,
        eq. 1), float32; distance to the nearest centroid, float32; shape (rows,) each.

    Raises:
        NumericalError: An embedding is not finite.
    """
    clusters = model.clusters
    z_BD = embeddings(clusters.encoder, model.scaler, x_BF)
    found = nearest_two(z_BD, clusters.centroids_KD, clusters.alpha)
    if not torch.isfinite(found.distance_B).all():
        raise NumericalError(
            "assign: embeddings are not finite; look for extreme values in the features"
        )
    ids_2B = found.clusters_B2.T.to(torch.int32).contiguous().cpu()
    q_2B = found.q_B2.T.contiguous().cpu()
    return {
        "cluster_id": ids_2B[0].numpy(),
        "confidence": q_2B[0].numpy(),
        "cluster_id_2": ids_2B[1].numpy(),
        "confidence_2": q_2B[1].numpy(),
        "distance": found.distance_B.cpu().numpy(),
    }
