"""What the linear head reads: one vector an image, pooled from the feature maps.

`average` is the founding study's: the spatial mean of block 5. `wide` also looks at the frozen prefix's last maps, and
at maxima beside means, so that a head in closed form (docs/analytic.md) is good without any training of the tail.

Each of `wide`'s four parts is divided by its own root mean square over channels, image by image. That needs no
statistics of any data, so all sites do the same and agree without talking; it makes the parts weigh the same whatever
weights the network has; and it bounds every feature, which exact sums and secure aggregation need.

Shape legend: N batch, C D channels, h w maps of the prefix, u v maps of block 5, F pooled values, R random features,
J features that the head reads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fl.random import derive_seed

_SMALLEST_RMS = 1e-6
"""Maps below this are as good as dead; dividing by less would blow up rounding errors."""


class AveragePooling(nn.Module):
    """The spatial mean of block 5's output."""

    def __init__(self, last_channels: int) -> None:
        super().__init__()
        self.num_features = last_channels

    def forward(self, prefix_NChw: Tensor, last_NDuv: Tensor) -> Tensor:
        """Return features_NJ in the maps' own dtype; the prefix's maps are not looked at."""
        return last_NDuv.mean(dim=(2, 3))


class WidePooling(nn.Module):
    """Mean and maximum of the prefix's output and of block 5's, each part at unit root mean square.

    prefix_NChw is what the frozen prefix returns and the feature store keeps: the ReLU after `frozen_through`, or the
    pool after it where that is a block's last convolution. last_NDuv is the tail's output, after block 5's pool.

    random_features: number R of fixed features relu(S x) beside the F pooled values x, 0 for none. S is [R, F] of
    +-1/sqrt(F), drawn by address from the two sizes alone, so it is part of the architecture: never trained, sent or
    stored (random features: Rahimi & Recht 2008, "Weighted Sums of Random Kitchen Sinks"). It has no bias, so that a
    head on top stays linear in the pooled values piece by piece and its scores can be dealt out to places in the image.
    """

    def __init__(self, prefix_channels: int, last_channels: int, random_features: int) -> None:
        super().__init__()
        num_pooled = 2 * (prefix_channels + last_channels)
        self.num_features = num_pooled + random_features
        self.random_RF: Tensor | None
        self.register_buffer(
            "random_RF", random_signs(random_features, num_pooled) if random_features else None, persistent=False
        )
        self.largest_feature = math.sqrt(num_pooled)
        """No feature of any image exceeds this: x has norm sqrt(F), and each row of S has norm 1."""

    def forward(self, prefix_NChw: Tensor, last_NDuv: Tensor) -> Tensor:
        """Return features_NJ float32, >= 0."""
        with torch.autocast(prefix_NChw.device.type, enabled=False):
            parts = self.parts(prefix_NChw.float(), last_NDuv.float())
            return self.combine(parts, self.scales(parts))

    def parts(self, prefix_NChw: Tensor, last_NDuv: Tensor) -> list[Tensor]:
        """Return mean and maximum of the prefix's output, [N, C] each, then of block 5's, [N, D] each."""
        return [part for maps in (prefix_NChw, last_NDuv) for part in (maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3)))]

    def scales(self, parts: list[Tensor]) -> list[Tensor]:
        """Return the factors [N, 1] that bring each part of each image to unit root mean square."""
        return [part.square().mean(dim=1, keepdim=True).sqrt().clamp(min=_SMALLEST_RMS).reciprocal() for part in parts]

    def combine(self, parts: list[Tensor], scales: list[Tensor]) -> Tensor:
        """Return features_NJ of parts under given factors; linear in the parts but for the random features' ReLU."""
        pooled_NF = torch.cat([part * scale for part, scale in zip(parts, scales, strict=True)], dim=1)
        if self.random_RF is None:
            return pooled_NF
        return torch.cat([pooled_NF, torch.relu(pooled_NF @ self.random_RF.T)], dim=1)


def random_signs(num_rows: int, num_columns: int) -> Tensor:
    """Return [rows, columns] float32 of +-1/sqrt(columns), the same for the same sizes on every machine.

    Made of the generator's raw bits, which NumPy keeps stable between releases, as it does not its distributions.
    """
    bits = np.random.PCG64(derive_seed(0, "random features", num_rows, num_columns))
    raw = bits.random_raw(-(-num_rows * num_columns // 64)).astype("<u8").view(np.uint8)
    ones = np.unpackbits(raw, count=num_rows * num_columns).astype(np.float32)
    return torch.from_numpy((ones * 2 - 1).reshape(num_rows, num_columns) / np.float32(math.sqrt(num_columns)))
