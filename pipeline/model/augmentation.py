"""Augmentation: changed versions of a row that belong to the same cluster.

Training on them teaches the encoder what does not matter (Guo, Zhu, Liu & Yin 2018, "Deep Embedded
Clustering with Data Augmentation"). It works on raw rows, before scaling: a pixel that moves must
keep its value, not its distance from another pixel's mean.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from pipeline.errors import ConfigError

if TYPE_CHECKING:  # torch and numpy are all that this package needs to run
    from pipeline.config import Augment

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""(raw rows, shape (batch, features), randomness) → raw rows of the same shape, float32."""


class ImageAugmentation:
    """Random shift, rotation and zoom of images in row-major order, bilinear, edges repeated.

    Args:
        shape: (height, width) or (height, width, channels) in pixels; their product is F.
        shift: Maximum shift, as a share of height and width.
        rotation_degrees: Maximum rotation in either direction.
        zoom: Maximum change of size: 0.1 is from 1/1.1 to 1.1.
    """

    def __init__(
        self, shape: Sequence[int], *, shift: float, rotation_degrees: float, zoom: float
    ) -> None:
        self.height, self.width, self.channels = (*shape, 1)[:3]
        self.shift, self.rotation, self.zoom = shift, math.radians(rotation_degrees), zoom

    def __call__(self, x_BF: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a transformation for each row and apply it."""
        rows = len(x_BF)
        if not rows:
            return x_BF.float()
        draws = torch.rand((4, rows), generator=generator).mul_(2).sub_(1).to(x_BF.device)
        angle_B, zoom_B = draws[0] * self.rotation, draws[1] * math.log1p(self.zoom)
        cos_B, sin_B = angle_B.cos() * zoom_B.exp(), angle_B.sin() * zoom_B.exp()
        # affine_grid's axes run from -1 to 1, so a whole width is 2.
        shift_B2 = 2 * self.shift * draws[2:].T
        theta = torch.stack([cos_B, -sin_B, shift_B2[:, 0], sin_B, cos_B, shift_B2[:, 1]], dim=1)
        images = x_BF.float().view(rows, self.height, self.width, self.channels)
        images = images.permute(0, 3, 1, 2)
        grid = affine_grid(theta.view(rows, 2, 3), list(images.shape), align_corners=False)
        moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
        return moved.permute(0, 2, 3, 1).reshape(rows, -1)


def augmentation_of(settings: Augment, image_shape: Sequence[int] | None) -> Augmentation | None:
    """The augmentation that the settings define; None without a function or an image shape.

    Raises:
        ConfigError: ``augment.function`` cannot be imported.
    """
    if settings.function:
        module, _, name = settings.function.partition(":")
        try:
            function: Augmentation = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"augment.function={settings.function!r} cannot be imported: {error}; expected "
                "module:function that every worker has installed"
            ) from None
        return function
    if image_shape is None:
        return None
    return ImageAugmentation(
        image_shape,
        shift=settings.shift,
        rotation_degrees=settings.rotation_degrees,
        zoom=settings.zoom,
    )


def hide(x_BF: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Masking noise (Vincent et al. 2010): set inputs to 0 and scale up the others in exchange.

    ``share`` of the inputs of scaled rows, in [0, 1), are hidden.
    """
    keep = 1 - share
    if keep == 1:
        return x_BF
    # Four 16-bit numbers from each draw: drawing is serial, and a draw for each input would take as
    # long as a matrix product.
    draws = torch.empty(-(-x_BF.numel() // 4), dtype=torch.int64)
    draws.random_(-(2**63), None, generator=generator)
    numbers_BF = draws.view(torch.int16)[: x_BF.numel()].view(x_BF.shape)
    seen_BF = numbers_BF >= round(share * 2**16) - 2**15
    return x_BF * seen_BF.to(x_BF.device) / keep


def randomness(*numbers: int) -> torch.Generator:
    """A generator for one step: a resumed training draws the same as an uninterrupted one."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)
