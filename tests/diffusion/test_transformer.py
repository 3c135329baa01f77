"""The transformer's forward pass against diffusers', and what it adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from limner.diffusion.sd3.transformer import Transformer

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def theirs(tiny_sd3: Path) -> SD3Transformer2DModel:
    return SD3Transformer2DModel.from_pretrained(tiny_sd3 / "transformer").eval()


@pytest.fixture(scope="module")
def ours(tiny_sd3: Path) -> Transformer:
    transformer = Transformer.from_pretrained(tiny_sd3 / "transformer").eval()
    transformer.fuse()
    return transformer


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    latents, text, pooled = (
        torch.randn(shape, generator=generator) for shape in ((2, 16, 16, 24), (2, 90, 64), (2, 64))
    )
    return latents, torch.tensor([900.0, 300.0]), text, pooled


@pytest.mark.parametrize("skipped", [(), (1,), (1, 2), (0, 3)])
def test_velocity_is_that_of_diffusers(
    ours: Transformer, theirs: SD3Transformer2DModel, inputs: Inputs, skipped: tuple[int, ...]
) -> None:
    latents, timestep, text, pooled = inputs
    with torch.inference_mode():
        velocity, _ = ours(latents, timestep, text, pooled, skip_layers=skipped)
        expected = theirs(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            skip_layers=list(skipped) or None,
        ).sample
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_first_version_without_norms_and_dual_attention(inputs: Inputs, theirs: SD3Transformer2DModel) -> None:
    latents, timestep, text, pooled = inputs
    config = {**theirs.config, "qk_norm": None, "dual_attention_layers": ()}
    old = SD3Transformer2DModel.from_config(config).eval()
    ours = Transformer.from_config(config).eval()
    ours.load_state_dict(old.state_dict())
    ours.fuse()
    with torch.inference_mode():
        velocity, _ = ours(latents, timestep, text, pooled)
        expected = old(latents, text, pooled, timestep, return_dict=False)[0]
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)


def test_skipping_layers_changes_the_velocity(ours: Transformer, inputs: Inputs) -> None:
    with torch.inference_mode():
        whole, _ = ours(*inputs)
        skipped, _ = ours(*inputs, skip_layers=(1,))
    assert (whole - skipped).abs().max() > 1e-3


def test_features_stand_for_the_blocks(ours: Transformer, inputs: Inputs) -> None:
    latents, timestep, text, pooled = inputs
    with torch.inference_mode():
        velocity, features = ours(*inputs)
        again, same = ours(latents, timestep, torch.zeros_like(text), pooled, features=features)
    assert torch.equal(velocity, again)
    assert same is features


def test_fusing_lets_the_separate_projections_go(ours: Transformer, theirs: SD3Transformer2DModel) -> None:
    names = {name for name, _ in ours.named_parameters()}
    assert not any(part in name for name in names for part in ("to_q.", "to_k.", "add_v_proj."))
    assert sum(each.numel() for each in ours.parameters()) == sum(each.numel() for each in theirs.parameters())
