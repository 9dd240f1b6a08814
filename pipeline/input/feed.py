"""Training rows of one worker: its share, read by its own threads, cached where it fits."""

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
from pipeline.input.slices import cut_where_changed, held_out

T = TypeVar("T")

# Bytes of raw rows per task: enough to hide the requests that open a shard, few enough that a
# window mixes many tasks.
_TASK_BYTES = 16 * 2**20
# A streamed pass reads its tasks in random order and shuffles rows within windows of this size.
# There are two: one is trained on while the other is filled.
_WINDOW_BYTES = 128 * 2**20


class WorkerRows:
    """One worker's share of the training rows (a ``TrainingRows``).

    Where the share fits ``cache_bytes``, the first pass fills a matrix of raw rows, and later
    passes read it in a new permutation. Otherwise each pass streams, with its tasks in a new order
    and its rows shuffled within a window. The order depends on ``seed`` and the number of the pass.
    A share ``held_out_share`` of the rows is skipped; ``held_out_seed``, the same on every worker,
    selects it (see ``pipeline.input.slices.held_out``). ``parallel_reads`` threads read.
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
            # torch warns of Arrow's read-only memory.
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
        """Windows to shuffle within; the memory of a window is reused by the one after the next."""
        shape = (self._window_rows, self.features)
        buffers = itertools.cycle([np.empty(shape, self._reader.dtype) for _ in range(2)])
        window, filled = next(buffers), 0
        order = random.permutation(len(self._tasks))
        for rest in self._blocks([self._tasks[i] for i in order]):
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
        """Raw rows in the order of the tasks, which are read in parallel, a few ahead."""
        reads = (lambda task=task: self._read(task) for task in tasks)
        for blocks in in_parallel(reads, self._parallel_reads):
            yield from blocks

    def _read(self, pieces: pa.Table) -> list[NDArray[np.generic]]:
        """Non-empty blocks of raw rows, without those that are held out."""
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
    """Cut a share into tasks of whole pieces, about this many rows each."""
    rows = pieces["rows"].to_numpy()
    task = (np.cumsum(rows) - rows) // task_rows
    return cut_where_changed(pieces, task)


def in_parallel(work: Iterator[Callable[[], T]], threads: int) -> Iterator[T]:
    """Results in order; as many as there are threads are computed ahead."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for call in work:
                ahead.append(pool.submit(call))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # the caller may stop early
            for future in ahead:
                future.cancel()


def _one_ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """The same items, each computed while the caller works on the one before."""
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
