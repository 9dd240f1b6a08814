"""Set up a worker process: its logs and counts name the run and stage that it works for."""

from __future__ import annotations

import ray

from pipeline import counts, logs
from pipeline.distributed.metrics import Exporter

_exporter: Exporter | None = None


def enter(place: logs.Place) -> None:
    """Log and count for that run and stage from now on; does nothing on the driver."""
    global _exporter
    if place == logs.here():
        return
    logs.enter(place)
    if _exporter is None:
        _exporter = Exporter()
        counts.send_to(_exporter.count)


def node_id() -> str:
    """Id of the Ray node that this process runs on; "none" outside Ray."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "none"
