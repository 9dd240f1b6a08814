"""Every private or undocumented API of Ray that this product uses, each behind one function.

A new release of Ray that changes one of them fails in ``tests/distributed/test_private_ray.py``,
which says what each is for. Nothing of Ray is imported before a function is called: some processes
set variables that Ray reads on import, and others need a single one of these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import ray.data
    import ray.train.torch


def listen_locally() -> None:
    """Make a Ray that this process starts listen on localhost; call before Ray is imported.

    Ray has this mode for laptops and reads its variable on import.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def ignored_by_rayignore(folder: Path) -> list[Callable[[Path], bool]]:
    """Rules of a folder's .gitignore and .rayignore, as Ray applies them to a working_dir."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    return list(get_excludes_from_ignore_files(folder, include_gitignore=True))


def unclaimed_resources() -> list[dict[str, float]]:
    """Unclaimed resources of each node that is alive; public APIs give the total."""
    from ray._private import state

    return list(state.available_resources_per_node().values())  # type: ignore[no-untyped-call]


# ----------------------------------------------------------------------------------- autoscaler


class AutoscalerState(NamedTuple):
    """What the second autoscaler knows."""

    current: int  # version of the cluster's state now
    seen: int  # version that the autoscaler has looked at
    infeasible: bool  # whether it said that a request can never be met


def autoscaler_version() -> int:
    """Version of the cluster's autoscaler, 1 or 2; 0 where there is none.

    A cluster without one has a monitor process all the same, which reports nodes under names of
    its own making.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler._private.util import format_readonly_node_type
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    gcs = _gcs()
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs):
        return 2
    status = gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode())
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    types: list[str] = list((report.get("node_type_mapping") or {}).values())  # its head's at least
    return int(any(not name.startswith(format_readonly_node_type("")) for name in types))


def autoscaler_state() -> AutoscalerState:
    """State of the second autoscaler."""
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterStatusReply  # type: ignore[attr-defined]
    status = reply.FromString(_gcs().get_cluster_status())
    return AutoscalerState(
        status.cluster_resource_state.cluster_resource_state_version,
        status.autoscaling_state.last_seen_cluster_resource_state_version,
        bool(status.autoscaling_state.infeasible_cluster_resource_constraints),
    )


def request_nodes(name: str, bundles: list[dict[str, float]], expires_s: float) -> Any:
    """Ask for nodes through the coordinator that adds up the requests of all; an object reference.

    A request that went to the autoscaler itself would replace those of Ray Data and Ray Train, and
    be replaced by theirs.
    """
    return _coordinator().request_resources.remote(
        requester_id=name, resources=bundles, expire_after_s=expires_s
    )


def cancel_nodes(name: str) -> None:
    """Withdraw a request for nodes."""
    _coordinator().cancel_request.remote(name)


def _coordinator() -> Any:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    return module.get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]


def _gcs() -> Any:
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=ray.get_runtime_context().gcs_address)


# -------------------------------------------------------------------------------------- Ray Data


def map_blocks(
    dataset: ray.data.Dataset, work: Callable[..., Any], **options: Any
) -> ray.data.Dataset:
    """``map_batches`` of whole blocks.

    The public method refuses whole blocks as batches where GPUs are claimed, and how often a
    failed task is retried can only be said here or in an option that is deprecated.
    """
    import warnings

    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches_internal(
            work, batch_size=None, batch_format="pyarrow", **options
        )


def call_at_each_step(
    context: ray.data.DataContext, make: Callable[[], Callable[[], None]]
) -> None:
    """Call a function at each step of an execution of Ray Data; what it raises ends the execution.

    ``make`` makes the function, once for each execution.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Step(ExecutionCallback):
        def __init__(self) -> None:
            self._check = make()

        def on_execution_step(self, executor: Any) -> None:
            self._check()

    context.custom_execution_callback_classes = [Step]


# ------------------------------------------------------------------------------------- Ray Train


def worker_lost_errors() -> tuple[type[BaseException], ...]:
    """Exceptions of Ray Train for workers that never came or do not answer in time."""
    from ray.train.v2._internal import exceptions

    return (
        exceptions.WorkerHealthCheckTimeoutError,
        exceptions.WorkerGroupStartupFailedError,
        exceptions.WorkerGroupStartupTimeoutError,
    )


def train_wrappers() -> tuple[type[BaseException], ...]:
    """Exceptions of Ray Train that only carry those of workers; see ``inner_failures``."""
    import ray.train
    from ray.train.v2._internal import exceptions

    return (ray.train.TrainingFailedError, exceptions.WorkerHealthCheckFailedError)


def inner_failures(error: BaseException) -> Iterator[object]:
    """What Ray's exceptions carry in attributes of their own instead of ``__cause__``."""
    for name in ("cause", "controller_failure", "health_check_failure"):
        yield getattr(error, name, None)
    yield from getattr(error, "worker_failures", {}).values()


def torch_trainer(*arguments: Any, **named: Any) -> ray.train.torch.TorchTrainer:
    """Ray's trainer, with two of its decisions replaced.

    It leaves signals to the caller: its own handler would end the process with status 0, and stay
    after the training. And workers sum over NCCL only where torch sees a GPU in each, for a node
    may offer GPUs that torch cannot use; Ray goes by the claim.
    """
    from dataclasses import replace

    import ray.train.torch
    import torch
    from ray.train.torch.config import _TorchBackend

    class Trainer(ray.train.torch.TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            # Asked of the workers: the driver's own node tells nothing about theirs.
            claimed = worker_group.get_resources_per_worker().get("GPU", 0)
            cards = bool(claimed) and all(worker_group.execute(torch.cuda.is_available))
            backend = "nccl" if cards else "gloo"
            super().on_start(worker_group, replace(backend_config, backend=backend))

    class TorchConfig(ray.train.torch.TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Trainer(*arguments, torch_config=TorchConfig(), **named)
