"""One picture under way in one of diffusers' pipelines, which runs on a thread of its own, an evaluation at a time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from limner.diffusion.faults import no_numbers
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.legacy.pipelines import SEEN, stepped
from limner.diffusion.legacy.preview import Seen
from limner.diffusion.legacy.turns import Turns

_PIXELS_A_TOKEN = 256  # as SD3 counts its work: 16 × 16 pixels
_numbers = itertools.count()


class LegacyRow:
    """See `limner.diffusion.model.Row`. Each is a bucket of its own: it is advanced alone.

    `begin` brings it to its first step; `advance` does an evaluation. Both raise what the pipeline raised, and the row
    is over then.
    """

    def __init__(
        self,
        parts: Parts,
        scheduler: Any,
        call: Mapping[str, Any],
        *,
        edits: bool,
        vae_lock: threading.Lock,
    ) -> None:
        """`call` is what the pipeline is called with."""
        number = next(_numbers)
        self.bucket: Hashable = ("legacy", number)
        self.size = 2 if call["guidance_scale"] > 1 else 1
        self.cost: float = self.size * call["width"] * call["height"] / _PIXELS_A_TOKEN
        self.step = 0
        self.step_count = 0  # known when it has begun
        self.evaluation_count = 0
        self.latents: torch.Tensor | None = None  # (1, 4, height / 8, width / 8), when all steps are done
        self.seen: Seen | None = None  # in the last evaluation
        self._call = dict(call)
        self._pipeline = stepped(parts, scheduler, edits=edits)
        self._pipeline.set_up(parts.device, vae_lock, self._begun)
        self._turns = Turns(f"limner-legacy-{number}", self._run)

    def begin(self) -> None:
        """Encode the picture and draw the noise."""
        self._turns.resume()

    def advance(self) -> None:
        """Do one evaluation."""
        self._turns.resume()

    def close(self) -> None:
        self._turns.close()
        self.latents = self.seen = self._pipeline = None
        self._call = {}

    def _run(self) -> None:
        output = self._pipeline(
            **self._call,
            output_type="latent",
            callback_on_step_end=self._evaluated,
            callback_on_step_end_tensor_inputs=list(SEEN),
        )
        self.latents = output.images

    def _begun(self, step_count: int) -> None:
        self.step_count = step_count
        self._turns.pause()

    def _evaluated(
        self, pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Called by the pipeline after each evaluation, on its thread."""
        self.evaluation_count = index + 1
        # With guidance there are two of what the UNet saw, which are equal; beside the latents it saw the mask.
        self.seen = Seen(tensors["latent_model_input"][0, :4], tensors["noise_pred"][0], float(timestep))
        last = self.evaluation_count == pipe.num_timesteps
        self.step = self.step_count if last else self._steps_of(self.evaluation_count, pipe)
        if not torch.isfinite(tensors["latents"]).all():
            raise no_numbers(self.step, self.step_count)
        if not last:  # after the last, the pipeline returns at once
            self._turns.pause()
        return {}

    def _steps_of(self, evaluation_count: int, pipe: Any) -> int:
        """Return how many steps are done, as diffusers' progress bars count: samplers of the second order take two
        evaluations for each but the last, and PNDM one more for the first."""
        order = pipe.scheduler.order
        extra = max(0, pipe.num_timesteps - self.step_count * order)
        return int(max(0, evaluation_count - extra) // order)
