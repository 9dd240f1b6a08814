"""The reference sample: rows drawn from each slice, written by the task that reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.records import StoredFile
from pipeline.input.reading import Reader
from pipeline.input.slices import held_out
from pipeline.input.statistics import VALUE_COUNTS, RowStatistics
from pipeline.model.scaling import Moments, Scaler
from pipeline.schema import classes_in, matrix_of, vectors
from pipeline.storage import Store, parquet_bytes, sha256

_ENCODE_ROWS = 2048
# Columns of a sample part; names that no key column may have.
FEATURES = "dec_features"
HELD_OUT = "dec_held_out"
_HASHES = pa.schema([("column", pa.string()), ("hashes", pa.list_(pa.uint64()))])


@dataclass(frozen=True)
class SamplePart:
    """Report of a task about its part: a file and statistics, never rows."""

    name: str
    sha256: str
    bytes: int
    rows: int
    scanned: int  # rows that the statistics come from
    moments: dict[str, list[Any]]  # lists of ``Moments``, by name
    # ``RowStatistics.values``, a list per column; None without categories.
    values: dict[str, list[Any]] | None = None
    hashes: dict[str, list[Any]] | None = None  # ``RowStatistics.hashes``, names and numbers
    cut: tuple[str, ...] = ()  # ``RowStatistics.cut``

    def statistics(self) -> RowStatistics:
        """The statistics as arrays."""
        moments = Moments(**{name: np.array(numbers) for name, numbers in self.moments.items()})
        values = pa.table(self.values or VALUE_COUNTS.empty_table().to_pydict(), VALUE_COUNTS)
        found = zip(*self.hashes.values(), strict=True) if self.hashes else ()
        hashes = {name: np.array(numbers, np.uint64) for name, numbers in found}
        return RowStatistics(moments, values, hashes, frozenset(self.cut))


class MergedParts:
    """Parts in the order of their arrival, and the statistics of all of them.

    Statistics are merged in the order of the slices, so that sums of floats and dropped values do
    not depend on that of arrival. ``names`` are those of all parts, in the order of the slices.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.parts: list[SamplePart] = []
        self.statistics: RowStatistics | None = None
        self._names = deque(names)
        self._early: dict[str, RowStatistics] = {}

    def add(self, part: SamplePart) -> None:
        """Add a part."""
        self._early[part.name] = part.statistics()
        self.parts.append(replace(part, values=None, hashes=None))  # the rest is small
        while self._names and self._names[0] in self._early:
            found = self._early.pop(self._names.popleft())
            self.statistics = self.statistics.merged_with(found) if self.statistics else found

    def merged(self) -> RowStatistics:
        """The statistics of all parts.

        Raises:
            ValueError: A part is missing, or arrived twice.
        """
        if self.statistics is None or self._names or self._early:
            early = sorted(self._early)
            raise ValueError(f"parts of the sample: missing {[*self._names]}, unexpected {early}")
        return self.statistics


def part_name(slice_number: int) -> str:
    """Name of a slice's part of the sample."""
    return f"part-{slice_number:06}.parquet"


def write_sample_part(
    reader: Reader, pieces: pa.Table, folder: Store, seed: int, held_out_share: float = 0.0
) -> pa.Table:
    """Draw rows from a slice and write them; returns one row, a ``SamplePart``.

    ``pieces`` have a column ``draw``; see ``pipeline.input.slices.sample_share``. The part marks
    the share of its rows that is held out of training.
    """
    seen: list[RowStatistics] = []
    drawn: list[pa.Table] = []
    for piece in range(len(pieces)):
        one = pieces.slice(piece, 1)
        place = one.to_pylist()[0]
        random = np.random.default_rng([seed, place["shard"], place["row_group"]])
        chosen = random.choice(place["rows"], place["draw"], replace=False, shuffle=False)
        chosen.sort()
        start = 0
        for block in reader.blocks(one):
            x_BF = block.x_BF
            seen = [RowStatistics.merged([*seen, RowStatistics.of(block, reader.features)])]
            # With source.nulls: drop, a block may lack rows; draws of them are lost, and the
            # sample is smaller by as many.
            first, last = np.searchsorted(chosen, [start, start + len(x_BF)])
            take = chosen[first:last] - start
            carried = block.carried if block.carried is not None else pa.table({})
            held_B = held_out(block.shard, block.row_numbers_B[take], held_out_share, seed)
            rows = carried.take(take).append_column(FEATURES, vectors(x_BF[take]))
            drawn.append(rows.append_column(HELD_OUT, pa.array(held_B)))
            start += len(x_BF)
    table = pa.concat_tables(drawn)
    content = parquet_bytes(table)
    name = part_name(pieces["slice"][0].as_py())
    folder.write_bytes(name, content)
    (found,) = seen  # a slice has rows
    statistics: dict[str, Any] = {
        "moments": [{name: numbers.tolist() for name, numbers in vars(found.moments).items()}]
    }
    if any(column.type == "category" for column in reader.features):
        found = found.bounded()
        # With their types, which empty lists would not have.
        hashes = {"column": [*found.hashes], "hashes": [*found.hashes.values()]}
        statistics["values"] = pa.array([found.values.to_pydict()], _lists(VALUE_COUNTS))
        statistics["hashes"] = pa.array([hashes], _lists(_HASHES))
        statistics["cut"] = pa.array([sorted(found.cut)], pa.list_(pa.string()))
    return pa.table(
        {
            "name": [name],
            "sha256": [sha256(content)],
            "bytes": [len(content)],
            "rows": [len(table)],
            "scanned": [int(pieces["rows"].to_numpy().sum())],
            **statistics,
        }
    )


def feature_parts(lake: Store, parts: tuple[StoredFile, ...]) -> Iterator[NDArray[np.generic]]:
    """Raw features of the sample, part by part: shape (rows, features) each, none of them empty."""
    for part in parts:
        if len(table := lake.read_table(part.path, [FEATURES])):
            yield matrix_of(table[FEATURES])


def sampled_features(lake: Store, parts: tuple[StoredFile, ...]) -> NDArray[np.generic]:
    """Raw features of the whole sample, shape (rows, features)."""
    return np.concatenate(list(feature_parts(lake, parts)))


def sampled_embeddings(
    lake: Store, sample: Sample, scaler: Scaler, encoders: Mapping[str, nn.Module]
) -> dict[str, NDArray[np.float32]]:
    """Embeddings of the scaled sample by each encoder, shape (rows, dimensions) each."""
    found: dict[str, NDArray[np.float32]] = {}
    start = 0
    with torch.inference_mode():
        for part in feature_parts(lake, sample.parts):
            # A copy, since torch warns of Arrow's read-only memory.
            for x_BF in torch.split(torch.from_numpy(np.array(part)), _ENCODE_ROWS):
                x_BF = scaler(x_BF)
                for name, encoder in encoders.items():
                    z_BD = encoder(x_BF).numpy()
                    if name not in found:
                        found[name] = np.empty((sample.rows, z_BD.shape[1]), np.float32)
                    found[name][start : start + len(z_BD)] = z_BD
                start += len(x_BF)
    return found


def sampled_held_out(lake: Store, parts: tuple[StoredFile, ...]) -> NDArray[np.bool_]:
    """Whether each row of the sample is held out of training, shape (rows,)."""
    columns = [lake.read_table(part.path, [HELD_OUT])[HELD_OUT] for part in parts]
    return np.concatenate([column.to_numpy() for column in columns])


def sampled_classes(lake: Store, parts: tuple[StoredFile, ...], label: str) -> NDArray[np.int64]:
    """True classes of the sample's rows, numbered from 0, shape (rows,); −1 where unknown."""
    # Plain values, since each part has its own dictionary.
    columns = [classes_in(lake.read_table(part.path, [label])[label]) for part in parts]
    labels = pa.concat_tables([pa.table([column], [label]) for column in columns])[label]
    codes = labels.combine_chunks().dictionary_encode().indices
    classes: NDArray[np.int64] = codes.fill_null(-1).to_numpy(zero_copy_only=False)
    return classes.astype(np.int64)


def _lists(schema: pa.Schema) -> pa.StructType:
    """The type of a table in one value."""
    return pa.struct([(field.name, pa.list_(field.type)) for field in schema])
