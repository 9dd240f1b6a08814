"""What is found inside Ray's exceptions, as Ray 2.60 nests them."""

from __future__ import annotations

import pyarrow as pa
import pytest
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from pipeline.distributed.failures import pipeline_error
from pipeline.errors import InputError, OutOfMemory, PipelineError, StorageFull, TransientError

GONE = WorkerHealthCheckFailedError("a health check failed", ray.exceptions.ActorDiedError())
PEER = RuntimeError("[/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ([PEER, GONE], TransientError, "ActorDiedError"),
        ([PEER], TransientError, "gloo"),
        ([PEER, ValueError("x")], PipelineError, "ValueError: x; this is a defect"),
        ([PEER, InputError("shard 3")], InputError, "shard 3"),
        ([PEER, MemoryError("Unable to allocate 3 GiB")], OutOfMemory, "allocate 3 GiB"),
    ],
)
def test_of_several_workers_the_one_that_began_it(
    failures: list[Exception], kind: type[PipelineError], message: str
) -> None:
    found = pipeline_error(WorkerGroupError("workers failed", dict(enumerate(failures))))
    assert type(found) is kind
    assert message in str(found)


def test_workers_that_never_came() -> None:
    found = pipeline_error(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert type(found) is TransientError


@pytest.mark.parametrize(
    "error",
    [
        pa.ArrowMemoryError("malloc of size 64 failed"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        OSError(12, "Cannot allocate memory"),
        ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    ],
)
def test_no_memory_whoever_says_so(error: Exception) -> None:
    assert type(pipeline_error(error)) is OutOfMemory


def test_our_own_errors_stay_what_they_are() -> None:
    assert type(pipeline_error(StorageFull("full"))) is StorageFull
    assert type(pipeline_error(InputError("bad column: out of memory"))) is InputError
