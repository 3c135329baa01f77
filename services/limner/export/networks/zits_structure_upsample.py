"""ZITS' upsampling network: doubles a map of edges or of lines, keeping it sharp. Knows nothing of pictures.

Dong et al., Incremental Transformer Structure Enhanced Image Inpainting with Masking Positional Encoding, CVPR 2022,
section 3.3 ("simple structure upsampler").
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class StructureUpsample(nn.Module):
    """StructureUpsample()(map) → (n, 1, 2h, 2w) float32 logits of a map (n, 1, h, w) in [0, 1], from 2 × 2.

    The published network has a second output, `out`, for training alone; it is left away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(1, 64, 7),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 1, 3, padding=1),
        )

    def forward(self, drawing: Tensor) -> Tensor:
        larger = functional.interpolate(drawing, scale_factor=2, mode="bilinear", align_corners=False)
        logits: Tensor = self.convs(larger)
        return logits
