"""The memory that the models of one server may take, and what each was found to take. Knows nothing of what they do.

What a model takes is measured when it is loaded: what the process has more after loading it and running it once, and
how much more it had at the peak of that run. Until then the card's estimates and the size of its files stand for it.
Other calls that are decoded meanwhile are measured with it, so the figures err upwards; and as the run is a small one,
what they took would count many times in a large one, so that calls are held to take no multiple of what the card says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limner.core.card import ModelCard
from limner.core.errors import OutOfMemory
from limner.core.placement import Placement
from limner.engine import memory
from limner.engine.placement import memory_needed

AUTO_SHARE = 0.8  # of what is free at the server's start
MOST_OF_CARD = 2.0  # times what the card says: no more is believed of a call on a CPU, whatever was measured
LOADED_PER_FILE_BYTE = 2.5  # the most an engine takes: the weights as in the file, and again as it multiplies them


@dataclass(frozen=True)
class Measured:
    """What a model was found to take, in bytes."""

    precision: str
    loaded_bytes: int
    call_bytes: int = 0  # at the peak of one call, beyond the loaded model; 0: none was measured
    call_pixels: int = 0  # what the network saw in that call


@dataclass(frozen=True)
class Need:
    """What a loaded model and one call of it take at least, in bytes, as far as is known."""

    loaded_bytes: int
    call_bytes: int
    doubt_bytes: int = 0  # what the model may take beyond that, as it was never measured

    @property
    def all_bytes(self) -> int:
        return self.loaded_bytes + self.call_bytes


class Budget:
    """Budget(limit_bytes=8 << 30): models and their calls take at most 8 GiB; 0: 80 % of what is free now."""

    def __init__(self, limit_bytes: int = 0, device: str = "cpu") -> None:
        self._device = device
        memory.collect()
        self._base_bytes = memory.in_use(device)
        free = memory.free(device)
        auto = sys.maxsize if free is None else round(AUTO_SHARE * free)
        self.limit_bytes = limit_bytes or auto
        self._measured: dict[str, Measured] = {}

    def measured(self, name: str) -> Measured | None:
        """Return what the model was found to take when it was last loaded; None as long as it was not."""
        return self._measured.get(name)

    def need(self, card: ModelCard, placement: Placement, file_bytes: int, pixels: int) -> Need:
        """Return what the loaded model, of files of so many bytes, and one call that sees so many pixels will take."""
        if placement.precision == "native":
            return Need(0, 0)
        estimate = memory_needed(card, placement.precision, 0)
        call = memory_needed(card, placement.precision, pixels) - estimate
        measured = self.measured(card.name)
        if measured is None or measured.precision != placement.precision:
            loaded = max(estimate, file_bytes)
            return Need(loaded, call, max(round(LOADED_PER_FILE_BYTE * file_bytes) - loaded, 0))
        if measured.call_bytes:
            found = round(measured.call_bytes / measured.call_pixels * pixels)
            call = min(found, round(MOST_OF_CARD * call)) if call and self._device == "cpu" else found
        return Need(measured.loaded_bytes, call)

    def room(self, held_bytes: int, *, between_calls: bool) -> int:
        """Return what one model and its call could have if all other models were unloaded; the loaded ones take
        `held_bytes`.

        While calls run, all that the process has grown by counts as free, as what they take will be free again. So it
        always does on CUDA, whose engine keeps what it once had."""
        free = memory.free(self._device)
        if free is None:
            return self.limit_bytes
        if not between_calls or self._device != "cpu":
            held_bytes = max(held_bytes, memory.in_use(self._device) - self._base_bytes)
        return min(self.limit_bytes, free + held_bytes)

    def measure(
        self,
        card: ModelCard,
        placement: Placement,
        file_bytes: int,
        load: Callable[[], Any],
        step: Callable[[int], None],
    ) -> Any:
        """Load a model, run it once if it has a `warm_up`, note what it takes and return it.

        It is held to take at least what its files have, in bf16 half of that: memory that others gave back to the
        allocator alone is used again, and the process doesn't grow.
        `step` is told 1 when there is room, 2 when it is loaded, 3 when it has run."""
        step(1)
        if placement.precision == "native":
            model = load()
            step(3)
            return model
        memory.collect()
        before = memory.in_use(self._device)
        model = load()
        step(2)
        memory.collect()
        rest = memory.in_use(self._device)
        pixels, call_bytes = 0, 0
        if (warm_up := getattr(model, "warm_up", None)) is not None:
            pixels, peak = memory.peak_of(warm_up, self._device)
            if self._device == "cpu":  # engines prepare weights in their first run, and give back what the run took
                memory.collect()
                rest = memory.in_use(self._device)
            call_bytes = max(peak - rest, 0)
        weights = file_bytes // 2 if placement.precision == "bf16" else file_bytes
        self._measured[card.name] = Measured(placement.precision, max(rest - before, weights), call_bytes, pixels)
        step(3)
        return model

    def shortage(self, card: ModelCard, need: Need, room_bytes: int, setting: str) -> OutOfMemory:
        """Return the error that says that the model and its call don't fit, and how to mend it."""
        mend = "send a smaller picture or mask" if need.loaded_bytes < room_bytes else "take a smaller model"
        if room_bytes >= self.limit_bytes:
            mend += f", or raise {setting}, which makes it {room_bytes >> 20} MiB"
        else:
            mend += ", or end other programs"
        return out_of_memory(
            f"{card.name} needs about {_mebibytes(need.all_bytes)} MiB, {_mebibytes(need.loaded_bytes)} of them for "
            f"itself and {_mebibytes(need.call_bytes)} for this call, and {room_bytes >> 20} MiB are to be had; {mend}",
            need.all_bytes,
            room_bytes,
        )

    def ran_out(self, card: ModelCard, need: Need, doing: str) -> OutOfMemory:
        """Return the error for memory that ran out in the middle."""
        free = memory.free(self._device) or 0
        return out_of_memory(
            f"the memory ran out while {card.name} was {doing}: it takes about {_mebibytes(need.all_bytes)} MiB, and "
            f"{free >> 20} MiB are free; send a smaller picture or mask, or try again later",
            need.all_bytes,
            free,
        )


def out_of_memory(message: str, needed_bytes: int, free_bytes: int) -> OutOfMemory:
    """Return the error with both figures as metadata."""
    return OutOfMemory(message, metadata={"needed_bytes": str(needed_bytes), "free_bytes": str(free_bytes)})


def _mebibytes(count: int) -> int:
    return -(-count >> 20)
