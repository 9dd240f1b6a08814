"""Training rows for one worker: its share, streamed by Ray Data, kept in memory where it fits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.lake.ray_data import quiet_ray_data
from pipeline.lake.reading import Reader
from pipeline.lake.slices import held_out

# Raw rows that one reading task hands over, in bytes: many of them make a shuffling window, and a
# share of just one is read in place, sooner than a reading process starts.
TASK_BYTES = 8 * 2**20
# A streamed pass is shuffled within this much memory, after its tasks were put in random order.
_SHUFFLE_BYTES = 256 * 2**20


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
        read_cpus: CPUs that each reading task claims.
        parallel_reads: Reading tasks at a time.
        seed: With the pass number, decides the order.
        held_out_share: Of the rows, which are passed over; see ``pipeline.lake.slices.held_out``.
        held_out_seed: The same on every worker.
        task_bytes: See ``TASK_BYTES``.
    """

    def __init__(
        self,
        reader: Reader,
        pieces: pa.Table,
        *,
        total_rows: int,
        cache_bytes: int,
        read_cpus: float,
        parallel_reads: int,
        seed: int,
        held_out_share: float = 0.0,
        held_out_seed: int = 0,
        task_bytes: int = TASK_BYTES,
    ) -> None:
        self.total_rows = total_rows
        self.features = reader.width
        self._reader = reader
        row_bytes = reader.width * np.dtype(reader.dtype).itemsize
        self._tasks = _reading_tasks(pieces, max(1, task_bytes // row_bytes))
        self._share_rows = int(pieces["rows"].to_numpy().sum())
        self._cached = self._share_rows * row_bytes <= cache_bytes
        self._cache: NDArray[np.generic] | None = None
        self._read_cpus = read_cpus
        self._parallel_reads = parallel_reads
        self._seed = seed
        self._held_out = (held_out_share, held_out_seed)

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        """See ``pipeline.model.training.TrainingRows``."""
        random = np.random.default_rng([self._seed, pass_number])
        windows = (
            iter([self._read_once()])
            if self._cached
            else self._stream(random if shuffled else None)
        )
        for window in windows:
            order = random.permutation(len(window)) if shuffled else None
            for start in range(0, len(window), batch_rows):
                stop = start + batch_rows
                rows = window[start:stop] if order is None else window[order[start:stop]]
                yield _as_tensor(rows)

    def _read_once(self) -> NDArray[np.generic]:
        if self._cache is None:
            cache = np.empty((self._share_rows, self.features), dtype=self._reader.dtype)
            filled = 0
            for block in self._blocks(self._tasks):
                cache[filled : filled + len(block)] = block
                filled += len(block)
            self._cache = cache[:filled]  # source.nulls: drop may leave fewer
        return self._cache

    def _stream(self, random: np.random.Generator | None) -> Iterator[NDArray[np.generic]]:
        """Windows of rows to shuffle within; single blocks, in order, when not shuffled."""
        tasks = self._tasks
        if random is not None:
            tasks = [tasks[i] for i in random.permutation(len(tasks))]
        window: list[NDArray[np.generic]] = []
        held = 0
        for block in self._blocks(tasks):
            window.append(block)
            held += block.nbytes
            if random is None or held >= _SHUFFLE_BYTES:
                yield np.concatenate(window) if len(window) > 1 else window[0]
                window, held = [], 0
        if window:
            yield np.concatenate(window) if len(window) > 1 else window[0]

    def _blocks(self, tasks: list[pa.Table]) -> Iterator[NDArray[np.generic]]:
        """Raw rows, in the order of the tasks, read ahead by Ray Data."""
        if len(tasks) <= 1:
            for task in tasks:
                yield from _learnt_blocks(self._reader, task, *self._held_out)
            return
        reader, (share, seed) = self._reader, self._held_out
        context = quiet_ray_data()
        before = copy.copy(context.execution_options)  # of the whole process, which may go on
        # Without it, blocks come in the order in which they happen to be ready.
        context.execution_options.preserve_order = True
        # This worker's executor believes that the whole cluster is its own.
        context.execution_options.resource_limits = ray.data.ExecutionResources(
            cpu=self._read_cpus * self._parallel_reads
        )
        try:
            dataset = ray.data.from_blocks(tasks).map_batches(
                lambda pieces: _tensor_tables(reader, pieces, share, seed),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self._read_cpus,
            )
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                column: pa.ChunkedArray = table["x"]
                for chunk in column.chunks:
                    yield chunk.to_numpy_ndarray()
        finally:
            context.execution_options = before


def _reading_tasks(pieces: pa.Table, task_rows: int) -> list[pa.Table]:
    """Cut a share into what one task reads: whole pieces, about this many rows."""
    rows = pieces["rows"].to_numpy()
    task = (np.cumsum(rows) - rows) // task_rows
    edges = np.flatnonzero(np.diff(task, prepend=-1, append=-1))
    return [pieces.slice(a, b - a) for a, b in itertools.pairwise(edges)]


def _learnt_blocks(
    reader: Reader, pieces: pa.Table, share: float, seed: int
) -> Iterator[NDArray[np.generic]]:
    """Raw rows without those that are held out, never empty."""
    for block in reader.blocks(pieces):
        rows = block.x_BF
        if share:
            rows = rows[~held_out(block.shard, block.row_numbers_B, share, seed)]
        if len(rows):
            yield rows


def _tensor_tables(reader: Reader, pieces: pa.Table, share: float, seed: int) -> Iterator[pa.Table]:
    for rows in _learnt_blocks(reader, pieces, share, seed):
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows))
        yield pa.table({"x": tensor})


def _as_tensor(rows: NDArray[np.generic]) -> Tensor:
    # Blocks are read-only views of the object store; nobody writes to a batch in place, but
    # torch warns about it all the same.
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())
