"""Channels of typed columns, worked out by hand, and the loss that balances them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo import run_workers
from torch import Tensor

from pipeline.config import Pretrain
from pipeline.model.augmentation import hide, randomness
from pipeline.model.autoencoder import Autoencoder, CategoryEmbedding, embedded_width
from pipeline.model.channels import NULL, OTHER, ColumnSpec, TypedScaler, on_circles
from pipeline.model.pretraining import Pretraining
from pipeline.model.scaling import Moments, Scaler
from pipeline.model.workers import share_of

NAN = math.nan
DAY = 86_400.0
RED, BLUE = 3e15, 7.0
COLOR = ColumnSpec("category", values=("red", "blue"), codes=(RED, BLUE), rows=(5, 3))


def fitted(columns: list[ColumnSpec], rows: Any) -> tuple[TypedScaler, Tensor]:
    """The scaler of some raw rows, and those rows."""
    x = np.array(rows, dtype=np.float64)
    firsts = np.cumsum([0, *(column.width for column in columns)])
    days = [f for f, c in zip(firsts[:-1], columns, strict=True) if c.kind == "timestamp"]
    moments = Moments.of(np.hstack([x, on_circles(x[:, days])]) if days else x)
    return TypedScaler.fit_columns(columns, moments), torch.from_numpy(x)


def named(scaler: TypedScaler) -> list[tuple[int, str, str]]:
    return [(c.feature, c.kind, c.label) for c in scaler.channels]


def group_of(scaler: TypedScaler, feature: int, width: int = 1) -> list[int]:
    """Places of the channels of a column."""
    return [
        place for place, c in enumerate(scaler.channels) if feature <= c.feature < feature + width
    ]


def a_mixed_table(rows: int = 400) -> tuple[list[ColumnSpec], np.ndarray]:
    random = np.random.default_rng(0)
    codes = np.array([11.0, 12.0, 13.0, NAN])
    color = codes[random.choice(4, rows, p=[0.5, 0.3, 0.15, 0.05])]
    x = np.column_stack(
        [
            np.where(random.random(rows) < 0.3, NAN, random.normal(50, 9, rows)),
            random.choice([0.0, 1.0, NAN], rows, p=[0.6, 0.3, 0.1]),
            color,
            random.uniform(0, 4e8, rows),
            random.normal(size=(rows, 3)) * [1, 5, 0.1],
            random.normal(-3, 2, rows),
        ]
    )
    columns = [
        ColumnSpec("number", masks=True),
        ColumnSpec("boolean", masks=True),
        ColumnSpec(
            "category",
            values=("a", "b"),
            codes=(11.0, 12.0),
            rows=(int((color == 11).sum()), int((color == 12).sum())),
        ),
        ColumnSpec("timestamp", masks=True),
        ColumnSpec("vector", width=3, masks=True),
        ColumnSpec("number"),
    ]
    return columns, x


# ----------------------------------------------------------------------------- values to channels


def test_a_number_and_whether_it_is_missing() -> None:
    scaler, x = fitted([ColumnSpec("number", masks=True)], [[1.0], [3.0], [NAN], [NAN]])
    assert named(scaler) == [(0, "number", ""), (0, "missing", "")]
    out = scaler(x)
    # Half is missing: the mask says most then, 4p(1 - p) = 1, and the values count half.
    values, masks = out.T.tolist()
    assert values == pytest.approx([-values[1], values[1], 0, 0], rel=1e-6)
    assert masks == pytest.approx([-masks[2], -masks[2], masks[2], masks[2]], rel=1e-6)
    assert np.var(values) / np.var(masks) == pytest.approx(0.5)
    assert np.var(values) + np.var(masks) == pytest.approx(2)  # as wide as two plain numbers


def test_plain_numbers_are_scaled_as_without_types() -> None:
    x = np.random.default_rng(0).normal(5, 3, size=(50, 4))
    scaler, rows = fitted([ColumnSpec("number")] * 4, x)
    plain = Scaler.fit("standard", Moments.of(x), [1] * 4)
    torch.testing.assert_close(scaler(rows), plain(rows))
    guess = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32))
    torch.testing.assert_close(scaler.error(guess, scaler(rows)), plain.error(guess, plain(rows)))


def test_values_of_a_category_and_the_two_buckets() -> None:
    rows = [[RED]] * 5 + [[BLUE]] * 3 + [[8.0], [NAN]]
    scaler, x = fitted([COLOR], rows)
    assert [label for _, _, label in named(scaler)] == ["red", "blue", OTHER, NULL]
    out = scaler(torch.tensor([[BLUE], [RED], [99.0], [NAN], [math.inf]], dtype=torch.float64))
    assert (out > 0).int().tolist() == [
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
    ]
    assert scaler(x).var(dim=0, correction=0).sum() == pytest.approx(4, rel=1e-6)
    assert scaler.categories == (4,)


def test_a_category_in_float32() -> None:
    column = ColumnSpec("category", values=("3", "-1"), codes=(3.0, -1.0), rows=(2, 1))
    scaler, x = fitted([column], [[3.0], [-1.0], [3.0]])
    assert scaler(x.float()).argmax(dim=1).tolist() == [0, 1, 0]


def test_a_category_without_a_frequent_value() -> None:
    scaler, x = fitted([ColumnSpec("category")], [[1.0], [2.0], [NAN]])
    assert scaler(x).argmax(dim=1).tolist() == [0, 0, 1]


def test_a_boolean_and_its_nulls() -> None:
    scaler, x = fitted([ColumnSpec("boolean", masks=True)], [[1.0], [0.0], [0.0], [NAN]])
    out = scaler(x)
    assert (out[:, 0] > 0).tolist() == [True, False, False, False]
    assert out[3, 0] == 0
    assert (out[:, 1] > 0).tolist() == [False, False, False, True]


def test_timestamps_go_round() -> None:
    seconds = [[hour * 3600.0] for hour in range(24)]
    scaler, _ = fitted([ColumnSpec("timestamp")], seconds)
    morning, next_morning, evening = scaler(
        torch.tensor([[8 * 3600.0], [DAY * 365 + 8 * 3600], [20 * 3600.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(morning, next_morning, atol=1e-4, rtol=0)
    torch.testing.assert_close(morning[:2], -evening[:2], atol=1e-4, rtol=0)
    # A day tells nothing of weekdays or seasons: those circles are left out, and not blown up.
    assert [c.factor > 0 for c in scaler.channels] == [True, True, False, False, False, False]


def test_dates_have_no_hour() -> None:
    days = [[day * DAY] for day in range(730)]
    scaler, x = fitted([ColumnSpec("timestamp")], days)
    assert [c.factor > 0 for c in scaler.channels] == [False, False, True, True, True, True]
    assert torch.isfinite(scaler(x)).all()


def test_a_vector_without_a_value_is_missing_as_a_whole() -> None:
    rows = [[1.0, 2.0], [3.0, 5.0], [NAN, NAN], [2.0, NAN]]
    scaler, x = fitted([ColumnSpec("vector", width=2, masks=True)], rows)
    out = scaler(x)
    assert (out[:, 2] > 0).tolist() == [False, False, True, True]
    assert out[2, :2].tolist() == [0, 0]
    spread = torch.tensor([2.0, 3.0]) / 2  # one factor, as a vector has one unit
    apart = out[1, :2] - out[0, :2]
    torch.testing.assert_close(apart, spread / spread[0] * apart[0])


def test_a_missing_value_of_a_column_that_never_missed_any() -> None:
    columns = [ColumnSpec("number", masks=True), replace(COLOR, rows=(1, 1))]
    scaler, _ = fitted(columns, [[1.0, RED], [3.0, BLUE]])
    out = scaler(torch.tensor([[NAN, RED], [2.0, RED]], dtype=torch.float64))
    torch.testing.assert_close(out[0], out[1])


def test_a_column_that_is_nearly_constant_is_not_blown_up() -> None:
    rows = [[0.0, float(i % 7)] for i in range(999)] + [[1.0, 3.0]]
    scaler, x = fitted([ColumnSpec("boolean"), ColumnSpec("number")], rows)
    rare, number = scaler(x).abs().amax(dim=0).tolist()
    assert rare < 5
    assert number > 1


# ------------------------------------------------------------------------------------- the balance


@pytest.mark.parametrize("weight", [1.0, 0.25, 4.0])
def test_every_column_is_as_wide_as_its_weight(weight: float) -> None:
    columns, x = a_mixed_table()
    columns[2] = replace(columns[2], weight=weight)
    scaler, rows = fitted(columns, x)
    variance_E = scaler(rows).double().var(dim=0, correction=0)
    first, widths = 0, []
    for column in columns:
        widths.append(float(variance_E[group_of(scaler, first, column.width)].sum()))
        first += column.width
    total = 5 + weight
    expected = [scaler.width * column.weight / total for column in columns]
    assert widths == pytest.approx(expected, rel=1e-4)


def test_a_constant_prediction_costs_one_a_channel_and_each_column_its_weight() -> None:
    columns, x = a_mixed_table()
    columns[0] = replace(columns[0], weight=2.0)
    scaler, rows = fitted(columns, x)
    scaled = scaler(rows).double()
    best = constant_prediction(scaler, scaled)
    assert float(scaler.error(best, scaled)) / len(x) == pytest.approx(scaler.width, rel=1e-3)
    # Where all is reconstructed but one column, the loss is that of this column.
    perfect = perfect_prediction(scaler, scaled)
    assert float(scaler.error(perfect, scaled)) / len(x) < 1e-3
    first = 0
    for column in columns:
        mixture = perfect.clone()
        of = group_of(scaler, first, column.width)
        mixture[:, of] = best[:, of]
        share = float(scaler.error(mixture, scaled)) / len(x) / scaler.width
        assert share == pytest.approx(column.weight / 7, rel=2e-3), column
        first += column.width


def constant_prediction(scaler: TypedScaler, scaled: Tensor) -> Tensor:
    """What an autoencoder says that knows nothing of a row: means, and logits of the shares."""
    out = torch.zeros_like(scaled)
    for place, channel in enumerate(scaler.channels):
        there = torch.ones(len(scaled), dtype=torch.bool)
        if channel.missing >= 0:
            there = scaled[:, channel.missing] <= 0
        if channel.kind in ("circle", "number"):
            out[:, place] = scaled[there, place].mean()
        else:
            share = (scaled[there, place] > 0).double().mean()
            odds = share / (1 - share) if channel.kind != "category" else share
            out[:, place] = torch.log(odds.clamp_min(1e-12))
    return out


def perfect_prediction(scaler: TypedScaler, scaled: Tensor) -> Tensor:
    kinds = [channel.kind in ("circle", "number") for channel in scaler.channels]
    return torch.where(torch.tensor(kinds), scaled, 40 * (scaled > 0) - 20.0)


def test_what_is_missing_is_not_held_against_the_reconstruction() -> None:
    scaler, x = fitted([ColumnSpec("number", masks=True)], [[1.0], [3.0], [NAN]])
    scaled = scaler(x)
    said = scaled.clone()
    said[:, 1] = torch.tensor([-30.0, -30, 30])
    said[2, 0] = 1e3
    assert scaler.error(said, scaled) < 1e-3
    said[1, 0] = 1e3
    assert scaler.error(said, scaled) > 1e3


def test_the_loss_of_a_batch_is_that_of_its_parts() -> None:
    columns, x = a_mixed_table()
    scaler, rows = fitted(columns, x)
    scaled = scaler(rows)
    said = torch.from_numpy(np.random.default_rng(2).normal(size=scaled.shape)).float()
    parts = [scaler.error(said[some], scaled[some]) for some in (slice(0, 7), slice(7, None))]
    torch.testing.assert_close(scaler.error(said, scaled), sum(parts))
    assert scaler.error(said[:0], scaled[:0]) == 0


def test_gradients_are_those_of_differences() -> None:
    columns, x = a_mixed_table(6)
    scaler, rows = fitted(columns, x)
    scaled = scaler(rows).double()
    said = torch.from_numpy(np.random.default_rng(2).normal(size=scaled.shape)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: scaler.error(y, scaled), (said,))


# ------------------------------------------------------------------------------------ the network


def test_a_value_that_nobody_saw_adds_nothing() -> None:
    embedding = CategoryEmbedding(6, (4,))
    x = torch.eye(6)[2:]
    out = embedding(x)
    assert out.shape == (4, 2 + embedded_width(4))
    assert (out[:2].abs().sum(dim=1) > 0).all()
    assert (out[2:] == 0).all()


def test_noise_hides_a_whole_category() -> None:
    scaler, _ = fitted([replace(COLOR, rows=(2, 1))], [[RED], [BLUE], [RED]])
    x = scaler(torch.full((1000, 1), RED, dtype=torch.float64))
    hidden = hide(x, 0.3, randomness(0))
    assert ((hidden > 0).sum(dim=1) <= 1).all()
    assert 200 < int((hidden == 0).all(dim=1).sum()) < 400


@dataclass
class MemoryRows:
    """Rows in memory; each worker takes its part of every global batch."""

    x: Tensor
    rank: int = 0
    size: int = 1

    @property
    def total_rows(self) -> int:
        return len(self.x)

    @property
    def features(self) -> int:
        return self.x.shape[1]

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        order = np.random.default_rng([3, pass_number]).permutation(len(self.x))
        for start in range(0, len(order), batch_rows * self.size):
            begin = start + self.rank * batch_rows
            if len(chosen := order[begin : begin + batch_rows]):
                yield self.x[chosen]


def trained(rank: int = 0, size: int = 1, passes: int = 3) -> tuple[list[float], dict[str, Tensor]]:
    columns, x = a_mixed_table(42)
    scaler, rows = fitted(columns, x)
    autoencoder = Autoencoder(
        scaler.width, hidden=(16,), embedding=4, seed=1, categories=scaler.categories
    )
    settings = Pretrain(passes=passes, batch_rows=8, min_updates=0, noise=0.0)
    training = Pretraining(autoencoder, scaler, settings, seed=5)
    assert share_of(8, rank, size) == 8 // size
    losses = [done.loss for done in training.run(MemoryRows(rows, rank, size))]
    return losses, {n: t.clone() for n, t in autoencoder.state_dict().items()}


def _on_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(trained(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_learn_typed_rows_as_one_does(tmp_path: Path) -> None:
    run_workers(_on_worker, tmp_path, 2)
    losses, weights = trained()
    for rank in range(2):
        others, theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert others == pytest.approx(losses, rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_training_learns_every_kind_of_channel() -> None:
    losses, _ = trained(passes=200)
    assert losses[0] == pytest.approx(1, abs=0.25)  # as a constant prediction
    assert losses[-1] < 0.6
