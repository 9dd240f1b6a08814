"""When a training with fewer workers than it may have should restart with more."""

from __future__ import annotations

import contextlib
import logging
import time

import ray

from pipeline.distributed.autoscaler import Autoscaler
from pipeline.distributed.resources import Crew, cluster_nodes, fitting, free_nodes

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0  # between two looks at the cluster; a node takes longer to come
# Minimum time to measure a speed from: the first rows wait for storage.
_MEASURED_SECONDS = 5.0


class Growth:
    """Watch for room for more workers during one attempt at a training, while the block runs.

    More workers need a restart, in which no row is learnt from. They must save more time than this
    attempt's own start took, by the speed so far and the planned rows. Near the end, or for one
    worker beside many, they do not.
    """

    def __init__(self, crew: Crew, workers: int, planned_rows: int) -> None:
        self._crew, self._workers, self._planned = crew, workers, planned_rows
        self._began_at = self._looked_at = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and count of the first rows seen
        self._autoscaler: Autoscaler | None = None

    def __enter__(self) -> Growth:
        if missing := self._crew.most - self._workers:
            try:
                self._autoscaler = Autoscaler([self._crew.claim.resources] * missing).__enter__()
            except Exception:  # training goes on with the workers that it has
                log.warning("no more workers are requested", exc_info=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._autoscaler:
            self._autoscaler.__exit__()

    def pays(self, rows: int) -> bool:
        """Whether to restart with more workers after so many rows."""
        now = time.monotonic()
        self._first = self._first or (now, rows)
        if self._autoscaler is None or now - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = now
        with contextlib.suppress(ray.exceptions.RayError):  # a busy head: the next look is soon
            self._autoscaler.renew()
        # What others have claimed is not available; an attempt that waits for it would fail.
        claim = self._crew.claim
        free = sum(claim.places_on(node) for node in free_nodes())
        fit = min(self._crew.most, fitting(cluster_nodes(), claim))  # the next attempt takes all
        learnt_s, learnt = now - self._first[0], rows - self._first[1]
        grows = self._workers < fit <= self._workers + free
        if not grows or learnt_s < _MEASURED_SECONDS or not learnt:
            return False
        start_s = self._first[0] - self._began_at
        saved_s = saved_by_growth(self._workers, fit, learnt_s * (self._planned - rows) / learnt)
        if saved_s > start_s:
            figures = fit, self._workers, saved_s, start_s
            log.info("room for %d workers instead of %d: saves %.0f s, costs %.0f s", *figures)
        return saved_s > start_s


def saved_by_growth(workers: int, more: int, left_s: float) -> float:
    """Seconds that ``more`` workers save on work that takes ``workers`` of them ``left_s`` s."""
    return left_s * (1 - workers / more)
