"""When a training that runs with fewer workers than it may is worth going on with more."""

from __future__ import annotations

import contextlib
import logging
import time

import ray

from pipeline.distributed.autoscaler import Autoscaler
from pipeline.distributed.resources import Crew, cluster_nodes, fitting, free_nodes

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0  # between two looks at the cluster; a node takes longer to come
# Rows of less time than this say nothing about speed: the first ones wait for storage.
_MEASURED_SECONDS = 5.0


class Growth:
    """One attempt at a training, while the block runs.

    More workers cost a new start, in which nobody learns. What this attempt's own start took is
    the measure: the growth must save more than that, by the speed so far and the rows that are
    planned. Near the end, or for one worker beside many, it does not.

    Args:
        crew: Of the training.
        workers: That this attempt has.
        planned_rows: That will be learnt from at most.
    """

    def __init__(self, crew: Crew, workers: int, planned_rows: int) -> None:
        self._crew, self._workers, self._planned = crew, workers, planned_rows
        self._began_at = self._looked_at = time.monotonic()
        self._first: tuple[float, int] | None = None  # when rows first went by, and how many had
        self._autoscaler: Autoscaler | None = None

    def __enter__(self) -> Growth:
        if missing := self._crew.most - self._workers:
            try:
                self._autoscaler = Autoscaler([self._crew.claim.resources] * missing).__enter__()
            except Exception:  # what there is can train all the same
                log.warning("no more workers are asked for", exc_info=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._autoscaler:
            self._autoscaler.__exit__()

    def pays(self, rows: int) -> bool:
        """Whether to go on with more workers, when so many rows have been learnt from."""
        now = time.monotonic()
        self._first = self._first or (now, rows)
        if self._autoscaler is None or now - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = now
        with contextlib.suppress(ray.exceptions.RayError):  # a busy head: another look is near
            self._autoscaler.renew()
        # What others have claimed is no room, and the attempt that would wait for it would fail.
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
            log.info(
                "room for %d workers, up from %d: saves about %.0f s, costs about %.0f s",
                fit,
                self._workers,
                saved_s,
                start_s,
            )
        return saved_s > start_s


def saved_by_growth(workers: int, more: int, left_s: float) -> float:
    """Seconds that more workers save on what takes ``workers`` of them ``left_s`` seconds."""
    return left_s * (1 - workers / more)
