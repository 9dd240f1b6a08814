"""Fourteen nights of a table: real rows of known classes in shards by day, and what befalls it.

A world is a pure function of its cast and its day: ``shards(day)`` is the table as it lies there
that night, ``known(day)`` what is true of each of its rows, which no model ever sees.
"""

from __future__ import annotations

import datetime
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

DATA = Path(__file__).parents[3] / "shared/data"
FIRST = datetime.date(2026, 2, 1)
# Enough that one bad shard is a small share, and that the first night has most of the rows.
DAYS_BEFORE = 12
HISTORY = 0.65
# Share of the rows of the class that appears that are there on its first day.
AT_ONCE = 0.7
# Of a shard's rows, those that its first delivery lacks: each tenth.
LACKING = 10
# What an upstream job that changed its unit makes of half of the features.
OTHER_UNIT = 1000.0

# Features, shape (rows, features), float32, and classes, shape (rows,).
Rows = tuple[NDArray[np.float32], NDArray[np.int64]]

NIGHTS = range(1, 15)
LATE, DRIFT, CORRECTION, QUIET, MOVES, KILLED, CORRUPT, REPAIRED, GARBAGE, SOUND = (
    3,
    4,
    6,
    7,
    8,
    9,
    11,
    12,
    13,
    14,
)
REFIT_EVERY_DAYS = 4
REFITS = (1, 5, 9, 13, 14)  # the one of night 13 is refused, so that 14 tries again

EVENTS: Mapping[int, str] = {
    1: "the first night",
    2: "a new shard",
    LATE: "a new shard, and a late one of before the first night",
    DRIFT: "a class appears, another vanishes",
    5: "a new shard; a refit is due",
    CORRECTION: "a new shard, one replaced, one deleted",
    QUIET: "nothing",
    MOVES: "a new shard; two classes merge, one splits",
    KILLED: "a new shard; a refit is due, and is killed halfway",
    10: "a new shard; killed while it labels",
    CORRUPT: "the new shard is truncated",
    REPAIRED: "a new shard, and the truncated one again, whole",
    GARBAGE: "a new shard; half of all features come in another unit, and a refit is due",
    SOUND: "a new shard, and all the others as they were before",
}


def ds_of(day: int) -> str:
    """The logical date of a night; those before the first are at most 0."""
    return (FIRST + datetime.timedelta(days=day - 1)).isoformat()


@dataclass(frozen=True)
class Cast:
    """Which classes of a dataset play which part.

    Attributes:
        stay: Nothing befalls them.
        vanishes: Is there from the first night and gone from ``DRIFT`` on.
        appears: Is there from ``DRIFT`` on.
        merge: Two that become one on ``MOVES``.
        splits: Becomes two on ``MOVES``.
        apart: How far each half moves, in standard deviations of the class along its first
            principal axis.
    """

    stay: tuple[int, ...]
    vanishes: int
    appears: int
    merge: tuple[int, int]
    splits: int
    apart: float

    @property
    def clusters(self) -> int:
        """Classes at any time: what vanishes is as many as appear, what merges as what splits."""
        return len(self.stay) + 4

    @property
    def all(self) -> tuple[int, ...]:
        """Every class that is ever there."""
        return (*self.stay, self.vanishes, self.appears, *self.merge, self.splits)

    def merged(self) -> str:
        """Name of the class that the two become."""
        return "+".join(str(label) for label in self.merge)

    def parts(self) -> tuple[str, str]:
        """Names of the classes that the one becomes."""
        return f"{self.splits}<", f"{self.splits}>"


@dataclass(frozen=True)
class Dataset:
    """Real rows with known classes.

    Attributes:
        name: Name of the dataset.
        load: Gives raw features, shape (rows, features), float32, and the class of each row.
        cast: Which class does what.
        settings: What a model of it needs, beside ``SMALL`` of the simulation.
    """

    name: str
    load: Callable[[], Rows]
    cast: Cast
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def digits() -> Rows:
    """scikit-learn's 1,797 digits of 8 × 8 pixels (Alpaydin & Kaynak 1998), as 16 features."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return as_features(loaded.data, loaded.target, width=16)


def pendigits() -> Rows:
    """10,992 digits as eight points of a pen (Alimoglu & Alpaydin 1996), as 10 features.

    Of a narrow network its last layer: people write a digit in several ways, and before that layer
    each way is a cluster of its own.
    """
    return as_features(*_stored("pendigits.parquet"), width=8, logits=True)


def mnist() -> Rows:
    """70,000 digits of 28 × 28 pixels (LeCun et al. 1998), as 16 features."""
    return as_features(*_stored("mnist.parquet"), width=16)


def _stored(name: str) -> Rows:
    table = pq.read_table(DATA / name, columns=["x", "label"])
    x_N = table["x"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return x_N.reshape(len(table), -1).astype(np.float32), table["label"].to_numpy().astype(int)


def as_features(
    x_NF: NDArray[np.float32], label_N: NDArray[np.int64], *, width: int, logits: bool = False
) -> Rows:
    """Embed rows as an upstream classifier would, and leave out those that it learned from.

    Args:
        x_NF: Pixels, shape (rows, pixels).
        label_N: Classes, shape (rows,).
        width: Width of the classifier's last hidden layer.
        logits: Give what comes after that layer, instead of the layer itself.

    Returns:
        Features of two thirds of the rows, or more: float32, and their classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    learnt = np.random.default_rng(7).permutation(len(x_NF))[: min(len(x_NF) // 3, 10_000)]
    scaled_NF = (x_NF - x_NF[learnt].mean(axis=0)) / x_NF[learnt].std()
    network = MLPClassifier((64, width), activation="tanh", alpha=0.01, max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # features need not be the best
        network.fit(scaled_NF[learnt], label_N[learnt])
    layers = len(network.coefs_)
    hidden = scaled_NF
    for weights, bias in zip(network.coefs_[: layers - 1], network.intercepts_, strict=False):
        hidden = np.tanh(hidden @ weights + bias)
    if logits:
        hidden = hidden @ network.coefs_[-1] + network.intercepts_[-1]
    rest = np.setdiff1d(np.arange(len(x_NF)), learnt)
    return hidden[rest].astype(np.float32), label_N[rest].astype(np.int64)


@dataclass(frozen=True)
class World:
    """A dataset, spread over days.

    A row's key is its number in the dataset; it is in the shard of the day on which it arrived.
    """

    dataset: Dataset

    @cached_property
    def _rows(self) -> Rows:
        return self.dataset.load()

    @cached_property
    def _arrival_N(self) -> NDArray[np.int64]:
        """The day of each row, shape (rows,): 1 − DAYS_BEFORE, …, 14; 99: never."""
        cast, (_, label_N) = self.dataset.cast, self._rows
        random = np.random.default_rng(zlib.crc32(self.dataset.name.encode()))
        before = random.random(len(label_N)) < HISTORY
        day_N = np.where(
            before,
            random.integers(1 - DAYS_BEFORE, 1, len(label_N)),
            random.integers(NIGHTS[0], NIGHTS[-1] + 1, len(label_N)),
        )
        new = label_N == cast.appears
        at_once = random.random(len(label_N)) < AT_ONCE
        later = random.integers(DRIFT, NIGHTS[-1] + 1, len(label_N))
        day_N = np.where(new, np.where(at_once, DRIFT, later), day_N)
        day_N[(day_N == QUIET) & new] = DRIFT
        return np.where(np.isin(label_N, cast.all), day_N, 99)

    def _there_N(self, day: int) -> NDArray[np.bool_]:
        """Which rows are in the table on a day, corrupt ones too."""
        cast, (_, label_N) = self.dataset.cast, self._rows
        arrival_N, key_N = self._arrival_N, np.arange(len(label_N))
        there_N = (arrival_N <= day) & (arrival_N != QUIET)
        if day < LATE:
            there_N &= ~self._late_N
        if day >= DRIFT:
            there_N &= label_N != cast.vanishes
        if day < CORRECTION:
            there_N &= ~((arrival_N == 2) & (key_N % LACKING == 0))
        else:
            there_N &= (arrival_N != -3) | self._late_N
        return there_N

    @property
    def _late_N(self) -> NDArray[np.bool_]:
        """Rows of an early day that are delivered late."""
        return (self._arrival_N == -3) & (np.arange(len(self._arrival_N)) % 2 == 0)

    def _features(self, day: int) -> NDArray[np.float32]:
        """Features of all rows as they are on a day, shape (rows, features)."""
        cast, (x_NF, label_N) = self.dataset.cast, self._rows
        if day < MOVES:
            return x_NF
        x_NF = x_NF.copy()
        one, other = (x_NF[label_N == label].mean(axis=0) for label in cast.merge)
        for label, mean_F in zip(cast.merge, (one, other), strict=True):
            x_NF[label_N == label] += (one + other) / 2 - mean_F
        axis_F, spread = self._axis
        x_NF += np.outer(self._side_N * cast.apart * spread, axis_F).astype(np.float32)
        if day == GARBAGE:
            x_NF[:, : x_NF.shape[1] // 2] *= OTHER_UNIT
        return x_NF

    @cached_property
    def _axis(self) -> tuple[NDArray[np.float32], float]:
        """First principal axis of the class that splits, and its standard deviation along it."""
        x_NF, label_N = self._rows
        rows_BF = x_NF[label_N == self.dataset.cast.splits]
        _, singular, axes = np.linalg.svd(rows_BF - rows_BF.mean(axis=0), full_matrices=False)
        return axes[0], float(singular[0] / np.sqrt(len(rows_BF)))

    @cached_property
    def _side_N(self) -> NDArray[np.int64]:
        """Half of the class that splits that a row is in, −1 or 1; 0 for other classes."""
        x_NF, label_N = self._rows
        mine_N = label_N == self.dataset.cast.splits
        along_N = (x_NF - x_NF[mine_N].mean(axis=0)) @ self._axis[0]
        return np.where(mine_N, np.where(along_N < 0, -1, 1), 0)

    def known(self, day: int) -> dict[int, str]:
        """True class of each row that can be read that night, by key."""
        cast, (_, label_N) = self.dataset.cast, self._rows
        names_N = label_N.astype(str).astype("U8")
        if day >= MOVES:
            names_N[np.isin(label_N, cast.merge)] = cast.merged()
            for side, name in zip((-1, 1), cast.parts(), strict=True):
                names_N[self._side_N == side] = name
        there_N = self._there_N(day)
        if day == CORRUPT:
            there_N &= self._arrival_N != CORRUPT
        return dict(zip(np.flatnonzero(there_N).tolist(), names_N[there_N].tolist(), strict=True))

    def shards(self, day: int) -> dict[str, pa.Table]:
        """The table on a day: its shards by file name."""
        there_N, x_NF = self._there_N(day), self._features(day)
        label_N, shards = self._rows[1], {}
        arrival_N = self._arrival_N
        for arrived in np.unique(arrival_N[there_N]).tolist():
            for late in (False, True):
                rows = np.flatnonzero(there_N & (arrival_N == arrived) & (self._late_N == late))
                if len(rows):
                    name = f"{ds_of(arrived)}{'-late' if late else ''}.parquet"
                    shards[name] = pa.table(
                        {
                            "id": rows,
                            "x": pa.FixedSizeListArray.from_arrays(
                                x_NF[rows].ravel(), x_NF.shape[1]
                            ),
                            "label": label_N[rows].astype(np.int16),
                        }
                    )
        return shards


Change = Literal["new", "replaced", "deleted"]


class Table:
    """The shards on disk: only what changed overnight is written.

    Args:
        world: What is in them.
        folder: Folder of the shards.

    Attributes:
        shards: Those that can be read, by file name.
        packs: What share a unit of work: small shards that were new or changed on one night. Each
            is labelled as a whole, again when one of it changes or goes.
        stale: The packs of tonight that no night before had.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.shards: dict[str, pa.Table] = {}
        self.packs: list[frozenset[str]] = []
        self.stale: list[frozenset[str]] = []
        folder.mkdir(parents=True)

    def become(self, day: int) -> dict[str, Change]:
        """Let the table be that of a day.

        Returns:
            What happened to which file; files that nothing happened to are not touched.
        """
        before, now = self.shards, self.world.shards(day)
        on_disk = {path.name for path in self.folder.iterdir()}
        changes: dict[str, Change] = dict.fromkeys(on_disk - now.keys(), "deleted")
        for name in changes:
            (self.folder / name).unlink()
        for name, shard in now.items():
            if name not in before or not shard.equals(before[name]):
                changes[name] = "replaced" if name in on_disk else "new"
                pq.write_table(shard, self.folder / name)
        if day == CORRUPT:
            path = self.folder / f"{ds_of(day)}.parquet"
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            del now[path.name]
        self.shards = now
        fresh = frozenset(changes.keys() & now.keys())
        packs = [pack.difference(changes) for pack in self.packs] + [fresh]
        known = set(self.packs)
        self.packs = [pack for pack in packs if pack]
        self.stale = [pack for pack in self.packs if pack not in known]
        return changes

    @property
    def changed_rows(self) -> int:
        """Rows of tonight's new and replaced shards, and of those packed with what changed."""
        return sum(len(self.shards[name]) for pack in self.stale for name in pack)


DIGITS = Dataset("digits", digits, Cast((2, 4), 0, 6, (5, 7), 1, apart=1.5))
PENDIGITS = Dataset("pendigits", pendigits, Cast((2, 4), 0, 9, (6, 8), 7, apart=2.0))
MNIST = Dataset("mnist", mnist, Cast((5, 8), 7, 6, (1, 3), 4, apart=2.0))
