"""Requests for nodes to a cluster's autoscaler, where the cluster has one.

Ray's first autoscaler takes requests and never answers; the second says which it will never meet.
KubeRay runs either (``autoscalerOptions.version``).
"""

from __future__ import annotations

import contextlib
import time

import ray

from pipeline.distributed import private_ray

# A request expires this long after its last renewal: a driver that died needs no nodes.
_EXPIRES_SECONDS = 120.0
_RENEW_SECONDS = 30.0
_ANSWER_SECONDS = 5.0  # a busy head is asked again; the caller has more to do than wait for it


class Autoscaler:
    """A request for nodes while the block runs: all bundles at the same time, each on one node."""

    def __init__(self, bundles: list[dict[str, float]]) -> None:
        self._bundles = bundles
        self._name = f"dec-{ray.get_runtime_context().get_job_id()}-{id(self):x}"
        self._requested_at = -float("inf")
        self._state_version = 0
        self._autoscaler = private_ray.autoscaler_version()

    def __enter__(self) -> Autoscaler:
        self.renew()
        if self._autoscaler == 2:
            self._state_version = private_ray.autoscaler_state().current
        return self

    def __exit__(self, *_: object) -> None:
        if self._autoscaler:
            with contextlib.suppress(ray.exceptions.RayError):
                private_ray.cancel_nodes(self._name)

    def renew(self) -> None:
        """Keep the request alive; call it every few seconds."""
        if self._autoscaler and time.monotonic() - self._requested_at > _RENEW_SECONDS:
            request = private_ray.request_nodes(self._name, self._bundles, _EXPIRES_SECONDS)
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                ray.get(request, timeout=_ANSWER_SECONDS)
                self._requested_at = time.monotonic()

    def may_add(self) -> bool:
        """Whether the nodes may still come: there is an autoscaler, and it did not refuse."""
        if self._autoscaler < 2:
            return bool(self._autoscaler)
        state = private_ray.autoscaler_state()
        return not (state.seen > self._state_version and state.infeasible)
