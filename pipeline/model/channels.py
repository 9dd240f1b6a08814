"""Rows of typed columns as the network's input channels.

A number is one channel, in standard deviations from its mean; a boolean is one; a mask for missing
values is one more; a timestamp has two for each cycle (hour of the day, day of the week, day of the
year); a category is one-hot.

Every column is a group. The variances of a group's channels add up to the column's weight, and so
does the loss of a constant prediction of it: distances between rows, for k-means, and the
autoencoder's loss are both balanced. See decision 0032.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipeline.model.scaling import Moments, Scaler

ChannelKind = Literal["circle", "number", "boolean", "missing", "category"]
# In the order of the channels in a row.
KINDS: tuple[ChannelKind, ...] = ("circle", "number", "boolean", "missing", "category")

# Cycles of a timestamp, in seconds. The year is the Gregorian calendar's mean, which is off by at
# most a day.
CIRCLES = {"hour": 86_400.0, "weekday": 604_800.0, "season": 31_556_952.0}
# 1970-01-01 was a Thursday; weeks begin on Monday.
_WEEK_BEGINS = 3 * 86_400.0

# Lower limits of variance, diversity and entropy keep columns that hardly vary from being blown up:
# a boolean or category below them differs in fewer than 5 % of the rows.
_LEAST_VARIANCE = 0.05
_LEAST_DIVERSITY = 0.1
_LEAST_ENTROPY = 0.2
# A cycle of which the sample covers only an arc is left out, because it tells nothing but the date:
# this is the variance of four hours of a day, 1.25 days of a week, two months of a year.
_LEAST_ARC = 0.1

OTHER, NULL = "(other)", "(null)"


@dataclass(frozen=True)
class Channel:
    """One input of the network: (value − offset) · factor."""

    feature: int  # position of its column in a raw row; the first component of a vector
    # Meaning of the value: the raw number, a coordinate on a circle, or 0 or 1 for a boolean, for a
    # mask of missing values, and for a value of a category.
    kind: ChannelKind
    # Label among the column's channels: a value of the category, a coordinate; or "".
    label: str = ""
    offset: float = 0.0  # offset, the mean; 0 for a category, whose channels are 0 or positive
    factor: float = 0.0  # factor; 0 where the sample does not vary
    # Weight of its error in the loss: squared error in scaled units for circles and numbers, else
    # cross-entropy in nats, with the same weight for a whole category.
    loss: float = 0.0
    width: int = 1  # number of components of the column, for "missing"
    turns: float = 0.0  # turns of a circle per second
    shift: float = 0.0  # shift on a circle, in turns; 0 gives the cosine and 1/4 the sine
    code: float = 0.0  # code of a category's value; NaN for missing, infinite for all other values
    missing: int = -1  # channel that masks missing values of this one; −1: there is none


@dataclass(frozen=True)
class ColumnSpec:
    """A column and its frequent values in the sample."""

    kind: Literal["number", "vector", "boolean", "timestamp", "category"]
    width: int = 1  # number of its components in a raw row
    weight: float = 1.0  # weight of its group
    masks: bool = False  # whether missing values have a channel of their own
    values: tuple[str, ...] = ()  # values of a category with channels of their own
    codes: tuple[float, ...] = ()  # of these values; see input.columns.category_codes
    rows: tuple[int, ...] = ()  # rows of the sample with each value


def on_circles(seconds_BT: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates of timestamps, shape (rows, timestamps · 6): cosine and sine on each circle."""
    turns = np.array([1 / seconds for seconds in CIRCLES.values()])
    angle_BTC = (seconds_BT[:, :, None] + _WEEK_BEGINS) * turns * (2 * np.pi)
    both = np.stack([np.cos(angle_BTC), np.sin(angle_BTC)], axis=3)
    return both.reshape(len(seconds_BT), seconds_BT.shape[1] * 2 * len(CIRCLES))


class TypedScaler(Scaler):
    """Converts raw rows of typed columns into channels; see the module.

    Args:
        mean_F: Mean of each raw feature, shape (features,), for the record.
        channels: Channels in the order of ``KINDS``; those of a category are contiguous.
    """

    _circle_raw: Tensor
    _circle_offset: Tensor
    _circle_factor: Tensor
    _circle_turns: Tensor
    _circle_shift: Tensor
    _linear_raw: Tensor
    _linear_offset: Tensor
    _linear_factor: Tensor
    _mask_raw: Tensor
    _mask_offset: Tensor
    _mask_factor: Tensor
    _loss: Tensor
    _missing: Tensor

    def __init__(self, mean_F: NDArray[np.float64], channels: Sequence[Channel]) -> None:
        features = len(mean_F)
        super().__init__("standard", mean_F, np.zeros(features), np.ones(features))
        self.channels = tuple(channels)
        of = {kind: [c for c in channels if c.kind == kind] for kind in KINDS}
        sizes = [len(of[kind]) for kind in KINDS]
        self._circles, self._numbers, self._booleans, self._masks, _ = sizes
        self._squared = self._circles + self._numbers
        self._first_category = sum(sizes[:-1])
        linear = of["number"] + of["boolean"]
        for name, chosen in (("circle", of["circle"]), ("linear", linear), ("mask", of["missing"])):
            self._keep(f"{name}_raw", [c.feature for c in chosen], torch.int64)
            self._keep(f"{name}_offset", [c.offset for c in chosen])
            self._keep(f"{name}_factor", [c.factor for c in chosen])
        self._keep("circle_turns", [c.turns for c in of["circle"]])
        self._keep("circle_shift", [c.shift for c in of["circle"]])
        self._wide = [(n, c) for n, c in enumerate(of["missing"]) if c.width > 1]
        plain = channels[: self._first_category]
        self._keep("loss", [c.loss for c in plain], torch.float32)
        # A channel without a mask refers to one beyond the last, which is always 0.
        nothing = self._first_category
        places = [c.missing if c.missing >= 0 else nothing for c in plain]
        self._keep("missing", places, torch.int64)
        self._groups: list[tuple[int, int, int, float, float]] = []
        for number, (start, group) in enumerate(_categories(channels)):
            codes = np.array([c.code for c in group])
            order = np.argsort(codes[:-2], kind="stable")  # the last two are other and null
            self._keep(f"codes_{number}", codes[:-2][order].tolist())
            self._keep(f"places_{number}", order.tolist(), torch.int64)
            first = group[0]
            self._groups.append((start, len(group), first.feature, first.factor, first.loss))

    def _keep(self, name: str, values: Sequence[float], dtype: torch.dtype = torch.float64) -> None:
        self.register_buffer(f"_{name}", torch.tensor(values, dtype=dtype))

    @property
    def width(self) -> int:
        """E, number of channels of a scaled row."""
        return len(self.channels)

    @property
    def categories(self) -> tuple[int, ...]:
        """Number of channels of each category; these are the last ones of a row."""
        return tuple(size for _, size, *_ in self._groups)

    @classmethod
    def fit_columns(cls, columns: Sequence[ColumnSpec], moments: Moments) -> TypedScaler:
        """Fit the channels.

        ``moments`` are those of the sample's raw rows, followed by ``on_circles`` of timestamps.

        Raises:
            ValueError: No column varies.
        """
        widths = [column.width for column in columns]
        firsts = np.cumsum([0, *widths])
        circle = int(firsts[-1])
        groups: list[list[Channel]] = []
        for first, column in zip(firsts[:-1].tolist(), columns, strict=True):
            observed = _Observed.of(moments, slice(first, first + column.width))
            if column.kind == "timestamp":
                coordinates = _Observed.of(moments, slice(circle, circle + 2 * len(CIRCLES)))
                circle += 2 * len(CIRCLES)
                groups.append(_timestamp(first, column, observed, coordinates))
            else:
                fit = {"boolean": _boolean, "category": _category}.get(column.kind, _number)
                groups.append(fit(first, column, observed))
        return cls(moments.mean_F[: firsts[-1]], _together(columns, groups))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Raw rows, shape (batch, features), NaN where missing → (batch, channels), float32."""
        x_BF = x_BF if x_BF.is_floating_point() else x_BF.float()
        out_BE = torch.zeros((len(x_BF), self.width), device=x_BF.device)
        here_BF = torch.isfinite(x_BF)
        zero = x_BF.new_zeros(())
        if self._circles:
            raw = self._circle_raw
            turns = x_BF[:, raw].double().add(_WEEK_BEGINS) * self._circle_turns
            scaled = torch.cos((turns - self._circle_shift) * (2 * math.pi)) - self._circle_offset
            scaled = torch.where(here_BF[:, raw], scaled * self._circle_factor, zero.double())
            out_BE[:, : self._circles] = scaled
        if self._numbers + self._booleans:
            raw = self._linear_raw
            scaled = (x_BF[:, raw] - self._linear_offset) * self._linear_factor
            last = self._squared + self._booleans
            out_BE[:, self._circles : last] = torch.where(here_BF[:, raw], scaled, zero.double())
        if self._masks:
            gone_BM = ~here_BF[:, self._mask_raw]
            for place, channel in self._wide:
                of = slice(channel.feature, channel.feature + channel.width)
                gone_BM[:, place] = ~here_BF[:, of].all(dim=1)
            scaled = (gone_BM.double() - self._mask_offset) * self._mask_factor
            out_BE[:, self._first_category - self._masks : self._first_category] = scaled
        for number, (start, size, feature, factor, _) in enumerate(self._groups):
            place_B = self._place(number, x_BF[:, feature].double(), size)
            place_B = torch.where(here_BF[:, feature], place_B, size - 1)
            out_BE.scatter_(1, (start + place_B)[:, None], factor)
        return out_BE

    def _place(self, number: int, code_B: Tensor, size: int) -> Tensor:
        """Channel of each code in its category; the last but one is for all other values."""
        codes_V, places_V = getattr(self, f"_codes_{number}"), getattr(self, f"_places_{number}")
        if not len(codes_V):
            return torch.full_like(code_B, size - 2, dtype=torch.int64)
        near_B = torch.searchsorted(codes_V, code_B.contiguous()).clamp_(max=len(codes_V) - 1)
        return torch.where(codes_V[near_B] == code_B, places_V[near_B], size - 2)

    def error(self, reconstructed_BE: Tensor, x_BE: Tensor) -> Tensor:
        """Loss of a batch, summed over rows: squared error and cross-entropy, weighted by group.

        ``reconstructed_BE`` is the output of the decoder, scaled values and logits; ``x_BE``,
        channels of ``forward``. Divided by the channels, a constant prediction has 1 a row.
        """
        squared, plain = self._squared, self._first_category
        padded_BE = torch.cat([x_BE[:, :plain], x_BE.new_zeros((len(x_BE), 1))], dim=1)
        # A mask is above 0 where the value is missing: then the reconstruction does not count.
        loss_E = self._loss.to(x_BE.dtype)
        weight_BE = (padded_BE[:, self._missing] <= 0) * loss_E
        apart_BE = reconstructed_BE[:, :squared] - x_BE[:, :squared]
        total = (apart_BE.square() * weight_BE[:, :squared]).sum()
        if plain > squared:
            bits_BE = (x_BE[:, squared:plain] > 0).to(x_BE.dtype)
            logits_BE = reconstructed_BE[:, squared:plain]
            total = total + binary_cross_entropy_with_logits(
                logits_BE, bits_BE, weight_BE[:, squared:], reduction="sum"
            )
        for start, size, _, _, loss in self._groups:
            of = slice(start, start + size)
            if loss:
                value_B = x_BE[:, of].argmax(dim=1)
                missed = cross_entropy(reconstructed_BE[:, of], value_B, reduction="sum")
                total = total + loss * missed
        return total


# ------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class _Observed:
    """Moments of some features in the sample."""

    mean_F: NDArray[np.float64]
    variance_F: NDArray[np.float64]  # variance of the values that are not missing
    missing: float  # share of the rows without a value
    rows: int

    @classmethod
    def of(cls, moments: Moments, some: slice) -> _Observed:
        count_F, missing_F = moments.count_F[some], moments.missing_F[some]
        # Σ (x − mean)² of equal values is rounding error where their mean is inexact.
        varies_F = moments.min_F[some] < moments.max_F[some]
        variance_F = np.where(varies_F, moments.m2_F[some], 0.0) / np.maximum(count_F, 1)
        rows = int(count_F[0] + missing_F[0])
        return cls(moments.mean_F[some], variance_F, float(missing_F.max() / max(1, rows)), rows)


def _shares(
    first: int, column: ColumnSpec, observed: _Observed, *, varies: bool
) -> tuple[float, list[Channel]]:
    """The part of a column's weight for its values, and its mask channel, if it has one.

    Where a share p of a column is missing, the values get 1 − p, their share, and the mask
    4p(1 − p), which is 1 where it says most.
    """
    p = observed.missing
    mask = 4 * p * (1 - p) if column.masks else 0.0
    whole = (1 - p if varies else 0.0) + mask
    if not mask:
        return (column.weight / whole if whole else 0.0), []
    share = column.weight / whole
    loss, factor = share * mask / _entropy([p, 1 - p]), math.sqrt(4 * share)
    width = column.width
    return share, [Channel(first, "missing", offset=p, factor=factor, loss=loss, width=width)]


def _number(first: int, column: ColumnSpec, observed: _Observed) -> list[Channel]:
    variance = float(observed.variance_F.sum())
    share, mask = _shares(first, column, observed, varies=variance > 0)
    factor = math.sqrt(share / variance) if variance > 0 else 0.0
    channels = [
        Channel(first + i, "number", offset=float(mean), factor=factor, loss=1.0)
        for i, mean in enumerate(observed.mean_F)
    ]
    return channels + mask


def _boolean(first: int, column: ColumnSpec, observed: _Observed) -> list[Channel]:
    p = float(observed.mean_F[0])
    share, mask = _shares(first, column, observed, varies=0 < p < 1)
    factor = loss = 0.0
    if 0 < p < 1:
        factor = math.sqrt(share / max(p * (1 - p), _LEAST_VARIANCE))
        loss = share / max(_entropy([p, 1 - p]), _LEAST_ENTROPY)
    return [Channel(first, "boolean", offset=p, factor=factor, loss=loss), *mask]


def _timestamp(
    first: int, column: ColumnSpec, observed: _Observed, on_circles: _Observed
) -> list[Channel]:
    # On a circle with the centre of gravity (c, s): the variance of both coordinates together.
    centres = on_circles.mean_F.reshape(-1, 2)
    variances = [float(1 - np.square(centre).sum()) for centre in centres]
    used = sum(variance >= _LEAST_ARC for variance in variances)
    share, mask = _shares(first, column, observed, varies=used > 0)
    channels = []
    for (name, period), centre, variance in zip(CIRCLES.items(), centres, variances, strict=True):
        factor = math.sqrt(share / used / variance) if variance >= _LEAST_ARC else 0.0
        coordinate = Channel(first, "circle", factor=factor, loss=1.0, turns=1 / period)
        cosine, sine = centre.tolist()
        channels += [
            replace(coordinate, label=f"{name} cosine", offset=cosine, shift=0.0),
            replace(coordinate, label=f"{name} sine", offset=sine, shift=0.25),
        ]
    return channels + mask


def _category(first: int, column: ColumnSpec, observed: _Observed) -> list[Channel]:
    missing = round(observed.missing * observed.rows)
    others = max(0, observed.rows - missing - sum(column.rows))
    p_V = [rows / max(1, observed.rows) for rows in (*column.rows, others, missing)]
    diversity = 1 - sum(p * p for p in p_V)
    factor = loss = 0.0
    if max(p_V) < 1:
        factor = math.sqrt(column.weight / max(diversity, _LEAST_DIVERSITY))
        loss = column.weight / max(_entropy(p_V), _LEAST_ENTROPY)
    labels, codes = (*column.values, OTHER, NULL), (*column.codes, math.inf, math.nan)
    return [
        Channel(first, "category", label=label, factor=factor, loss=loss, code=code)
        for label, code in zip(labels, codes, strict=True)
    ]


def _entropy(shares: Sequence[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in shares if p > 0)


def _together(columns: Sequence[ColumnSpec], groups: Sequence[list[Channel]]) -> list[Channel]:
    """All channels of a row, by kind, with their final factors and losses."""
    weight = sum(
        column.weight
        for column, group in zip(columns, groups, strict=True)
        if any(channel.factor for channel in group)
    )
    if not weight:
        raise ValueError("no feature column varies")
    numbered = [(g, c) for g, group in enumerate(groups) for c in group]
    numbered.sort(key=lambda pair: KINDS.index(pair[1].kind))  # a stable sort
    masks = {g: place for place, (g, c) in enumerate(numbered) if c.kind == "missing"}
    # The mean square per channel is about 1, as for plain numbers, which suits initial weights.
    scale = math.sqrt(len(numbered) / weight)
    loss = len(numbered) / weight  # so that a constant prediction has 1 per channel
    return [
        replace(
            channel,
            factor=channel.factor * scale,
            loss=channel.loss * loss / (scale**2 if channel.kind in ("circle", "number") else 1),
            missing=masks.get(group, -1) if channel.kind != "missing" else -1,
        )
        for group, channel in numbered
    ]


def _categories(channels: Sequence[Channel]) -> list[tuple[int, list[Channel]]]:
    """The channels of each category, with the position of the first."""
    ones = [(place, c) for place, c in enumerate(channels) if c.kind == "category"]
    groups = [list(group) for _, group in groupby(ones, key=lambda one: one[1].feature)]
    return [(group[0][0], [channel for _, channel in group]) for group in groups]
