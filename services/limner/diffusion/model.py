"""What the engine asks of a loaded model. Two families implement it: `limner.diffusion.sd3` and
`limner.diffusion.legacy`. Knows no torch.

Threads: `prepare`, `decode` and what `preview` returns run on the engine's side thread, `advance` and `preview` on the
device's thread. Both go on at the same time, for different calls.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limner.diffusion.parameters import Parameters

Pixels = NDArray[np.uint8]  # (height, width, 3), sRGB


@dataclass(frozen=True)
class Request:
    """What one call wants of a model."""

    parameters: Parameters
    image: Pixels | None = None  # (height, width, 3) of the parameters' size; None: from noise alone
    mask: NDArray[np.float32] | None = None  # (height, width), 0 keeps .. 1 replaces; None: the whole picture


class Row(Protocol):
    """One picture under way. Holds all of its state: nothing of it is in the model."""

    bucket: Hashable  # rows of one bucket can be advanced in one call
    size: int  # how many of the model's own rows an evaluation takes: 1, 2 with guidance; at most what fits the bucket
    cost: float  # of one evaluation, in any unit that is the same for all rows of the server: tokens times `size`
    step: int  # steps done, 0 to step_count
    step_count: int

    def close(self) -> None:
        """Let go of everything, at any time and as often as one likes."""


class Model(Protocol):
    """A loaded model. Raises LimnerErrors for what the caller did, MemoryError or OutOfMemory for memory."""

    def prepare(self, request: Request, check: Callable[[], None]) -> Sequence[Row]:
        """Return a row for each picture: prompts and picture encoded, noise drawn. `check` raises when the call is
        over; it is called between the parts. Raises BadArgument for prompts that are too long, and LoRAs that don't
        fit."""
        ...

    def most_at_once(self, bucket: Hashable) -> int:
        """Return how many `size`s of a bucket one `advance` may take, at least the largest row's."""
        ...

    def advance(self, rows: Sequence[Row]) -> Sequence[Exception | None]:
        """Do one evaluation for each row, of one bucket. Returns an error for each row that came to nothing, such as
        values that are no numbers. If it raises, no row has changed."""
        ...

    def preview(self, row: Row) -> Callable[[], Pixels] | None:
        """Return what makes a picture of the row as it would end now, (height, width, 3), possibly small; None if there
        is nothing to show. Cheap: it only takes hold of tensors that nobody changes any more."""
        ...

    def decode(self, row: Row) -> Pixels:
        """Return the picture of a row whose steps are done: (height, width, 3) of the parameters' size."""
        ...
