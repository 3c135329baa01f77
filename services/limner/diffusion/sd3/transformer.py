"""The MMDiT of SD3 and SD3.5, as the step loop calls it (Esser et al., 2024): diffusers' layers, and a forward pass of
our own that can leave layers out, give its last features, and begin from features that were predicted."""

from __future__ import annotations

from collections.abc import Collection

import torch
from diffusers import SD3Transformer2DModel

from limner.diffusion.sd3.attention import fuse_projections

RECOMPILE_LIMIT = 64


class Transformer(SD3Transformer2DModel):
    """Loads like diffusers' class: from_config, from_pretrained. `fuse` it before it is used."""

    _repeated_blocks = ("JointTransformerBlock",)  # what `compile_repeated_blocks` compiles once for all of a kind

    def fuse(self) -> None:
        """Let every attention project queries, keys and values at once. Before weights are quantised, and once."""
        for block in self.transformer_blocks:
            for attention in (block.attn, block.attn2):
                if attention is not None:
                    fuse_projections(attention)

    def compile_blocks(self) -> None:
        """Compile the blocks, each kind once. The first call of a new kind of batch then takes seconds, up to a minute;
        after a few, sizes are compiled as variables and no new ones are needed."""
        dynamo = torch._dynamo.config  # kinds of blocks times kinds of batches: more than the usual 8
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
        self.compile_repeated_blocks()

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor,
        *,
        skip_layers: Collection[int] = (),
        features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return velocity and features.

        `latents` is (batch, 16, height / 8, width / 8), `timestep` (batch,) in 0 .. 1000, `text` (batch, tokens,
        joint_attention_dim), `pooled` (batch, pooled_projection_dim). The velocity is of the latents' shape; features
        are what the last block gives, (batch, patches, width). With `features` no block is run: they stand for them.
        """
        height, width = latents.shape[-2:]
        conditioning = self.time_text_embed(timestep, pooled)
        if features is None:
            features = self._features(latents, conditioning, text, skip_layers)
        patches = self.proj_out(self.norm_out(features, conditioning))
        return self._unpatched(patches, height, width), features

    def _features(
        self, latents: torch.Tensor, conditioning: torch.Tensor, text: torch.Tensor, skip_layers: Collection[int]
    ) -> torch.Tensor:
        features: torch.Tensor = self.pos_embed(latents).contiguous()
        text = self.context_embedder(text)
        for index, block in enumerate(self.transformer_blocks):
            if index not in skip_layers:
                text, features = block(hidden_states=features, encoder_hidden_states=text, temb=conditioning)
        return features

    def _unpatched(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        size = self.config.patch_size
        rows, columns = height // size, width // size
        grid = patches.reshape(-1, rows, columns, size, size, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        latents: torch.Tensor = grid.reshape(-1, self.out_channels, height, width)
        return latents
