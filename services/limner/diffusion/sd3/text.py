"""Prompts as the transformer reads them: two CLIP encoders and T5 (Esser et al., 2024), with a cache. Knows neither
requests nor steps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from limner.core.errors import BadArgument
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.lora import ScaledLora
from limner.diffusion.sd3.components import Components

CLIP_LENGTH = 77
"""Tokens that the CLIP encoders read, with the two that mark the ends: their positions are trained for no more."""


@dataclass(frozen=True)
class Conditioning:
    """One prompt, on the components' device and in their dtype. Shared by whoever asks for the same: never changed."""

    text: torch.Tensor  # (77 + text_length, joint_attention_dim)
    pooled: torch.Tensor  # (pooled_projection_dim,)

    @property
    def byte_count(self) -> int:
        """What it takes."""
        return self.text.nbytes + self.pooled.nbytes


class TextEncoder:
    """`encode` may be called by several threads; one of them encodes at a time. Keeps the prompts that were used last,
    as many as fit `cache_bytes`."""

    def __init__(self, components: Components, *, cache_bytes: int, adapters: Adapters | None = None) -> None:
        self._components = components
        self._adapters = adapters
        self._cache = _Cache(cache_bytes)
        self._encoding = threading.Lock()  # tokenizers keep settings of a call, and fail when two use them at once

    def encode(
        self,
        prompt: str,
        *,
        text_length: int,
        truncate: bool,
        loras: Sequence[ScaledLora] = (),
        field: str = "prompt",
    ) -> Conditioning:
        """Return what the transformer reads of `prompt`: 77 tokens of CLIP, then `text_length` of T5, which are zeros
        where there is no T5.

        T5 reads `text_length` tokens, and CLIP the first 77 of them, as published. Raises BadArgument for a prompt of
        more tokens than T5 reads, or than CLIP does where there is no T5; with `truncate` it is cut instead. `field` is
        what the error names.
        """
        with self._encoding:
            if not truncate:
                self._check(prompt, text_length, field)
            changed = self._adapters.of_text(loras) if self._adapters else ()
            key = (prompt, text_length, changed)
            found = self._cache.get(key)
            if found is None:
                found = self._encode(prompt, text_length, loras)
                self._cache.put(key, found)
            return found

    def _check(self, prompt: str, text_length: int, field: str) -> None:
        parts = self._components
        if parts.text_encoder_3 is None:
            tokenizer, limit, cure = parts.tokenizer, CLIP_LENGTH, "there is no T5 here, which would read more"
        else:
            tokenizer, limit, cure = parts.tokenizer_3, text_length, "a larger text_length reads more, up to 512"
        count = len(tokenizer(prompt, verbose=False).input_ids)
        if count > limit:
            message = (
                f"has {count} tokens, with those that mark its ends, and the model reads {limit}: shorten it, or set "
                f"truncate_prompt to have it cut; {cure}"
            )
            raise BadArgument(f"{field} {message}", field=field, metadata={"actual": str(count), "limit": str(limit)})

    @torch.no_grad()
    def _encode(self, prompt: str, text_length: int, loras: Sequence[ScaledLora]) -> Conditioning:
        parts = self._components
        width = parts.transformer.config.joint_attention_dim
        first, first_pooled = self._clip("text_encoder", parts.tokenizer, prompt, loras)
        second, second_pooled = self._clip("text_encoder_2", parts.tokenizer_2, prompt, loras)
        clip = torch.cat([first, second], -1)
        t5 = self._t5(prompt, text_length, loras)
        if t5 is None:
            t5 = clip.new_zeros(text_length, width)
        return Conditioning(
            text=torch.cat([pad(clip, (0, width - clip.shape[-1])), t5]),
            pooled=torch.cat([first_pooled, second_pooled]),
        )

    def _clip(
        self, name: str, tokenizer: Any, prompt: str, loras: Sequence[ScaledLora]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last layer but one, (77, width), and the pooled projection, (width,)."""
        output = self._run(name, tokenizer, prompt, CLIP_LENGTH, loras, output_hidden_states=True)
        return self._placed(output.hidden_states[-2][0]), self._placed(output.text_embeds[0])

    def _t5(self, prompt: str, text_length: int, loras: Sequence[ScaledLora]) -> torch.Tensor | None:
        if self._components.text_encoder_3 is None:
            return None
        output = self._run("text_encoder_3", self._components.tokenizer_3, prompt, text_length, loras)
        return self._placed(output.last_hidden_state[0])

    def _run(
        self, name: str, tokenizer: Any, prompt: str, length: int, loras: Sequence[ScaledLora], **options: bool
    ) -> Any:
        encoder = getattr(self._components, name)
        tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        # Padding is read like words, by CLIP and T5 alike: so the transformer was trained.
        with self._adapters.applied(name, [tuple(loras)]) if self._adapters and loras else nullcontext():
            return encoder(tokens.input_ids.to(encoder.device), **options)

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._components.device, self._components.dtype)


class _Cache:
    """What was used last, as much as fits."""

    def __init__(self, byte_limit: int) -> None:
        self._byte_limit = byte_limit
        self._byte_count = 0
        self._entries: OrderedDict[Hashable, Conditioning] = OrderedDict()

    def get(self, key: Hashable) -> Conditioning | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, entry: Conditioning) -> None:
        self._entries[key] = entry
        self._byte_count += entry.byte_count
        while self._byte_count > self._byte_limit:
            _, oldest = self._entries.popitem(last=False)
            self._byte_count -= oldest.byte_count
