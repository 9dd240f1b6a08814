"""Training on many workers by Ray Train, with checkpoints that any later cluster can resume.

Checkpoints are our own files in the run's folder (safetensors and JSON, never a pickle), written
by rank 0 and replaced in one step. A retried job may land on another cluster, so nothing that
Ray Train keeps for itself is relied upon.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.config import Config
from pipeline.distributed.failures import pipeline_error
from pipeline.distributed.resources import Resources, share_out
from pipeline.engine import Context
from pipeline.errors import TransientError
from pipeline.lake.feed import WorkerRows
from pipeline.lake.reading import Reader
from pipeline.lake.slices import held_out_share, training_share
from pipeline.model.training import TrainingRows
from pipeline.model.workers import rank_and_size
from pipeline.storage import Store, arrow_filesystem

log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5  # often enough for a progress bar, far too rarely to cost anything


class Trainee(Protocol):
    """What is trained: ``Pretraining`` or ``Refinement``."""

    passes_done: int

    def run(self, rows: TrainingRows) -> Iterator[Any]:
        """Train, yielding a record (a dataclass with a ``number``) at each point of rest."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        ...


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told.

    Attributes:
        build: Makes the trainee from the run's files, the same on every worker.
        lake: The output folder.
        folder: Where checkpoints go, below it.
        job_id: Identifies the work; a checkpoint of other work is not resumed.
        reader: Reads the training rows.
        pieces: All pieces; each worker takes its share.
        fit_rows: Rows to learn from; None for all.
        total_rows: How many that is.
        held_out: Share of the rows that is not learnt from.
        seed: Decides shares and order.
        cache_bytes: Rows that a worker may keep in memory.
        checkpoint_seconds: Time between checkpoints.
        resources: Threads and claims.
    """

    build: Callable[[], Trainee]
    lake: Store
    folder: str
    job_id: str
    reader: Reader
    pieces: pa.Table
    fit_rows: int | None
    total_rows: int
    held_out: float
    seed: int
    cache_bytes: int
    checkpoint_seconds: float
    resources: Resources
    board: Any


@dataclass(frozen=True)
class Trained:
    """The end of a training: its state, and the records by number."""

    state: dict[str, Tensor]
    history: list[dict[str, Any]]


def train(
    config: Config,
    context: Context,
    *,
    folder: str,
    job_id: str,
    build: Callable[[], Trainee],
    reader: Reader,
    pieces: pa.Table,
    planned_rows: Callable[[int], int],
) -> Trained:
    """Train on ``execution.workers`` workers, starting over from the last checkpoint on failure.

    Args:
        config: The settings.
        context: The run.
        folder: Where checkpoints go, below the output.
        job_id: Identifies the work; see ``TrainingJob``.
        build: Makes the trainee; runs on every worker.
        reader: Reads the training rows.
        pieces: All pieces of the input.
        planned_rows: Rows that will be learnt from at most, from the rows of one pass.

    Raises:
        PipelineError: What stopped it.
    """
    total = int(pieces["rows"].to_numpy().sum())
    held_out = held_out_share(config.source.held_out, total)
    total = min(total, config.source.fit_rows or total)
    board = ray.remote(num_cpus=0)(_Board).remote()
    job = TrainingJob(
        build=build,
        lake=context.lake,
        folder=folder,
        job_id=job_id,
        reader=reader,
        pieces=pieces,
        fit_rows=config.source.fit_rows,
        total_rows=total,
        held_out=held_out,
        seed=config.seed,
        cache_bytes=config.execution.cache_mib * 2**20,
        checkpoint_seconds=config.execution.checkpoint_seconds,
        resources=share_out(config.execution),
        board=board,
    )
    with _Watch(board, planned_rows(total), context):
        _fit(job, retries=config.execution.retries)
    state, meta = _load_checkpoint(job)
    if not meta.get("complete"):
        raise TransientError(f"{folder}: the training ended without its result; run it again")
    return Trained(state, meta["history"])


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer, which leaves signals to whoever runs it."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray's would end the process with status 0 and stay in place after the training."""


def _fit(job: TrainingJob, retries: int) -> None:
    filesystem, path = arrow_filesystem(job.lake.locate(f"{job.folder}/ray_train"))
    resources = job.resources
    # A single worker beside the driver needs no process of its own, which takes 13 s to start.
    in_place = resources.workers == 1 and len(ray.nodes()) == 1  # type: ignore[no-untyped-call]
    trainer = _Trainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_place else resources.workers,
            resources_per_worker=None if in_place else resources.per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=f"{job.job_id[:12]}-{time.time_ns():x}",  # never Ray Train's own resume
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    for attempt in range(retries + 1):
        try:
            trainer.fit()
            return
        except Exception as error:
            failure = pipeline_error(error)
            if not failure.retryable or attempt == retries:
                raise failure from error
            log.warning("training starts over from its last checkpoint: %s", failure)


def _work(loop_config: dict[str, Any]) -> None:
    """What each worker does."""
    job: TrainingJob = loop_config["job"]
    torch.set_num_threads(job.resources.threads)
    rank, size = rank_and_size()
    share = training_share(job.pieces, rank, size, fit_rows=job.fit_rows, seed=job.seed)
    rows = WorkerRows(
        job.reader,
        share,
        total_rows=job.total_rows,
        cache_bytes=job.cache_bytes,
        parallel_reads=max(1, job.resources.threads),
        seed=job.seed + rank,
        held_out_share=job.held_out,
        held_out_seed=job.seed,
    )
    trainee = job.build()
    state, meta = _load_checkpoint(job)
    history: dict[int, dict[str, Any]] = {}
    if state:
        trainee.restore(state)
        history = {record["number"]: record for record in meta["history"]}
    watched = _ReportingRows(rows, job.board if rank == 0 else None, size, trainee.passes_done)
    saved_at = time.monotonic()
    for record in trainee.run(watched):
        # A resumed training begins by yielding once more what it had yielded last.
        history.setdefault(record.number, asdict(record))
        if rank == 0 and getattr(record, "event", None):
            log.warning("update %d: %s", record.number, record.event)
        watched.note = _note(record)
        # Only rank 0 writes, so only its clock counts and the others need not know.
        if rank == 0 and time.monotonic() - saved_at >= job.checkpoint_seconds:
            _save_checkpoint(job, trainee, history, complete=False)
            saved_at = time.monotonic()
    if rank == 0:
        _save_checkpoint(job, trainee, history, complete=True)


def _note(record: Any) -> str:
    names = {"loss": "loss {:.4f}", "kl": "KL {:.4f}", "label_change": "label change {:.2%}"}
    values = ((text, getattr(record, name, None)) for name, text in names.items())
    return " · ".join(text.format(value) for text, value in values if value is not None)


# -------------------------------------------------------------------------------- checkpoints


def _save_checkpoint(
    job: TrainingJob, trainee: Trainee, history: dict[int, dict[str, Any]], *, complete: bool
) -> None:
    # One file, replaced in one step: weights and history can never be of different passes.
    meta = {
        "job_id": job.job_id,
        "history": [history[number] for number in sorted(history)],
        "complete": complete,
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainee.state().items()}
    job.lake.write_bytes(
        f"{job.folder}/checkpoint.safetensors", save(state, metadata={"meta": json.dumps(meta)})
    )


def _load_checkpoint(job: TrainingJob) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and meta data of the last checkpoint of this very work; empty when there is none."""
    try:
        content = job.lake.read_bytes(f"{job.folder}/checkpoint.safetensors")
    except FileNotFoundError:
        return {}, {}
    header_bytes = int.from_bytes(content[:8], "little")  # safetensors: length, JSON header, data
    meta = json.loads(json.loads(content[8 : 8 + header_bytes])["__metadata__"]["meta"])
    return (load(content), meta) if meta["job_id"] == job.job_id else ({}, {})


# ----------------------------------------------------------------------------------- progress


class _Board:
    """Where rank 0 leaves its progress, for the driver to look at."""

    def __init__(self) -> None:
        self._rows, self._note = 0, ""

    def put(self, rows: int, note: str) -> None:
        self._rows, self._note = rows, note

    def get(self) -> tuple[int, str]:
        return self._rows, self._note


class _ReportingRows:
    """Training rows that tell the board how many of them went by."""

    def __init__(self, rows: WorkerRows, board: Any, workers: int, passes_done: int) -> None:
        self.total_rows, self.features = rows.total_rows, rows.features
        self.note = ""
        self._rows, self._board, self._workers = rows, board, workers
        self._seen = passes_done * rows.total_rows
        self._told_at = 0.0

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        for batch in self._rows.batches(pass_number, batch_rows, shuffled=shuffled):
            yield batch
            self._seen += len(batch) * self._workers * shuffled
            if self._board is not None and time.monotonic() - self._told_at > _REPORT_SECONDS:
                self._board.put.remote(self._seen, self.note)
                self._told_at = time.monotonic()


class _Watch:
    """Show the board's content while the block runs."""

    def __init__(self, board: Any, planned_rows: int, context: Context) -> None:
        self._board, self._planned, self._progress = board, planned_rows, context.progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        ray.kill(self._board)

    def _show(self) -> None:
        while not self._done.wait(_REPORT_SECONDS):
            try:
                rows, note = ray.get(self._board.get.remote(), timeout=5)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            self._progress.stage_advanced(min(rows, self._planned), self._planned, "rows", note)
