"""Asking a cluster's autoscaler for nodes, where the cluster has one.

Ray's first autoscaler takes requests and does not answer; the second says what it will never do.
KubeRay runs either (``autoscalerOptions.version``). A cluster without one has a monitor process
all the same, which only reports nodes: the first kind under names of its own making.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)

# A request is forgotten this long after it was last renewed: a driver that died wants no nodes.
_EXPIRES_SECONDS = 120.0
_RENEWED_SECONDS = 30.0
_ANSWER_SECONDS = 5.0  # a busy head is asked again; whoever waits for it has more to do


class Autoscaler:
    """A request for nodes, while the block runs.

    Through Ray's coordinator, which adds up what is asked by everybody: a request that goes to the
    autoscaler itself would replace those of Ray Data and Ray Train, and be replaced by theirs.

    Args:
        bundles: What is to fit at the same time, each on one node.
    """

    def __init__(self, bundles: list[dict[str, float]]) -> None:
        self._bundles = bundles
        self._gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
        self._name = f"dec-{ray.get_runtime_context().get_job_id()}-{id(self):x}"
        self._asked_at = -float("inf")
        self._version = 0
        self._second = is_autoscaler_v2(fetch_from_server=True, gcs_client=self._gcs)
        self._there = self._second or _first_kind(self._gcs)

    def __enter__(self) -> Autoscaler:
        self.renew()
        if self._second:
            self._version = self._status().cluster_resource_state.cluster_resource_state_version
        return self

    def __exit__(self, *_: object) -> None:
        if self._there:
            with contextlib.suppress(ray.exceptions.RayError):
                self._coordinator().cancel_request.remote(self._name)

    def renew(self) -> None:
        """Keep the request up; to be called now and then."""
        if self._there and time.monotonic() - self._asked_at > _RENEWED_SECONDS:
            asked = self._coordinator().request_resources.remote(
                requester_id=self._name,
                resources=self._bundles,
                expire_after_s=_EXPIRES_SECONDS,
            )
            ray.get(asked, timeout=_ANSWER_SECONDS)
            self._asked_at = time.monotonic()

    def may_add(self) -> bool:
        """Whether the nodes may still come: there is an autoscaler, and it has not said no."""
        if not self._second:
            return self._there
        said = self._status().autoscaling_state
        heard = said.last_seen_cluster_resource_state_version > self._version
        return not (heard and said.infeasible_cluster_resource_constraints)

    def _coordinator(self) -> Any:
        return get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]

    def _status(self) -> Any:
        reply = autoscaler_pb2.GetClusterStatusReply  # type: ignore[attr-defined]
        return reply.FromString(self._gcs.get_cluster_status())


def _first_kind(gcs: GcsClient) -> bool:
    """Whether the first autoscaler is there, by the node types that it reports."""
    said = gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode())
    report = (json.loads(said) if said else {}).get("autoscaler_report") or {}
    types: list[str] = list((report.get("node_type_mapping") or {}).values())  # its head's at least
    return any(not name.startswith(format_readonly_node_type("")) for name in types)
