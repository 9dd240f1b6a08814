"""Assigning: label the rows of a slice, and write one part file."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.explanations import ProfiledColumn
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import StoredFile, fingerprint_of
from pipeline.clustering.drift import bin_counts
from pipeline.config import Config
from pipeline.distributed.workers import node_id
from pipeline.errors import PipelineError
from pipeline.input.lake_tables.views import columns_identity
from pipeline.input.reading import Reader
from pipeline.insight.profiles.collecting import SliceProfile
from pipeline.insight.profiles.files import is_profile, profile_path, write_profile
from pipeline.insight.profiles.layout import Layout
from pipeline.lake.parts import (
    PartStatistics,
    part_identity,
    part_path,
    read_statistics,
    statistics_of,
    write_part,
)
from pipeline.model.devices import claimed_device
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.labels import assignments_of
from pipeline.registry.models import LoadedModel, load_model
from pipeline.registry.reference import load_bins
from pipeline.schema import ASSIGNMENT_FIELDS, assignment_schema
from pipeline.storage import Store

# Rows of a slice that drift is measured on: of wide rows one in a hundred, for each costs as much
# as labelling two by a small network, but so many values, which cost 3 ms; never more than enough.
_BINNED_ROWS = 2_000
_BINNED_SHARE = 0.01
_BINNED_VALUES = 2**17


@dataclass(frozen=True)
class AssignJob:
    """Input of every actor."""

    config: Config
    manifest: Manifest
    model: ClusteringModel
    ids: StoredFile  # permanent ids of its clusters; see ``Champion.ids``
    bins: StoredFile  # distribution of the rows that it was fitted on; see ``Reference.bins``
    lake: Store
    folder: str  # folder of the parts, below the output
    run_id: str  # run id, written into every row like ``ds``
    ds: str
    threads: int
    gpus: float = 0.0
    # Parts of earlier nights, by name, that may be carried; None: none may.
    published: Mapping[str, PartFile] | None = None
    explained: tuple[ProfiledColumn, ...] = ()  # columns that are profiled, but not clustered by


class Assigner:
    """An actor that assigns slices, several calls at a time.

    Each call computes with one thread, and at most ``threads`` calls compute at once; the others
    read and write meanwhile. Calls that shared all threads would wait for each other's reads.
    """

    def __init__(self, job: AssignJob) -> None:
        self._job = job
        self._threads = threading.Semaphore(job.threads)
        self._reader = Reader.of(job.config, job.manifest, carry=True, explained=job.explained)
        device = claimed_device(job.gpus)
        self._name = f"actor on node {node_id()} computes on {device}"
        self._model: LoadedModel = load_model(job.lake, job.model, job.config, device)
        self._schema = assignment_schema(job.manifest.carried_schema, job.manifest.keys)
        keys = self._schema.names[: len(self._schema) - len(ASSIGNMENT_FIELDS)]
        self._keys = pa.schema([self._schema.field(name) for name in keys])
        self._clusters = len(self._model.clusters.centroids_KD)
        manifest, wanted = job.manifest, job.config.explain.exemplars
        self._layout = Layout.of(
            self._clusters, manifest.features, job.explained, wanted, manifest.dtype
        )
        self._ids = ClusterIds.of(job.lake, job.ids)
        self._edges_FB, _ = load_bins(job.lake, job.bins)

    def __call__(self, pieces: pa.Table) -> pa.Table:
        """Assign a slice, unless this run or an earlier night has written its part.

        Returns one row: the part's path, size in bytes, statistics as JSON, and the actor's name.
        """
        torch.set_num_threads(1)  # of the thread that calls
        job = self._job
        identity = self._identity(pieces)
        path = part_path(job.folder, identity)
        if carried := self._carried(pieces, path, identity):
            path, statistics, size = carried
        else:
            done = read_statistics(job.lake, path, identity)
            if done and not is_profile(job.lake, profile_path(path), identity):
                done = None
            statistics, size = done or self._write(pieces, path, identity)
        # As JSON: the classes in a contingency may be numbers or strings, not one Arrow type.
        row = {"path": path, "bytes": size, "statistics": json.dumps(asdict(statistics))}
        row["by"] = self._name
        return pa.Table.from_pylist([row])

    def _identity(self, pieces: pa.Table) -> str:
        job, alpha = self._job, self._job.config.refine.alpha
        of = {
            "schema": str(self._schema),
            "settings": f"{job.config.source.nulls} {job.manifest.label} {alpha}",
            "profile": fingerprint_of(self._layout.model_dump(mode="json")),
            "ids": job.ids.sha256,
            "bins": job.bins.sha256,
        }
        if job.manifest.table:
            of["table"] = columns_identity(job.manifest.table, self._reader.names)
        if job.published is None:
            of |= {"run": job.run_id, "ds": job.ds}
        else:
            # Folders of two dates have shards of one name; a local version is but time and size.
            of["urls"] = fingerprint_of(pieces["url"].to_pylist())
        return part_identity(pieces, model=job.model.fingerprint, **of)

    def _carried(
        self, pieces: pa.Table, path: str, identity: str
    ) -> tuple[str, PartStatistics, int] | None:
        """Path, statistics and size of the slice's part, where an earlier night wrote it."""
        file = (self._job.published or {}).get(path.rpartition("/")[2])
        # Without a version, nothing tells whether the shard is the one that was labelled.
        if file is None or not all(pieces["version"].to_pylist()):
            return None
        found = read_statistics(self._job.lake, file.path, identity)
        if found is None or found[1] != file.bytes:
            return None  # gone or damaged: it is labelled again
        if not is_profile(self._job.lake, profile_path(file.path), identity):
            return None
        return file.path, *found

    def _write(self, pieces: pa.Table, path: str, identity: str) -> tuple[PartStatistics, int]:
        label_name = self._job.manifest.label
        tables: list[pa.Table] = [self._schema.empty_table()]
        labels: list[pa.ChunkedArray] = []
        rows_in = int(pieces["rows"].to_numpy().sum())
        chosen: list[NDArray[np.generic]] = []
        every, next_row = _every(rows_in, self._reader.width), 0
        names = pieces.select(["shard", "name"]).to_pydict()
        shards = dict(zip(*names.values(), strict=True))
        profile = SliceProfile(self._layout, self._clusters, rows_in, self._keys, shards)
        for block in self._reader.blocks(pieces):
            assert block.carried is not None  # keys are always read here
            tables.append(self._table(block.carried, torch.from_numpy(np.array(block.x_BF))))
            with self._threads:
                profile.add(block, tables[-1])
            if label_name:
                labels.append(block.carried[label_name])
            chosen.append(np.array(block.x_BF[next_row::every]))  # or the block stays in memory
            next_row = (next_row - len(block.x_BF)) % every
        table = pa.concat_tables(tables).combine_chunks()
        order = np.argsort(table["cluster_id"].to_numpy(), kind="stable")
        label = None
        if labels:
            chunks = [chunk for column in labels for chunk in column.chunks]
            label = pc.take(pa.chunked_array(chunks, type=labels[0].type), order)
        if len(table) != rows_in and self._job.config.source.nulls != "drop":
            raise PipelineError(
                f"assign: {len(table)} rows were read of a slice of {rows_in} that begins in "
                f"{pieces['name'][0]}; this is a defect, please report it"
            )
        table = table.take(order)
        statistics = statistics_of(identity, rows_in, table, label)
        if chosen:
            x_BF = np.concatenate(chosen)
            bins = bin_counts(x_BF, self._edges_FB).tolist()
            statistics = replace(statistics, bins=bins, binned_rows=len(x_BF))
        # First the profile: a part that is there has one.
        write_profile(self._job.lake, profile_path(path), profile.finished(), identity)
        return statistics, write_part(self._job.lake, path, table, statistics)

    def _table(self, carried: pa.Table, x_BF: Tensor) -> pa.Table:
        """The assignments of a block of raw rows."""
        with self._threads:
            found = assignments_of(self._model, x_BF)
        found = self._ids.rename(found)
        job = self._job
        constant = {"model_id": job.model.model_id, "run_id": job.run_id, "ds": job.ds}
        columns = {
            name: carried[name] for name in self._schema.names if name in carried.column_names
        }
        columns |= {name: pa.array(values) for name, values in found.items()}
        for name, value in constant.items():
            indices = pa.array(np.zeros(len(x_BF), np.int32))
            columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array([value]))
        return pa.table([columns[field.name] for field in self._schema], schema=self._schema)


def _every(rows: int, width: int) -> int:
    """One in how many rows of a slice drift is measured on."""
    enough = min(_BINNED_ROWS, max(rows * _BINNED_SHARE, _BINNED_VALUES / width))
    return max(1, math.ceil(rows / enough))
