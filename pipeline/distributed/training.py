"""Training on many workers by Ray Train, with checkpoints that any later cluster can resume.

A retried job may land on another cluster, so nothing that Ray Train keeps for itself is relied
upon.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipeline import logs
from pipeline.config import Config
from pipeline.distributed.board import Board, RankZero, ReportingRows, Trainee, Watch
from pipeline.distributed.checkpoints import Checkpoint
from pipeline.distributed.failures import pipeline_error
from pipeline.distributed.growth import Growth
from pipeline.distributed.resources import (
    Resources,
    cluster_nodes,
    share_out_what_is_left,
    training_crew,
)
from pipeline.distributed.retries import with_retries
from pipeline.distributed.workers import enter
from pipeline.engine import Context, Stop
from pipeline.errors import Interrupted, TransientError
from pipeline.input.feed import WorkerRows
from pipeline.input.reading import Reader
from pipeline.input.slices import held_out_share, training_share
from pipeline.model.devices import claimed_device
from pipeline.model.workers import rank_and_size
from pipeline.progress import figures

log = logging.getLogger(__name__)

# Ray Train's own: they would know nothing of our checkpoints or of nodes that are gone for good.
_NO_RETRIES: dict[str, Any] = {
    "max_failures": 0,
    "controller_failure_limit": 0,
    "max_preemption_failures": 0,
}


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told.

    Attributes:
        build: Makes the trainee from the run's files on a device, the same on every worker.
        checkpoint: Of this work.
        reader: Reads the training rows.
        pieces: All pieces; each worker takes its share.
        fit_rows: Rows to learn from; None for all.
        total_rows: How many that is.
        held_out: Share of the rows that is not learnt from.
        seed: Decides shares and order.
        cache_bytes: Rows that a worker may keep in memory.
        checkpoint_seconds: Time between checkpoints.
        board: Where progress is shown.
    """

    build: Callable[[torch.device], Trainee]
    checkpoint: Checkpoint
    reader: Reader
    pieces: pa.Table
    fit_rows: int | None
    total_rows: int
    held_out: float
    seed: int
    cache_bytes: int
    checkpoint_seconds: float
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
    stage: str,
    job_id: str,
    build: Callable[[torch.device], Trainee],
    reader: Reader,
    pieces: pa.Table,
    planned_rows: Callable[[int], int],
) -> Trained:
    """Train on ``execution.workers`` workers, from the last checkpoint again when some are lost.

    Where nodes are lost for good, fewer workers go on: they learn from the same global batches.
    Where nodes come, and it pays, more of them do.
    Asked to stop (``context.stop``), rank 0 saves the last point of rest within a second or two.

    Args:
        config: The settings.
        context: The run.
        stage: Whose folder checkpoints go to, and whom progress is of.
        job_id: Identifies the work; see ``TrainingJob``.
        build: Makes the trainee on a device; runs on every worker.
        reader: Reads the training rows.
        pieces: All pieces of the input.
        planned_rows: Rows that will be learnt from at most, from the rows of one pass.

    Raises:
        Interrupted: It was asked to stop; a checkpoint is there.
        PipelineError: What else stopped it.
    """
    total = int(pieces["rows"].to_numpy().sum())
    held_out = held_out_share(config.source.held_out, total)
    total = min(total, config.source.fit_rows or total)
    # Where the driver is: a node that is lost does not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    job = TrainingJob(
        build=build,
        checkpoint=Checkpoint(context.lake, context.stage_path(stage), job_id),
        reader=reader,
        pieces=pieces,
        fit_rows=config.source.fit_rows,
        total_rows=total,
        held_out=held_out,
        seed=config.seed,
        cache_bytes=config.execution.cache_mib * 2**20,
        checkpoint_seconds=config.execution.checkpoint_seconds,
        board=board,
    )
    planned, crew = planned_rows(total), training_crew(config.execution)
    attempts = itertools.count()

    def attempt() -> None:
        lost = next(attempts) > 0
        while True:  # once, and once more for every growth
            _leave_if_asked(job, context.stop)
            resources = share_out_what_is_left(config.execution, crew, wait=lost)
            try:
                with Growth(crew, resources.workers, planned) as watch.growth:
                    _fit(job, resources, config.execution.placement)
                break
            except Exception as error:
                if not isinstance(pipeline_error(error), Interrupted):
                    raise
            finally:
                board.reset.remote()
            lost = False
        _leave_if_asked(job, context.stop)

    with Watch(board, stage, planned, context) as watch:
        with_retries(
            config.execution,
            f"training for {job.checkpoint.folder}",
            attempt,
            memory=f"lower execution.cache_mib={config.execution.cache_mib} or give workers more",
            progress=job.checkpoint.records,
        )
    state, meta = job.checkpoint.load()
    if meta is None or not meta.complete:
        raise TransientError(
            f"{job.checkpoint.folder}: the training ended without its result; run it again"
        )
    watch.tell({record["number"]: figures(record) for record in meta.history})
    return Trained(state, list(meta.history))


def _leave_if_asked(job: TrainingJob, stop: Stop) -> None:
    if stop.requested:
        raise Interrupted(f"{job.checkpoint.folder}: asked to stop")


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer, which leaves signals to whoever runs it."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray's would end the process with status 0 and stay in place after the training."""


class _Backend(_TorchBackend):
    """Sums over NCCL where every worker has a card, and over gloo otherwise.

    Ray would go by the claim alone, and a node may offer GPUs that torch cannot use.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Choose when the workers are there: the driver's own node tells nothing."""
        claimed = worker_group.get_resources_per_worker().get("GPU", 0)
        cards = bool(claimed) and all(worker_group.execute(torch.cuda.is_available))
        super().on_start(worker_group, replace(backend_config, backend=_BACKENDS[cards]))


_BACKENDS = {True: "nccl", False: "gloo"}


class _TorchConfig(ray.train.torch.TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _fit(job: TrainingJob, resources: Resources, placement: str) -> None:
    """One attempt, from the last checkpoint to the end or to the first worker that is lost."""
    gpus = resources.claim.gpus
    # A single worker beside the driver needs no process of its own, which takes 13 s to start.
    in_place = resources.workers == 1 and len(cluster_nodes()) == 1 and not gpus
    _Trainer(
        _work,
        train_loop_config={
            "job": job,
            "threads": resources.threads,
            "gpus": gpus,
            "place": logs.here(),
        },
        torch_config=_TorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_place else resources.workers,
            use_gpu=bool(gpus),
            resources_per_worker=None if in_place else resources.claim.resources,
            placement_strategy=placement.upper(),
        ),
        run_config=ray.train.RunConfig(
            name=f"{job.checkpoint.job_id[:12]}-{time.time_ns():x}",  # never Ray Train's own resume
            # Nobody reads what Ray Train writes, and a filesystem would carry credentials to it.
            storage_path=os.path.join(tempfile.gettempdir(), f"dec-ray-train-{os.getuid()}"),
            failure_config=ray.train.FailureConfig(**_NO_RETRIES),
        ),
    ).fit()


def _device(gpus: float) -> torch.device:
    """Where this worker computes, and says so.

    Ray has made its card the current one; sums over gloo are of what lies in memory.
    """
    rank, size = rank_and_size()
    over = dist.get_backend() if dist.is_initialized() else ""
    device = claimed_device(gpus if over == "nccl" else 0)
    node = ray.get_runtime_context().get_node_id()
    log.info("worker %d of %d on node %s computes on %s", rank, size, node, device)
    if rank == 0 and gpus and device.type == "cpu":
        log.warning(
            "workers claim a GPU each, but torch %s finds no CUDA with every one of them: they "
            "compute on processors; install a build of torch for the driver of these nodes",
            torch.__version__,
        )
    return device


def _work(loop_config: dict[str, Any]) -> None:
    """What each worker does."""
    enter(loop_config["place"])
    job: TrainingJob = loop_config["job"]
    threads: int = loop_config["threads"]
    torch.set_num_threads(threads)
    rank, size = rank_and_size()
    share = training_share(job.pieces, rank, size, fit_rows=job.fit_rows, seed=job.seed)
    rows = WorkerRows(
        job.reader,
        share,
        total_rows=job.total_rows,
        cache_bytes=job.cache_bytes,
        parallel_reads=threads,
        seed=job.seed + rank,
        held_out_share=job.held_out,
        held_out_seed=job.seed,
    )
    trainee = job.build(_device(loop_config["gpus"]))
    state, meta = job.checkpoint.load()
    history: dict[int, dict[str, Any]] = {}
    if meta is not None:
        trainee.restore(state)
        history = {record["number"]: record for record in meta.history}
        if rank == 0:
            log.info("goes on after pass %d with %d workers", trainee.passes_done, size)
    # Only rank 0 reports and writes: its clock alone counts, and the others need not know.
    first = None
    if rank == 0:
        first = RankZero(job.board, job.checkpoint, job.checkpoint_seconds, trainee, history)
    watched = ReportingRows(rows, first, size, trainee.passes_done)
    for record in trainee.run(watched):
        # A resumed training begins by yielding once more what it had yielded last.
        history.setdefault(record.number, asdict(record) | {"workers": size})
        if first:
            if event := getattr(record, "event", None):
                log.warning("update %d: %s", record.number, event)
            first.rest(record.number, _note(record))
    if first:
        job.checkpoint.save(trainee.state(), history, complete=True)


def _note(record: Any) -> str:
    names = {"loss": "loss {:.4f}", "kl": "KL {:.4f}", "label_change": "label change {:.2%}"}
    values = ((text, getattr(record, name, None)) for name, text in names.items())
    return " · ".join(text.format(value) for text, value in values if value is not None)
