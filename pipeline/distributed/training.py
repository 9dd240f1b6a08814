"""Training on many workers by Ray Train, with checkpoints that any later cluster can resume.

A retried job may land on another cluster, so nothing that Ray Train keeps for itself is used.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipeline import logs
from pipeline.config import Config
from pipeline.distributed.board import Board, RankZero, ReportingRows, Trainable, Watch
from pipeline.distributed.checkpoints import Checkpoint
from pipeline.distributed.failures import pipeline_error
from pipeline.distributed.growth import Growth
from pipeline.distributed.private_ray import torch_trainer
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

# Ray Train knows nothing of our checkpoints, or of nodes that are lost for good.
_NO_RETRIES: dict[str, Any] = dict.fromkeys(
    ("max_failures", "controller_failure_limit", "max_preemption_failures"), 0
)


@dataclass(frozen=True)
class TrainingJob:
    """What every worker needs to know; see ``train``."""

    build: Callable[[torch.device], Trainable]
    checkpoint: Checkpoint
    reader: Reader
    pieces: pa.Table  # pieces of all workers
    config: Config
    total_rows: int  # number of rows to train on
    held_out: float  # share of the rows that training does not see
    board: Any


@dataclass(frozen=True)
class Trained:
    """Result of a training: its last state, and its records in order."""

    state: dict[str, Tensor]
    history: list[dict[str, Any]]


def train(
    config: Config,
    context: Context,
    *,
    stage: str,
    job_id: str,
    build: Callable[[torch.device], Trainable],
    reader: Reader,
    pieces: pa.Table,
    planned_rows: Callable[[int], int],
) -> Trained:
    """Train on ``execution.workers`` workers; resume from the last checkpoint when some are lost.

    Where nodes are lost for good, fewer workers continue with the same global batches. Where nodes
    join, and a restart pays, more do. On a request to checkpoint and exit (``context.stop``), rank
    0 saves the last record's state within a second or two.

    ``job_id`` identifies the work: a checkpoint of other work is not resumed. ``build`` makes the
    trainable on a device, on every worker. ``planned_rows`` returns the maximum number of rows to
    train on, from the rows of one pass.

    Raises:
        Interrupted: A stop was requested; a checkpoint is saved.
        PipelineError: The training failed for good.
    """
    total = int(pieces["rows"].to_numpy().sum())
    held_out = held_out_share(config.source.held_out, total)
    total = min(total, config.source.fit_rows or total)
    # On the driver's node, which outlives all others.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    job = TrainingJob(
        build=build,
        checkpoint=Checkpoint(context.lake, context.stage_path(stage), job_id),
        reader=reader,
        pieces=pieces,
        config=config,
        total_rows=total,
        held_out=held_out,
        board=board,
    )
    planned, crew = planned_rows(total), training_crew(config.execution)
    attempts = itertools.count()

    def attempt() -> None:
        lost = next(attempts) > 0
        while True:  # once, and once more each time that workers are added
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
            memory=f"lower execution.cache_mib={config.execution.cache_mib} or add memory to nodes",
            progress=job.checkpoint.records,
        )
    state, meta = job.checkpoint.load()
    if not meta or not meta.complete:
        raise TransientError(
            f"{job.checkpoint.folder}: the training ended without a result; run the same id again"
        )
    watch.forward({record["number"]: figures(record) for record in meta.history})
    return Trained(state, list(meta.history))


def _leave_if_asked(job: TrainingJob, stop: Stop) -> None:
    if stop.requested:
        raise Interrupted(f"{job.checkpoint.folder}: stop requested")


def _fit(job: TrainingJob, resources: Resources, placement: str) -> None:
    """One attempt, from the last checkpoint to the end or to the first worker that is lost."""
    gpus = resources.claim.gpus
    # A single worker on the driver's node needs no process of its own, which takes 13 s to start.
    in_place = resources.workers == 1 and len(cluster_nodes()) == 1 and not gpus
    torch_trainer(
        _work,
        train_loop_config={
            "job": job,
            "threads": resources.threads,
            "gpus": gpus,
            "place": logs.here(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_place else resources.workers,
            use_gpu=bool(gpus),
            resources_per_worker=None if in_place else resources.claim.resources,
            placement_strategy=placement.upper(),
        ),
        run_config=ray.train.RunConfig(
            name=f"{job.checkpoint.job_id[:12]}-{time.time_ns():x}",  # never Ray Train's own resume
            # What Ray Train writes is not used; a remote filesystem would need credentials.
            storage_path=os.path.join(tempfile.gettempdir(), f"dec-ray-train-{os.getuid()}"),
            failure_config=ray.train.FailureConfig(**_NO_RETRIES),
        ),
    ).fit()


def _device(gpus: float) -> torch.device:
    """The device of this worker, logged.

    Ray has made the claimed GPU the current one; gloo sums tensors in main memory.
    """
    rank, size = rank_and_size()
    over = dist.get_backend() if dist.is_initialized() else ""
    device = claimed_device(gpus if over == "nccl" else 0)
    node = ray.get_runtime_context().get_node_id()
    log.info("worker %d of %d on node %s uses %s", rank, size, node, device)
    if rank == 0 and gpus and device.type == "cpu":
        log.warning(
            "workers claim a GPU each, but torch %s does not find CUDA on every worker: training "
            "runs on CPUs; install a build of torch for the NVIDIA driver of these nodes",
            torch.__version__,
        )
    return device


def _work(loop_config: dict[str, Any]) -> None:
    """The training loop of each worker."""
    enter(loop_config["place"])
    job: TrainingJob = loop_config["job"]
    config, threads = job.config, loop_config["threads"]
    torch.set_num_threads(threads)
    rank, size = rank_and_size()
    fit_rows, seed = config.source.fit_rows, config.seed
    share = training_share(job.pieces, rank, size, fit_rows=fit_rows, seed=seed)
    rows = WorkerRows(
        job.reader,
        share,
        total_rows=job.total_rows,
        cache_bytes=config.execution.cache_mib * 2**20,
        parallel_reads=threads,
        seed=seed + rank,
        held_out_share=job.held_out,
        held_out_seed=seed,
    )
    trainable = job.build(_device(loop_config["gpus"]))
    state, meta = job.checkpoint.load()
    history: dict[int, dict[str, Any]] = {}
    if meta:
        trainable.restore(state)
        history = {record["number"]: record for record in meta.history}
        if rank == 0:
            log.info("resumes after pass %d with %d workers", trainable.passes_done, size)
    # Only rank 0 reports and writes checkpoints, by its own clock.
    seconds = config.execution.checkpoint_seconds
    first = None if rank else RankZero(job.board, job.checkpoint, seconds, trainable, history)
    watched = ReportingRows(rows, first, size, trainable.passes_done)
    for record in trainable.run(watched):
        # A resumed refinement first yields its last record again.
        history.setdefault(record.number, asdict(record) | {"workers": size})
        if first:
            if event := getattr(record, "event", None):
                log.warning("update %d: %s", record.number, event)
            first.record(record.number, _note(record))
    if first:
        job.checkpoint.save(trainable.state(), history, complete=True)


def _note(record: Any) -> str:
    names = {"loss": "loss {:.4f}", "kl": "KL {:.4f}", "label_change": "label change {:.2%}"}
    values = ((text, getattr(record, name, None)) for name, text in names.items())
    return " · ".join(text.format(value) for text, value in values if value is not None)
