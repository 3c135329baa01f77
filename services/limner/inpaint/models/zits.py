"""ZITS: draws edges and straight lines on through the hole first, then fills it along them. For buildings and rooms.

Dong et al., Incremental Transformer Structure Enhanced Image Inpainting with Masking Positional Encoding, CVPR 2022.
A wireframe network finds the lines around the hole, Canny the edges; a transformer draws both on through it at 256²; a
small network doubles the drawing until it is as large as the picture; then the hole is filled.

The published pipeline works on squares alone, and completes others by reflecting them at the right and at the bottom,
to at least 256² and a multiple of 32. So does this one: every network sees what it would see there. It never sees in
one piece what is larger than the window's side; such holes are reduced, or filled step by step, as for any model.
Unlike other networks, this one takes hints from what the hole covers: Canny's edges just outside it depend a little on
the values inside, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard, WeightFile
from limner.core.picture import Pixels, eight_bits
from limner.core.placement import Placement
from limner.engine.networks import open_network
from limner.engine.session import Session
from limner.engine.store import Store
from limner.inpaint import structure
from limner.inpaint.filler import Filler, Options, Part, Window
from limner.inpaint.network import answer
from limner.inpaint.wireframe import Wireframes, drawn

_RELEASE = "https://github.com/Sanster/models/releases/download/add_zits"
STAGES = 4
Maps: TypeAlias = NDArray[np.float32]

CARD = ModelCard(
    name="zits",
    task="inpaint",
    description="Draws edges and straight lines on through the hole, then fills along them. For buildings and rooms.",
    licence="Apache-2.0",
    source="https://github.com/DQiaole/ZITS_inpainting; Dong et al., CVPR 2022",
    files=(
        WeightFile(
            "zits-wireframe-0717.pt", f"{_RELEASE}/zits-wireframe-0717.pt", "md5:a9727c63a8b48b65c905d351b21ce46b"
        ),
        WeightFile(
            "zits-edge-line-0717.pt", f"{_RELEASE}/zits-edge-line-0717.pt", "md5:55e31af21ba96bbf0c80603c76ea8c5f"
        ),
        WeightFile(
            "zits-structure-upsample-0717.pt",
            f"{_RELEASE}/zits-structure-upsample-0717.pt",
            "md5:3d88a07211bd41b2ec8cc0d999f29927",
        ),
        WeightFile("zits-inpaint-0717.pt", f"{_RELEASE}/zits-inpaint-0717.pt", "md5:9978cc7157dc29699e42308d675b2154"),
    ),
    exports=("wireframe.onnx", "wireframe_scores.onnx", "edge_line.onnx", "structure_upsample.onnx", "inpaint.onnx"),
    tried=False,
    size_multiple=32,
    minimum_side=256,
    precisions=("fp32",),
    memory_estimate_bytes=830 << 20,
    memory_per_pixel_bytes=4200,
)


def window(options: Options) -> Window:
    """Return at most 512 × 512 pixels, the largest that the published weights were trained with."""
    return Window(256, 128, parts=STAGES, context=3.0, least=256, step=64, most_at_once=2, square=True)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its networks opened."""
    maps, scores, edge_line, upsample, inpaint = (open_network(store, CARD, name, placement) for name in CARD.exports)
    return Zits(Wireframes(maps, scores), edge_line, upsample, inpaint)


@dataclass(frozen=True)
class Square:
    """What the networks see of a part: `rgb` (side, side, 3) uint8, `hole` (side, side)."""

    rgb: NDArray[np.uint8]
    hole: NDArray[np.bool_]


class Zits:
    """Zits(wireframes, edge_line, structure_upsample, inpaint). Not for two threads at once.

    Parts whose options want no structure are filled with no edge and no line anywhere, as the published pipeline fills
    with its wireframes switched off.
    """

    def __init__(self, wireframes: Wireframes, edge_line: Session, upsample: Session, inpaint: Session) -> None:
        self._wireframes = wireframes
        self._edge_line = edge_line
        self._upsample = upsample
        self._inpaint = inpaint

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        squares = [_squared(part) for part in parts]
        masks = np.stack([square.hole[None] for square in squares]).astype(np.float32)
        edges, lines = np.zeros_like(masks), np.zeros_like(masks)
        if wanted := [index for index, part in enumerate(parts) if part.options.structure]:
            edges[wanted], lines[wanted] = self._structure([squares[index] for index in wanted], progress)
        distances, ways_out = zip(*(structure.positions(square.hole) for square in squares), strict=True)
        inputs = {
            "image": _colours([square.rgb for square in squares]),
            "mask": masks,
            "edge": edges,
            "line": lines,
            "rel_pos": np.stack(distances),
            "direct": np.stack(ways_out),
        }
        (filled,) = self._inpaint.run(inputs, partial(progress, 3 / STAGES))
        height, width = parts[0].hole.shape
        return [answer(part, each[:, :height, :width]) for part, each in zip(parts, filled, strict=True)]

    def warm_up(self) -> int:
        """Fill a hole in the smallest part that every network runs for, and return how many pixels that is."""
        side = structure.SIDE + CARD.size_multiple
        pixels, hole = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.bool_)
        pixels[:, side // 2 :] = 255
        hole[side // 3 : side // 2, side // 3 : side // 2] = True
        self.fill([Part(pixels, hole, Options())], lambda share: None)
        return hole.size

    def _structure(self, squares: Sequence[Square], progress: Callable[[float], None]) -> list[Maps]:
        """Return edges and lines, outside the holes and in them: two of (n, 1, side, side) float32 in [0, 1]."""
        found = [self._wireframes.find(square.rgb, square.hole, partial(progress, 0.0)) for square in squares]
        lines = np.stack([drawn(each, structure.SIDE)[None] for each in found])
        reduced = [structure.reduced(square.rgb, structure.SIDE) for square in squares]
        edges = np.stack([structure.edges(picture)[None] for picture in reduced]).astype(np.float32)
        masks = np.stack([structure.reduced_hole(square.hole, structure.SIDE)[None] for square in squares])
        inputs = {"image": _colours(reduced) * 2 - 1, "edge": edges, "line": lines, "mask": masks.astype(np.float32)}
        edge_logits, line_logits = self._edge_line.run(inputs, partial(progress, 1 / STAGES))
        drawings = structure.drawn_on(edges, lines, edge_logits, line_logits, inputs["mask"])
        side = len(squares[0].hole)
        return [self._enlarged(drawing, side, partial(progress, 2 / STAGES)) for drawing in drawings]

    def _enlarged(self, drawing: Maps, side: int, check: Callable[[], None]) -> Maps:
        while drawing.shape[2] < side:
            (logits,) = self._upsample.run({"drawing": drawing}, check)
            drawing = structure.enlarged(logits)
        return structure.fitted(drawing, side)


def _squared(part: Part) -> Square:
    """Return a part as the networks see it: at 8 bits, in colour, reflected to a square."""
    height, width = part.hole.shape
    side = max(CARD.minimum_side, -(-max(height, width) // CARD.size_multiple) * CARD.size_multiple)
    beyond = (0, side - height), (0, side - width)
    eight = eight_bits(part.pixels)
    rgb = np.broadcast_to(eight, (height, width, 3))
    return Square(np.pad(rgb, (*beyond, (0, 0)), mode="symmetric"), np.pad(part.hole, beyond, mode="symmetric"))


def _colours(pictures: Sequence[NDArray[np.uint8]]) -> Maps:
    """Return (n, 3, height, width) float32 in [0, 1]."""
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
