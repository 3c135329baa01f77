"""Runs of the transformer for rows of one bucket: what can run together does, as far as memory reaches. Knows neither
samplers nor guidance."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch

from limner.core.errors import OutOfMemory
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.memory import is_out_of_memory, release
from limner.diffusion.sd3.capacity import Capacity
from limner.diffusion.sd3.row import Branch, Bucket
from limner.diffusion.sd3.text import CLIP_LENGTH, Conditioning
from limner.diffusion.sd3.transformer import Transformer


class Predicted(NamedTuple):
    """What the transformer makes of a branch. Parts of the batch's tensors."""

    velocity: torch.Tensor  # (16, height / 8, width / 8), in the transformer's dtype
    features: torch.Tensor  # (patches, width)


class Batch:
    """Runs branches together that leave out the same layers."""

    def __init__(
        self, transformer: Transformer, adapters: Adapters, capacity: Capacity, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`dtype` is of the transformer's inputs."""
        self._transformer = transformer
        self._adapters = adapters
        self._capacity = capacity
        self._device = device
        self._dtype = dtype

    def run(self, bucket: Bucket, branches: Sequence[Branch]) -> list[Predicted | OutOfMemory]:
        """Return what comes of each branch, in order: OutOfMemory for one that does not even run alone."""
        groups: dict[object, list[int]] = {}
        for index, branch in enumerate(branches):
            kind = branch.skip_layers if branch.features is None else "predicted"
            groups.setdefault(kind, []).append(index)
        results: dict[int, Predicted | OutOfMemory] = {}
        for indices in groups.values():
            found = self._in_parts(bucket, [branches[index] for index in indices])
            results.update(zip(indices, found, strict=True))
        return [results[index] for index in range(len(branches))]

    def try_out(self, bucket: Bucket, rows: int, layers: int) -> bool:
        """Run so many rows of nothing through the first layers, wait for the end, and say whether memory was enough."""
        config = self._transformer.config
        on_device = partial(torch.zeros, device=self._device, dtype=self._dtype)
        branch = Branch(
            "positive",
            on_device(config.in_channels, bucket.height // 8, bucket.width // 8),
            torch.zeros((), device=self._device),
            Conditioning(
                on_device(CLIP_LENGTH + bucket.text_length, config.joint_attention_dim),
                on_device(config.pooled_projection_dim),
            ),
            loras=(),
            skip_layers=frozenset(range(layers, len(self._transformer.transformer_blocks))),
        )
        found = self._attempt([branch] * rows)
        if found is None:
            release(self._device)
            return False
        found[0].velocity.sum().item()  # waits for the device
        return True

    def _in_parts(self, bucket: Bucket, branches: Sequence[Branch]) -> list[Predicted | OutOfMemory]:
        done: list[Predicted | OutOfMemory] = []
        while len(done) < len(branches):
            part = branches[len(done) :][: self._capacity.of(bucket)]
            found = self._attempt(part)
            if found is not None:
                done.extend(found)
                continue
            release(self._device)
            if len(part) == 1:
                done.append(too_large(bucket))
            else:
                self._capacity.lower(bucket, len(part) // 2)
        return done

    def _attempt(self, branches: Sequence[Branch]) -> list[Predicted] | None:
        """Return None if memory is not enough. The error is gone then, and what its traceback held."""
        try:
            return self._together(branches)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _together(self, branches: Sequence[Branch]) -> list[Predicted]:
        predicted = [branch.features for branch in branches if branch.features is not None]
        rows = [branch.loras for branch in branches]
        with self._adapters.applied("transformer", rows) if any(rows) else nullcontext():
            velocity, features = self._transformer(
                torch.stack([branch.latents for branch in branches]).to(self._dtype),
                torch.stack([branch.timestep for branch in branches]),
                torch.stack([branch.conditioning.text for branch in branches]),
                torch.stack([branch.conditioning.pooled for branch in branches]),
                skip_layers=branches[0].skip_layers,
                features=torch.stack(predicted) if predicted else None,
            )
        return [Predicted(*each) for each in zip(velocity.unbind(), features.unbind(), strict=True)]


def too_large(bucket: Bucket) -> OutOfMemory:
    """Return what a row ends with that memory is not enough for, even alone."""
    return OutOfMemory(
        f"the device has not enough memory for one step at {bucket.width} × {bucket.height}: "
        f"ask for a smaller picture, or try again when less is going on",
        metadata={"width": str(bucket.width), "height": str(bucket.height)},
    )
