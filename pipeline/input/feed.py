"""Training rows for one worker: its share, read by threads of its own, kept where it fits."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.input.reading import Reader
from pipeline.input.slices import held_out

T = TypeVar("T")

# Raw rows that are read at a time, in bytes: enough to hide the requests that open a shard, few
# enough that a window mixes many of them.
_TASK_BYTES = 16 * 2**20
# A streamed pass is shuffled within windows of this much memory, after its tasks were put in random
# order. There are two: one is learnt from while the other is filled.
_WINDOW_BYTES = 128 * 2**20


class WorkerRows:
    """One worker's share of the training rows (a ``TrainingRows``).

    When the share fits ``cache_bytes`` the first pass fills a matrix of the rows as stored, and
    every pass after runs at the speed of memory, in a fresh permutation. Otherwise each pass
    streams, its tasks in a fresh order and its rows shuffled within a window.

    Args:
        reader: Reads the pieces.
        pieces: This worker's share.
        total_rows: Rows of all workers' shares.
        cache_bytes: See above.
        parallel_reads: Threads that read.
        seed: With the pass number, decides the order.
        held_out_share: Of the rows, which are passed over; see ``pipeline.input.slices.held_out``.
        held_out_seed: The same on every worker.
        task_bytes: Read at a time by each thread.
        window_bytes: Of each of the two windows.
    """

    def __init__(
        self,
        reader: Reader,
        pieces: pa.Table,
        *,
        total_rows: int,
        cache_bytes: int,
        parallel_reads: int,
        seed: int,
        held_out_share: float = 0.0,
        held_out_seed: int = 0,
        task_bytes: int = _TASK_BYTES,
        window_bytes: int = _WINDOW_BYTES,
    ) -> None:
        self.total_rows = total_rows
        self.features = reader.width
        self._reader = reader
        row_bytes = reader.width * np.dtype(reader.dtype).itemsize
        self._tasks = _reading_tasks(pieces, max(1, task_bytes // row_bytes))
        self._share_rows = int(pieces["rows"].to_numpy().sum())
        self._cached = self._share_rows * row_bytes <= cache_bytes
        self._cache: NDArray[np.generic] | None = None
        self._window_rows = max(1, min(self._share_rows, window_bytes // row_bytes))
        self._parallel_reads = parallel_reads
        self._seed = seed
        self._held_out = (held_out_share, held_out_seed)

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        """See ``pipeline.model.training.TrainingRows``."""
        random = np.random.default_rng([self._seed, pass_number])
        if self._cached:
            windows = iter([self._read_once()])
        elif shuffled:
            windows = _one_ahead(self._windows(random))
        else:
            windows = self._blocks(self._tasks)
        for window in windows:
            # Arrow's memory is read-only, and torch warns of that.
            rows_WF = torch.from_numpy(window if window.flags.writeable else window.copy())
            if not shuffled:
                yield from rows_WF.split(batch_rows)  # type: ignore[no-untyped-call]
                continue
            for chosen in torch.from_numpy(random.permutation(len(window))).split(batch_rows):  # type: ignore[no-untyped-call]
                # Several times as fast as numpy's indexing.
                yield rows_WF.index_select(0, chosen)

    def _read_once(self) -> NDArray[np.generic]:
        if self._cache is None:
            cache = np.empty((self._share_rows, self.features), dtype=self._reader.dtype)
            filled = 0
            for block in self._blocks(self._tasks):
                cache[filled : filled + len(block)] = block
                filled += len(block)
            self._cache = cache[:filled]  # source.nulls: drop may leave fewer
        return self._cache

    def _windows(self, random: np.random.Generator) -> Generator[NDArray[np.generic], None, None]:
        """Rows to shuffle within; a window's memory is used again by the next but one."""
        shape = (self._window_rows, self.features)
        buffers = itertools.cycle([np.empty(shape, self._reader.dtype) for _ in range(2)])
        window, filled = next(buffers), 0
        order = random.permutation(len(self._tasks))
        for block in self._blocks([self._tasks[i] for i in order]):
            rest = block
            while len(rest):
                some = rest[: len(window) - filled]
                window[filled : filled + len(some)] = some
                filled, rest = filled + len(some), rest[len(some) :]
                if filled == len(window):
                    yield window
                    window, filled = next(buffers), 0
        if filled:
            yield window[:filled]

    def _blocks(self, tasks: list[pa.Table]) -> Iterator[NDArray[np.generic]]:
        """Raw rows in the order of the tasks, which are read in parallel, a few of them ahead."""
        reads = (lambda task=task: self._read(task) for task in tasks)
        for blocks in _in_parallel(reads, self._parallel_reads):
            yield from blocks

    def _read(self, pieces: pa.Table) -> list[NDArray[np.generic]]:
        """Raw rows without those that are held out, never empty."""
        share, seed = self._held_out
        found = []
        for block in self._reader.blocks(pieces):
            rows = block.x_BF
            if share:
                rows = rows[~held_out(block.shard, block.row_numbers_B, share, seed)]
            if len(rows):
                found.append(rows)
        return found


def _reading_tasks(pieces: pa.Table, task_rows: int) -> list[pa.Table]:
    """Cut a share into what one task reads: whole pieces, about this many rows."""
    rows = pieces["rows"].to_numpy()
    task = (np.cumsum(rows) - rows) // task_rows
    edges = np.flatnonzero(np.diff(task, prepend=-1, append=-1))
    return [pieces.slice(a, b - a) for a, b in itertools.pairwise(edges)]


def _in_parallel(work: Iterator[Callable[[], T]], threads: int) -> Iterator[T]:
    """Results in order; as many more as there are threads are made before they are asked for."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for call in work:
                ahead.append(pool.submit(call))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # nobody waits for what is not wanted any more
            for future in ahead:
                future.cancel()


def _one_ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """The same items; each is made while the one before is worked on."""
    end = None
    with ThreadPoolExecutor(1) as pool:
        try:
            ahead = pool.submit(next, items, end)
            while (item := ahead.result()) is not end:
                ahead = pool.submit(next, items, end)
                yield item
        finally:
            pool.shutdown()
            items.close()
