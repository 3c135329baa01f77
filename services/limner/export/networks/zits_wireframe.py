"""ZITS' wireframe network: two hourglasses that see straight lines and where they meet.

Dong et al., Incremental Transformer Structure Enhanced Image Inpainting with Masking Positional Encoding, CVPR 2022,
section 3.1 (LSM-HAWP). The network is that of Xue et al., Holistically-Attracted Wireframe Parsing, CVPR 2020, on the
hourglasses of Newell et al., 2016; parameters bear the published names.

What becomes of its maps depends on what is in them, so it is numpy's work: `limner.inpaint.wireframe`. Knows nothing of
checkpoints and of files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 512
"""Of the pictures; maps have a quarter of it."""
_FEATURES = 128  # of a point, to judge lines by
_SAMPLES = 8  # points of a line that its score is made of
_WIDTH = 256
_DEPTH = 4  # halvings in an hourglass
_HEADS = (3, 1, 1, 2, 2)  # channels: a line's angles, its distance, the error of that; junction or not, its offset
_MEAN = (109.730, 103.832, 98.681)
_DEVIATION = (22.275, 22.124, 23.229)
_GREY = 127.5  # what a hole is filled with


class Wireframe(nn.Module):
    """Wireframe()(picture) → (n, 9, h/4, w/4) raw maps and (n, 128, h/4, w/4) features, float32.

    The picture is (n, 3, h, w) float32 RGB, normalised, of multiples of 64. `fc2` makes a line's score of the features
    along it.
    """

    tspan: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Hourglasses()
        self.fc1 = nn.Conv2d(_WIDTH, _FEATURES, 1)
        self.fc2 = nn.Sequential(
            nn.Linear(_FEATURES * _SAMPLES, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1)
        )
        # Published with the weights: where on a line its features are taken. Used where the lines are.
        self.register_buffer("tspan", torch.linspace(0, 1, 32)[None, None])

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        maps, features = self.backbone(picture)
        return maps, self.fc1(features)


class Hourglasses(nn.Module):
    """Two hourglasses, the second of which sees what the first one found."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Residual(64, 128))
        self.layer2 = nn.Sequential(Residual(128, _WIDTH))
        self.layer3 = _residual()
        self.hg = nn.ModuleList(Hourglass() for _ in range(2))
        self.res = nn.ModuleList(_residual() for _ in range(2))
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 1), nn.BatchNorm2d(_WIDTH), nn.ReLU()) for _ in range(2)
        )
        self.score = nn.ModuleList(Heads() for _ in range(2))
        self.fc_ = nn.ModuleList([nn.Conv2d(_WIDTH, _WIDTH, 1)])
        self.score_ = nn.ModuleList([nn.Conv2d(sum(_HEADS), _WIDTH, 1)])

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return the second hourglass's maps and features."""
        seen = self.layer1(functional.relu(self.bn1(self.conv1(picture))))
        seen = self.layer3(self.layer2(functional.max_pool2d(seen, 2)))
        first = self._features(0, seen)
        seen = seen + self.fc_[0](first) + self.score_[0](self.score[0](first))
        second = self._features(1, seen)
        return self.score[1](second), second

    def _features(self, index: int, seen: Tensor) -> Tensor:
        features: Tensor = self.fc[index](self.res[index](self.hg[index](seen)))
        return features


class Hourglass(nn.Module):
    """Residuals at five sizes, each half of the last; what is seen at the smaller ones is added to the larger."""

    def __init__(self) -> None:
        super().__init__()
        # From the smallest size to the largest: beside, before and after what is smaller; the smallest has no smaller
        # one inside, but a fourth residual.
        self.hg = nn.ModuleList(
            nn.ModuleList(_residual() for _ in range(4 if level == 0 else 3)) for level in range(_DEPTH)
        )

    def forward(self, seen: Tensor) -> Tensor:
        return self._level(_DEPTH - 1, seen)

    def _level(self, level: int, seen: Tensor) -> Tensor:
        beside, before, after, *middle = self.hg[level].children()
        smaller = before(functional.max_pool2d(seen, 2))
        smaller = middle[0](smaller) if middle else self._level(level - 1, smaller)
        result: Tensor = beside(seen) + functional.interpolate(after(smaller), scale_factor=2)
        return result


class Residual(nn.Module):
    """Three convolutions, each after its norm, added to what goes in (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        width = outputs // 2
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1)
        self.downsample = nn.Sequential() if inputs == outputs else nn.Sequential(nn.Conv2d(inputs, outputs, 1))

    def forward(self, seen: Tensor) -> Tensor:
        found = self.conv1(functional.relu(self.bn1(seen)))
        found = self.conv2(functional.relu(self.bn2(found)))
        found = self.conv3(functional.relu(self.bn3(found)))
        result: Tensor = found + self.downsample(seen)
        return result


def _residual() -> nn.Sequential:
    return nn.Sequential(Residual(_WIDTH, _WIDTH))


class Heads(nn.Module):
    """What each map is made with, side by side."""

    def __init__(self) -> None:
        super().__init__()
        width = _WIDTH // 4
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(_WIDTH, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 1))
            for channels in _HEADS
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([head(features) for head in self.heads], 1)


class WireframeMaps(nn.Module):
    """What is exported for a picture: WireframeMaps(network)(image, mask), both of 512², gives maps of 128²:

    - `lines` (n, 5, 128, 128) in [0, 1]: of the line nearest to each point, its direction and the angles of its two
      ends as shares of the largest, its distance, and how far off that may be;
    - `junctions` (n, 1, 128, 128) in [0, 1]: whether lines end at a point;
    - `offsets` (n, 2, 128, 128) in [-0.5, 0.5]: where in the point, rightwards and downwards;
    - `features` (n, 128, 128, 128): what lines are judged by.

    `image` is float32 RGB in [0, 1], `mask` (n, 1, 512, 512) is 1 in the hole, whose pixels don't matter.
    """

    def __init__(self, network: Wireframe) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
        picture = 255 * image * (1 - mask) + _GREY * mask
        maps, features = self.network((picture - mean) / deviation)
        lines, junction, offsets = maps.split([5, 2, 2], 1)
        return lines.sigmoid(), junction.softmax(1)[:, 1:], offsets.sigmoid() - 0.5, features


class WireframeScores(nn.Module):
    """What is exported for lines: features (n, 1024) along n lines give their scores (n,) in [0, 1]."""

    def __init__(self, network: Wireframe) -> None:
        super().__init__()
        self.fc2 = network.fc2

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.fc2(features).sigmoid().flatten()
        return scores
