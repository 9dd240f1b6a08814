"""The reference sample: rows drawn from each slice, written beside the run by whoever read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts import StoredFile
from pipeline.lake.reading import Reader
from pipeline.model.scaling import Moments
from pipeline.storage import Store, parquet_bytes, sha256

# Of the vector column in a sample part; not a name that a key column would have.
FEATURES = "dec_features"


@dataclass(frozen=True)
class SamplePart:
    """What a task reports of its part: a file and statistics, never rows.

    Attributes:
        name: Of the file.
        sha256: Of its content.
        bytes: Its size.
        rows: Rows in it.
        scanned: Rows that the statistics come from.
        count_F: See ``Moments``, like the ones below.
    """

    name: str
    sha256: str
    bytes: int
    rows: int
    scanned: int
    count_F: list[int]
    mean_F: list[float]
    m2_F: list[float]
    min_F: list[float]
    max_F: list[float]
    missing_F: list[int]

    def moments(self) -> Moments:
        """The statistics as arrays."""
        return Moments(
            count_F=np.array(self.count_F, np.int64),
            mean_F=np.array(self.mean_F),
            m2_F=np.array(self.m2_F),
            min_F=np.array(self.min_F),
            max_F=np.array(self.max_F),
            missing_F=np.array(self.missing_F, np.int64),
        )


def write_sample_part(reader: Reader, pieces: pa.Table, folder: Store, seed: int) -> pa.Table:
    """Draw rows from a slice and write them.

    Args:
        reader: Reads features, keys and label.
        pieces: The slice, with a column ``draw``; see ``pipeline.lake.slices.sample_share``.
        folder: Where parts go.
        seed: With shard and row group, decides which rows are drawn.

    Returns:
        One row: a ``SamplePart``.
    """
    moments: Moments | None = None
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
            seen = Moments.of(x_BF)
            moments = seen if moments is None else moments.merge(seen)
            # Under source.nulls: drop a block may be shorter than its rows; then a few draws fall
            # on rows that are gone, and the sample is that much smaller.
            first, last = np.searchsorted(chosen, [start, start + len(x_BF)])
            take = chosen[first:last] - start
            vectors = pa.FixedSizeListArray.from_arrays(_flat(x_BF[take]), reader.width)
            carried = block.carried if block.carried is not None else pa.table({})
            drawn.append(carried.take(take).append_column(FEATURES, vectors))
            start += len(x_BF)
    table = pa.concat_tables(drawn)
    content = parquet_bytes(table)
    name = f"part-{pieces['slice'][0].as_py():06}.parquet"
    folder.write_bytes(name, content)
    assert moments is not None  # a slice has rows
    statistics: dict[str, Any] = {k: [v.tolist()] for k, v in vars(moments).items()}
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


def sampled_features(lake: Store, parts: tuple[StoredFile, ...]) -> NDArray[np.generic]:
    """Raw features of the whole sample, shape (rows, features)."""
    columns = [lake.read_table(part.path, [FEATURES])[FEATURES].combine_chunks() for part in parts]
    return np.concatenate(
        [c.flatten().to_numpy(zero_copy_only=False).reshape(len(c), -1) for c in columns if len(c)]
    )


def _flat(x_BF: NDArray[np.generic]) -> pa.Array:
    return pa.array(np.ascontiguousarray(x_BF).ravel())
