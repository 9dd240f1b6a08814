"""Workers of a training: processes that talk over gloo, as those of Ray Train do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing

# Imported once, by the process that all workers are forked from.
_IMPORTS = ["torch.distributed", "sklearn.metrics", "pipeline.model.refinement"]
_IMPORTS += ["pipeline.model.pretraining", "pipeline.input.feed", "pipeline.input.pinning"]


def run_workers(work: Callable[[int, str], None], folder: Path, count: int) -> None:
    """Call ``work`` with each rank and the folder, in so many processes, and wait for them."""
    multiprocessing.set_forkserver_preload(_IMPORTS)
    torch.multiprocessing.start_processes(
        work, args=(str(folder),), nprocs=count, start_method="forkserver"
    )
