"""The benchmark ends in time on any processor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from . import throughput


class Clock:
    """A clock that only the measured work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def product(self, flops: float) -> Callable[[Tensor, Tensor], Tensor]:
        """A product on a processor of this speed, without the work."""

        def multiply(a: Tensor, b: Tensor) -> Tensor:
            self.now += 2 * len(a) ** 3 / flops
            return a

        return multiply


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(throughput, "time", found)
    return found


@pytest.mark.parametrize(
    ("flops", "side"), [(0.14e9, 256), (5e9, 1024), (400e9, 4096)], ids=["emulated", "slow", "fast"]
)
def test_a_product_of_any_speed_is_measured_in_seconds(
    clock: Clock, flops: float, side: int
) -> None:
    rate, found = throughput.square_product(torch.float32, clock.product(flops))
    assert rate == pytest.approx(flops)
    assert found == side
    assert clock.now < 2 * throughput.PRODUCT_S


@pytest.mark.parametrize(("seconds", "measured"), [(1, 5), (40, 3), (10_000, 1)])
def test_repeats_end_when_their_time_is_over(clock: Clock, seconds: float, measured: int) -> None:
    def work() -> float:
        clock.now += seconds
        return seconds

    assert len(throughput.within(throughput.RATE_S, 5, work)) == measured


def test_emulated_bfloat16_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def product(dtype: torch.dtype) -> tuple[float, int]:
        asked.append(dtype)
        return 1e9, 256

    monkeypatch.setattr(throughput, "square_product", product)
    monkeypatch.setattr(throughput, "BF16", False)
    assert "bfloat16" not in throughput._where()
    assert set(asked) == {torch.float32}
    monkeypatch.setattr(throughput, "BF16", True)
    assert "in bfloat16" in throughput._where()
