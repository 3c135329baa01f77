"""ZITS' inpainting network: LaMa's Fourier convolutions, told where edges and lines go on and how deep in the hole a
pixel lies. Knows nothing of how either was found.

Dong et al., Incremental Transformer Structure Enhanced Image Inpainting with Masking Positional Encoding, CVPR 2022,
sections 3.4 and 3.5. The structure's features join the generator by weights that began as zeros (ReZero; Bachlechner
et al., 2021): `alpha1` to `alpha6`. The generator differs from big-lama: plain convolutions on the way down, half the
blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.export.networks.lama import GLOBAL, LOCAL, Dft, FourierConvolution, dft_of

POSITIONS = 128  # how many distances from the hole's rim are told apart
_WIDTH = 64
_STRUCTURE_BLOCKS = 3
_BLOCKS = 9


class Gated(nn.Module):
    """A convolution, half of whose channels weigh the other half; Yu et al., Free-Form Inpainting, 2019."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.gate_conv = convolution

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.gate_conv(x).chunk(2, dim=1)
        gated: Tensor = values * torch.sigmoid(gates)
        return gated


class DilatedBlock(nn.Module):
    """Two convolutions, the first one wide, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(channels, channels, 3, dilation=2))
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3))
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return x + added


class StructureEncoder(nn.Module):
    """From (n, 3, h, w) edge, line and mask to features for the generator, and from positions to embeddings of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Gated(nn.Conv2d(3, 2 * _WIDTH, 7, padding=3, padding_mode="reflect"))
        self.bn1 = nn.BatchNorm2d(_WIDTH)
        self.conv2 = Gated(nn.Conv2d(_WIDTH, 2 * 2 * _WIDTH, 4, 2, 1))
        self.bn2 = nn.BatchNorm2d(2 * _WIDTH)
        self.conv3 = nn.Conv2d(2 * _WIDTH, 4 * _WIDTH, 4, 2, 1)
        self.bn3 = nn.BatchNorm2d(4 * _WIDTH)
        self.conv4 = nn.Conv2d(4 * _WIDTH, 8 * _WIDTH, 4, 2, 1)
        self.bn4 = nn.BatchNorm2d(8 * _WIDTH)
        self.middle = nn.Sequential(*(DilatedBlock(8 * _WIDTH) for _ in range(_STRUCTURE_BLOCKS)))
        self.alpha1 = nn.Parameter(torch.zeros(()))
        self.convt1 = Gated(nn.ConvTranspose2d(8 * _WIDTH, 2 * 4 * _WIDTH, 4, 2, 1))
        self.bnt1 = nn.BatchNorm2d(4 * _WIDTH)
        self.alpha2 = nn.Parameter(torch.zeros(()))
        self.convt2 = Gated(nn.ConvTranspose2d(4 * _WIDTH, 2 * 2 * _WIDTH, 4, 2, 1))
        self.bnt2 = nn.BatchNorm2d(2 * _WIDTH)
        self.alpha3 = nn.Parameter(torch.zeros(()))
        self.convt3 = Gated(nn.ConvTranspose2d(2 * _WIDTH, 2 * _WIDTH, 4, 2, 1))
        self.bnt3 = nn.BatchNorm2d(_WIDTH)
        self.alpha4 = nn.Parameter(torch.zeros(()))
        self.rel_pos_emb = nn.Embedding(POSITIONS, _WIDTH)  # fixed waves of the distance, but saved with the rest
        self.direct_emb = nn.Embedding(4, _WIDTH)
        self.alpha5 = nn.Parameter(torch.zeros(()))
        self.alpha6 = nn.Parameter(torch.zeros(()))

    def forward(self, structure: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features for the generator's layers: at the full size, a half, a quarter and an eighth of it."""
        x = functional.relu(self.bn1(self.conv1(structure)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        eighth = self.middle(functional.relu(self.bn4(self.conv4(x))))
        quarter = functional.relu(self.bnt1(self.convt1(eighth)))
        half = functional.relu(self.bnt2(self.convt2(quarter)))
        full = functional.relu(self.bnt3(self.convt3(half)))
        return full * self.alpha4, half * self.alpha3, quarter * self.alpha2, eighth * self.alpha1

    def positions(self, rel_pos: Tensor, direct: Tensor) -> Tensor:
        """Return (n, 64, h, w) of (n, h, w) distances, int64 in [0, 128), and (n, 4, h, w) directions, 0 or 1."""
        distance = self.rel_pos_emb(rel_pos).permute(0, 3, 1, 2) * self.alpha5
        towards = functional.conv2d(direct, self.direct_emb.weight.T[:, :, None, None]) * self.alpha6
        embedded: Tensor = distance + towards
        return embedded


class Block(nn.Module):
    """What two Fourier convolutions add. LaMa's, but for its names."""

    def __init__(self) -> None:
        super().__init__()
        self.ffc1 = FourierConvolution(LOCAL, GLOBAL)
        self.ffc2 = FourierConvolution(LOCAL, GLOBAL)

    def forward(self, x: Tensor, dft: Dft) -> Tensor:
        local, wide = torch.split(x, [LOCAL, GLOBAL], dim=1)
        return x + torch.cat(self.ffc2(*self.ffc1(local, wide, dft), dft), dim=1)


class Generator(nn.Module):
    """From (n, 4, h, w) picture and mask, the structure's features and embedded positions to (n, 3, h, w) in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, _WIDTH, 7, padding=3, padding_mode="reflect")
        self.bn1 = nn.BatchNorm2d(_WIDTH)
        self.conv2 = nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(2 * _WIDTH)
        self.conv3 = nn.Conv2d(2 * _WIDTH, 4 * _WIDTH, 3, 2, 1)
        self.bn3 = nn.BatchNorm2d(4 * _WIDTH)
        self.conv4 = nn.Conv2d(4 * _WIDTH, 8 * _WIDTH, 3, 2, 1)
        self.bn4 = nn.BatchNorm2d(8 * _WIDTH)
        self.middle = nn.ModuleList(Block() for _ in range(_BLOCKS))
        self.convt1 = nn.ConvTranspose2d(8 * _WIDTH, 4 * _WIDTH, 3, 2, 1, output_padding=1)
        self.bnt1 = nn.BatchNorm2d(4 * _WIDTH)
        self.convt2 = nn.ConvTranspose2d(4 * _WIDTH, 2 * _WIDTH, 3, 2, 1, output_padding=1)
        self.bnt2 = nn.BatchNorm2d(2 * _WIDTH)
        self.convt3 = nn.ConvTranspose2d(2 * _WIDTH, _WIDTH, 3, 2, 1, output_padding=1)
        self.bnt3 = nn.BatchNorm2d(_WIDTH)
        self.convt4 = nn.Conv2d(_WIDTH, 3, 7, padding=3, padding_mode="reflect")

    def forward(self, picture: Tensor, features: tuple[Tensor, Tensor, Tensor, Tensor], positions: Tensor) -> Tensor:
        full, half, quarter, eighth = features
        x = functional.relu(self.bn1(self.conv1(picture) + positions))
        x = functional.relu(self.bn2(self.conv2(x + full)))
        x = functional.relu(self.bn3(self.conv3(x + half)))
        x = functional.relu(self.bn4(self.conv4(x + quarter))) + eighth
        dft = dft_of(x)
        for block in self.middle:
            x = block(x, dft)
        x = functional.relu(self.bnt1(self.convt1(x)))
        x = functional.relu(self.bnt2(self.convt2(x)))
        x = functional.relu(self.bnt3(self.convt3(x)))
        return (torch.tanh(self.convt4(x)) + 1) / 2


class ZitsInpaint(nn.Module):
    """ZitsInpaint()(image, mask, edge, line, rel_pos, direct) → (n, 3, h, w) float32 RGB in [0, 1].

    `image` is (n, 3, h, w) float32 RGB in [0, 1]; what `mask`, (n, 1, h, w) with 1 in the hole, covers is multiplied
    away. `edge` and `line` are (n, 1, h, w) in [0, 1], inside the hole too. `rel_pos` is (n, h, w) int64 in [0, 128),
    `direct` (n, 4, h, w) float32 of 0 and 1. Height and width are multiples of 8, from 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.str_encoder = StructureEncoder()
        self.generator = Generator()

    def forward(
        self, image: Tensor, mask: Tensor, edge: Tensor, line: Tensor, rel_pos: Tensor, direct: Tensor
    ) -> Tensor:
        features = self.str_encoder(torch.cat((edge, line, mask), dim=1))
        positions = self.str_encoder.positions(rel_pos, direct)
        filled: Tensor = self.generator(torch.cat((image * (1 - mask), mask), dim=1), features, positions)
        return filled
