"""A Ray cluster whose nodes a real autoscaler adds, and what runs of two sizes get on it.

A program of its own, for Ray reads some of these variables when it is imported. Prints JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

VERSION = sys.argv[1]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
os.environ |= {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",  # its nodes are processes of this machine
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
if VERSION == "v2":
    os.environ |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}

import psutil  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from pipeline.config import Execution  # noqa: E402
from pipeline.distributed import autoscaler  # noqa: E402
from pipeline.distributed.resources import cluster_nodes, share_out  # noqa: E402
from pipeline.errors import PipelineError  # noqa: E402


def config(port: int) -> dict[str, Any]:
    """Of an autoscaler that may add a node for data, and two with a GPU."""
    host = ray.util.get_node_ip_address()
    sizes = {"data": ({"CPU": 2}, 1), "cards": ({"CPU": 2, "GPU": 1}, 2), "head": ({}, 0)}
    return {
        "cluster_name": "autoscaled",
        "max_workers": 8,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": f"{host}:{port}",
            "launch_multiple": VERSION == "v2",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            f"ray.{name}.default": {
                "resources": resources,
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            }
            for name, (resources, most) in sizes.items()
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def outcome(**settings: Any) -> dict[str, Any]:
    """What a run of these settings gets, and the nodes by then."""
    try:
        found: Any = share_out(Execution(**settings)).workers
    except PipelineError as error:
        found = f"{type(error).__name__}: {error}"
    return {"found": found, "nodes": sorted(node for node in cluster_nodes() if node.cpus)}


def main() -> None:
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config(port), file)
        file.flush()
        head = {"num_cpus": 0, "gcs_server_port": port, "autoscaling_config": file.name}
        cluster = Cluster(initialize_head=True, head_node_args=head | {"include_dashboard": False})
        try:
            ray.init(cluster.address, log_to_driver=False)
            if VERSION == "v1":
                autoscaler._ANSWER_SECONDS = 0.0  # as from a head that is too busy to answer
            while not autoscaler.Autoscaler(
                []
            ).may_add():  # its process has not reported anything yet
                time.sleep(0.5)
            two = {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 1, "actors": 1}
            found = [
                outcome(**two),
                outcome(**two | {"workers": 3}, scale_up_seconds=30 if VERSION == "v2" else 3),
            ]
            print(json.dumps(found), flush=True)
        finally:
            started = psutil.Process().children(recursive=True)
            ray.shutdown()
            cluster.shutdown()
            for process in started:  # the nodes that the autoscaler added as well
                if process.is_running():
                    process.kill()


main()
