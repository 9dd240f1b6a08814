"""A run whose clusters are known, made without Ray by the same parts that runs are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nights_by_hand import cluster, store_table
from numpy.typing import NDArray

from pipeline.artifacts.assignments import Assignments, PartFile
from pipeline.artifacts.explanations import Description, Explanation
from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Reference
from pipeline.artifacts.records import Artifact, StoredFile
from pipeline.config import Config
from pipeline.engine import Context, Stage
from pipeline.input.reading import Reader, pieces_of
from pipeline.input.samples import write_sample_part
from pipeline.input.slices import by_slice, sample_share
from pipeline.labelling.assigning import Assigner, AssignJob
from pipeline.lake.snapshots import FileList, Partition, publish
from pipeline.model.scaling import Scaler
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.entries import CLUSTER_SCHEMA, append
from pipeline.registry.models import centroids_bytes, scaler_bytes, store_model
from pipeline.registry.reference import bins_bytes
from pipeline.runs import Marker
from pipeline.stages import describe as describing
from pipeline.stages import explain as explaining
from pipeline.stages.pin import pin
from pipeline.storage import Store

ROWS = 1_200
# amount, age, then a vector of noise: 0 differs from the others in amount, 2 in age.
CENTROIDS = np.array(
    [[10, 30, 0, 0, 0, 0], [100, 30, 0, 0, 0, 0], [100, 60, 0, 0, 0, 0]], np.float32
)


def known_table() -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows, and the group of each."""
    random = np.random.default_rng(0)
    group = random.integers(0, 3, ROWS)
    amount = np.where(group == 0, 10.0, 100.0) + random.normal(size=ROWS)
    age = np.where(group == 2, 60, 30) + random.integers(-2, 3, ROWS)
    noise = random.normal(size=(ROWS, 4)).astype(np.float32)
    table = pa.table(
        {
            "id": np.arange(ROWS) + 1000,
            "amount": amount,
            "age": age.astype(np.int32),
            "v": pa.FixedSizeListArray.from_arrays(noise.ravel(), 4),
        }
    )
    return table, group


@dataclass(repr=False)
class KnownRun:
    """The run, as far as it was made.

    Attributes:
        config_path: YAML file, for the command.
    """

    config: Config
    config_path: str
    context: Context
    table: pa.Table
    group: NDArray[np.int64]
    manifest: Manifest
    model: ClusteringModel
    sample: Sample
    assignments: Assignments
    explanation: Explanation
    rows: pa.Table

    @property
    def lake(self) -> Store:
        return self.context.lake

    champion: Champion

    def describe(
        self, monkeypatch: pytest.MonkeyPatch, champion: Champion | None = None, **explain: Any
    ) -> Description:
        """The stage, with its task in this process."""
        monkeypatch.setattr(describing, "run_task", in_this_process)
        chosen = self.config.explain.model_copy(update=explain)
        config = self.config.model_copy(update={"explain": chosen})
        inputs = (champion or self.champion, self.assignments, self.explanation)
        found = describing.describe.run(config, self.context, *inputs)
        mark(self.context, describing.describe, found)
        return found


def in_this_process(_: Any, memory: str, work: Any, *words: Any, **named: Any) -> Any:
    """A task without Ray."""
    return work(*words, **named)


def mark(context: Context, stage: Stage[Any, Any] | str, artifact: Artifact) -> None:
    """Say that a stage is complete, as the engine does."""
    name = stage if isinstance(stage, str) else stage.name
    marker = Marker(
        stage=name,
        fingerprint="f",
        seconds=0,
        finished_at="",
        artifact=artifact.model_dump(mode="json"),
    )
    path = context.stage_path(name, "done.json")
    context.lake.write_json(path, marker.model_dump(mode="json"))


def known_run(folder: Path, *, shards: int = 3, **source: Any) -> KnownRun:
    """Pin, sample, assign, publish and profile the known table with a model made by hand."""
    table, group = known_table()
    (folder / "in").mkdir(parents=True)
    for number, start in enumerate(range(0, ROWS, ROWS // shards)):
        rows = table.slice(start, ROWS // shards)
        pq.write_table(rows, folder / "in" / f"{number}.parquet", row_group_size=100)
    settings = {
        "source": {"path": str(folder / "in"), "features": ["amount", "age", "v"], "keys": ["id"]},
        "output": str(folder / "lake"),
        "clusters": 3,
        "explain": {"exemplars": 2},
    }
    settings["source"] |= source  # type: ignore[operator]
    config_path = folder / "config.yaml"
    config_path.write_text(json.dumps(settings))
    config = Config.model_validate(settings)
    context = Context("known", "2026-01-31", Store(config.output))
    context.lake.write_json("runs/known/run.json", {"run_id": "known", "ds": context.ds})
    manifest = pin.run(config, context)
    mark(context, pin, manifest)
    scaler = Scaler("none", np.zeros(6), np.zeros(6), np.ones(6))
    model = store_model(
        config,
        context,
        "kmeans",
        weights=None,
        centroids=centroids_bytes(CENTROIDS),
        scaler=scaler_bytes(scaler, manifest.features),
        scaling="none",
    )
    sample = _sample(config, context, manifest, model)
    champion = champion_of(context, manifest, model, sample, (0, 1, 2))
    clusters = pa.Table.from_pylist([cluster(number) for number in range(3)], CLUSTER_SCHEMA)
    append(
        context.lake,
        0,
        action="promote",
        commit_id="known",
        who="run known",
        reason="by hand",
        champion=champion,
        clusters=store_table(context.lake, "registry/first.parquet", clusters),
        transitions=(),
    )
    assignments, rows = _assign(config, context, manifest, champion)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explaining, "run_task", in_this_process)
        explanation = explaining.explain.run(config, context, manifest, champion, assignments)
    mark(context, explaining.explain, explanation)
    return KnownRun(
        *(config, str(config_path), context, table, group, manifest, model, sample),
        *(assignments, explanation, rows, champion),
    )


def champion_of(
    context: Context,
    manifest: Manifest,
    model: ClusteringModel,
    sample: Sample,
    ids: tuple[int, ...],
) -> Champion:
    """The model, its clusters with these permanent ids."""
    table = ClusterIds(np.int32(ids), np.full(len(ids), np.inf, np.float32)).table()
    bins = bins_bytes(np.zeros((6, 9)), np.ones((6, 10), np.int64))
    return Champion(
        model=model,
        run_id=context.run_id,
        ds=context.ds,
        refit_ds=context.ds,
        ids=store_table(context.lake, f"registry/ids-{ids[0]}.parquet", table),
        reference=Reference(
            sample=sample,
            features=manifest.features,
            bins=context.store("registry/bins.parquet", bins),
        ),
        settings="s",
    )


def _sample(config: Config, context: Context, manifest: Manifest, model: ClusteringModel) -> Sample:
    reader = Reader.of(config, manifest, carry=True)
    folder = context.lake.child(context.stage_path("sample"))
    parts = []
    for pieces in by_slice(sample_share(pieces_of(manifest, context.lake), ROWS, 0)):
        (part,) = write_sample_part(reader, pieces, folder, 0).to_pylist()
        path = context.stage_path("sample", part["name"])
        parts.append(StoredFile(path=path, sha256=part["sha256"], bytes=part["bytes"]))
    return Sample(
        parts=tuple(parts),
        rows=ROWS,
        scanned_rows=ROWS,
        missing_values=0,
        scaler=model.scaler,
        scaling="none",
    )


def _assign(
    config: Config, context: Context, manifest: Manifest, champion: Champion
) -> tuple[Assignments, pa.Table]:
    job = AssignJob(
        *(config, manifest, champion.model, champion.ids, champion.reference.bins),
        *(context.lake, "runs/known/assignments", context.run_id, context.ds, 1),
    )
    files = []
    for pieces in by_slice(pieces_of(manifest, context.lake)):
        (part,) = Assigner(job)(pieces).to_pylist()
        rows = json.loads(part["statistics"])["rows"]
        files.append(PartFile(path=part["path"], rows=rows, bytes=part["bytes"]))
    listing = FileList(rows=ROWS, files=tuple(files)).model_dump_json().encode()
    stored = context.store(context.stage_path("assign", "files.json"), listing)
    partition = Partition(
        run_id=context.run_id, model_id=champion.model.model_id, rows=ROWS, files=stored.path
    )
    publish(context.lake, context.ds, partition, "commit")
    rows = pa.concat_tables([context.lake.read_table(file.path) for file in files])
    counts = np.bincount(rows["cluster_id"].to_numpy(), minlength=3)
    assignments = Assignments(
        files=stored,
        file_count=len(files),
        rows_in=ROWS,
        rows_dropped=0,
        rows=ROWS,
        cluster_rows=tuple(counts.tolist()),
        mean_confidence=0.9,
        scores=None,
        cluster_ids=(0, 1, 2),
        labelled_rows=ROWS,
    )
    mark(context, "assign", assignments)
    return assignments, rows
