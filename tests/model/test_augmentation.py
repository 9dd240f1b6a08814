"""Augmented rows mean what the row means: moved images, and nothing else."""

import math

import pytest
import torch

from pipeline.config import Augment
from pipeline.errors import ConfigError
from pipeline.model.augmentation import ImageAugmentation, augmentation_of, hide, randomness


def images(rows: int = 6, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.rand((rows, height * width), generator=torch.Generator().manual_seed(1))


def moved(x_BF: torch.Tensor, shape: tuple[int, ...], **sizes: float) -> torch.Tensor:
    settings = {"shift": 0.0, "rotation_degrees": 0.0, "zoom": 0.0, **sizes}
    return ImageAugmentation(shape, **settings)(x_BF, randomness(3))


def test_nothing_to_vary_leaves_images_as_they_are() -> None:
    torch.testing.assert_close(moved(images(), (9, 7)), images())


def test_a_quarter_turn_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BF = images(2, 8, 8)
    monkeypatch.setattr("torch.rand", lambda shape, **_: torch.ones(shape))
    turned = moved(x_BF, (8, 8), rotation_degrees=90.0)
    torch.testing.assert_close(turned.view(2, 8, 8), x_BF.view(2, 8, 8).rot90(1, dims=(1, 2)))


def test_a_shift_moves_by_that_share_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BF = images(1, 10, 10)
    monkeypatch.setattr("torch.rand", lambda shape, **_: torch.ones(shape))
    shifted = moved(x_BF, (10, 10), shift=0.2).view(10, 10)
    torch.testing.assert_close(shifted[:8, :8], x_BF.view(10, 10)[2:, 2:])


def test_channels_move_together() -> None:
    gray = images(3, 6, 6)
    colour = torch.stack([gray, 2 * gray, 3 * gray], dim=2).reshape(3, -1)
    result = moved(colour, (6, 6, 3), shift=0.1, rotation_degrees=10, zoom=0.1).view(3, 36, 3)
    expected = moved(gray, (6, 6), shift=0.1, rotation_degrees=10, zoom=0.1)
    for channel in range(3):
        torch.testing.assert_close(result[:, :, channel], (channel + 1) * expected)


def test_bytes_in_floats_out_and_each_row_differently() -> None:
    row = (images(1) * 255).to(torch.uint8)
    result = moved(row.repeat(5, 1), (9, 7), shift=0.1, rotation_degrees=10, zoom=0.1)
    assert result.dtype == torch.float32
    assert len(result.unique(dim=0)) == 5
    assert result.min() >= row.min()
    assert result.max() <= row.max()


def test_same_randomness_same_images_and_none_of_none() -> None:
    sizes = {"shift": 0.1, "rotation_degrees": 10.0, "zoom": 0.1}
    torch.testing.assert_close(moved(images(), (9, 7), **sizes), moved(images(), (9, 7), **sizes))
    assert moved(images(0), (9, 7), **sizes).shape == (0, 63)


def test_hidden_share_and_mean_are_kept() -> None:
    hidden = hide(torch.ones(200, 100), 0.25, randomness(1))
    assert (hidden == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert hidden.mean().item() == pytest.approx(1, abs=0.02)
    assert hidden.unique().tolist() == pytest.approx([0, 1 / 0.75])
    x_BF = images()
    assert hide(x_BF, 0.0, randomness(1)) is x_BF


def test_every_step_draws_anew() -> None:
    draws = {torch.rand(1, generator=randomness(*n)).item() for n in [(0, 0), (0, 1), (1, 0), (2,)]}
    assert len(draws) == 4


def test_which_augmentation() -> None:
    assert augmentation_of(Augment(), None) is None
    image = augmentation_of(Augment(rotation_degrees=5), [9, 7])
    assert isinstance(image, ImageAugmentation)
    assert image.rotation == pytest.approx(math.radians(5))
    own = augmentation_of(Augment(function="math:floor"), None)
    assert own is not None
    assert own.__name__ == "floor"


@pytest.mark.parametrize("function", ["no.such:thing", "math:no_such_function"])
def test_a_function_that_is_not_there(function: str) -> None:
    with pytest.raises(ConfigError, match=r"augment.function=.* cannot be imported"):
        augmentation_of(Augment(function=function), None)
