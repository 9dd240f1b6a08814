"""Every private API of Ray that is used: that it is there, and what it is used for.

When a new release of Ray changes one of them, a test here names it.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.train

from pipeline.distributed import private_ray


def test_listening_on_localhost_alone_is_a_switch_that_ray_reads_on_import() -> None:
    """A Ray on a laptop must not run the code of whoever reaches its network."""
    code = (
        "from pipeline.distributed.private_ray import listen_locally; listen_locally(); "
        "from ray._private import services; print(services.get_node_ip_address())"
    )
    env = {n: v for n, v in os.environ.items() if n != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "127.0.0.1" in result.stdout, result.stderr


def test_rules_of_ignore_files_are_those_of_ray(tmp_path: Path) -> None:
    """``dec submit`` copies what Ray itself would send of a working directory."""
    (tmp_path / ".rayignore").write_text("*.bin\n")
    rules = private_ray.ignored_by_rayignore(tmp_path)
    assert any(rule(tmp_path / "x.bin") for rule in rules)
    assert not any(rule(tmp_path / "x.py") for rule in rules)


def test_unclaimed_resources_are_less_than_all_while_somebody_works(ray_address: str) -> None:
    """Whether a training can grow depends on what other jobs have claimed."""

    @ray.remote(num_cpus=1)
    class Holder:
        def ready(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.ready.remote())
    (node,) = private_ray.unclaimed_resources()
    ray.kill(holder)
    assert node["CPU"] <= ray.cluster_resources()["CPU"] - 1


def test_a_cluster_without_an_autoscaler_has_version_0(ray_address: str) -> None:
    """Without an autoscaler nobody waits for nodes; test_autoscaler.py has versions 1 and 2."""
    assert private_ray.autoscaler_version() == 0


def test_the_state_of_the_second_autoscaler_can_be_parsed(ray_address: str) -> None:
    """It says which requests for nodes it will never meet."""
    state = private_ray.autoscaler_state()
    assert state.current >= state.seen >= 0
    assert not state.infeasible


def test_nodes_are_requested_through_the_coordinator(ray_address: str) -> None:
    """It adds up the requests of Ray Data, Ray Train and ours."""
    ray.get(private_ray.request_nodes("test", [{"CPU": 1.0}], expires_s=10), timeout=60)
    private_ray.cancel_nodes("test")


def test_whole_blocks_are_mapped_where_gpus_are_claimed(ray_address: str) -> None:
    """A slice is a block of descriptions of pieces; batches of rows mean nothing."""
    with pytest.raises(ValueError, match="batch_size"):
        ray.data.range(1).map_batches(lambda batch: batch, batch_size=None, num_gpus=1)
    blocks = ray.data.from_blocks([pa.table({"x": [1, 2]}), pa.table({"x": [3]})])
    counted = private_ray.map_blocks(
        blocks, lambda block: pa.table({"rows": [len(block)]}), num_cpus=0.25, max_retries=1
    )
    assert sorted(row["rows"] for row in counted.take_all()) == [1, 2]
    private_ray.map_blocks(blocks, lambda block: block, num_gpus=1, max_retries=1)


def test_a_step_of_ray_data_can_end_the_execution(ray_address: str) -> None:
    """Ray Data would wait for ever for actors whose nodes are gone."""

    def fail() -> None:
        raise RuntimeError("no room")

    context = ray.data.DataContext.get_current().copy()
    made = []
    private_ray.call_at_each_step(context, lambda: made.append(1) or fail)
    blocks = ray.data.from_blocks([pa.table({"x": [1]})])
    blocks.context.custom_execution_callback_classes = context.custom_execution_callback_classes
    with pytest.raises(Exception, match="no room"):
        private_ray.map_blocks(blocks, lambda block: block, num_cpus=0.25).take_all()
    assert made == [1]


def test_errors_of_ray_train_can_be_told_apart() -> None:
    """A lost worker is retried, and an exception inside Ray Train's own is the one to report."""
    for kind in (*private_ray.worker_lost_errors(), *private_ray.train_wrappers()):
        assert issubclass(kind, Exception)
    assert ray.train.TrainingFailedError in private_ray.train_wrappers()


def test_inner_failures_are_in_attributes_of_ray_train() -> None:
    """They are not in ``__cause__``."""
    from ray.train import ControllerError, WorkerGroupError

    inner = ValueError("x")
    assert inner in list(private_ray.inner_failures(ControllerError(inner)))
    assert inner in list(private_ray.inner_failures(WorkerGroupError("", {0: inner})))


def test_the_trainer_has_the_methods_that_are_replaced() -> None:
    """Signals are the caller's, and NCCL is chosen only where torch sees every GPU."""
    from ray.train.torch.config import TorchConfig, _TorchBackend

    trainer = private_ray.torch_trainer(
        lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1)
    )
    parents = type(trainer).__mro__[1:]
    assert any("_register_sigint_handler" in vars(kind) for kind in parents)
    assert "on_start" in vars(_TorchBackend)
    assert list(inspect.signature(_TorchBackend.on_start).parameters)[1:3] == [
        "worker_group",
        "backend_config",
    ]
    assert "backend" in TorchConfig.__dataclass_fields__
