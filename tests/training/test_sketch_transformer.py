from __future__ import annotations

import pytest
import torch

from limner.diffusion.tiny import vae
from tests.training import sketches
from training.sketch import export, text, transformer


@pytest.fixture(scope="module")
def parts():
    tokenizer = sketches.tokenizer()
    return tokenizer, sketches.sketch(tokenizer)


@pytest.mark.parametrize("text_length", [0, 1, 77, 256])
def test_merged_tokens_give_what_all_tokens_give(parts, text_length: int) -> None:
    tokenizer, network = parts
    pipeline = export.pipeline(network, tokenizer, vae(latent_channels=16, scaling_factor=1.0, shift_factor=0.0))
    prompts = ["a red apple", "a green tree on a white background", ""]
    clip = [pipeline._get_clip_prompt_embeds(prompts, clip_model_index=index) for index in (0, 1)]
    words = torch.cat([embeddings for embeddings, _ in clip], dim=-1)
    everything = torch.cat([words, words.new_zeros(3, text_length, words.shape[-1])], dim=1)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 16, 16, 24, generator=generator)
    times = torch.tensor([1000.0, 500.0, 3.0])

    read, pooled = network.read(text.tokens(tokenizer, prompts))
    merged = transformer.velocity(network.transformer, latents, times, read, pooled, text.counts(text_length))

    torch.testing.assert_close(pooled, torch.cat([pooled for _, pooled in clip], dim=-1))
    plain = network.transformer(latents, everything, pooled, times).sample
    assert plain.std() > 0.1
    torch.testing.assert_close(merged, plain, rtol=0, atol=1e-5)


def test_the_prompt_and_the_time_make_a_difference(parts) -> None:
    tokenizer, network = parts
    latents = torch.zeros(2, 16, 16, 16)
    read, pooled = network.read(text.tokens(tokenizer, ["a red apple", "a blue car"]))

    first, second = transformer.velocity(
        network.transformer, latents, torch.tensor([500.0, 500.0]), read, pooled, text.counts(8)
    )
    later = transformer.velocity(
        network.transformer, latents[:1], torch.tensor([900.0]), read[:1], pooled[:1], text.counts(8)
    )[0]

    assert (first - second).abs().max() > 1e-3
    assert (first - later).abs().max() > 1e-3


def test_a_network_begins_with_a_velocity_of_zero() -> None:
    network = transformer.network(64, 2, 64)

    given = torch.randn(1, 16, 16, 16), torch.tensor([500.0]), torch.randn(1, 18, 64), torch.randn(1, 64)
    assert not transformer.velocity(network, *given, text.counts(8)).any()


def test_positions_are_one_apart_and_survive_saving(tmp_path) -> None:
    network = transformer.network(64, 1, 64)
    network.save_pretrained(tmp_path)
    again = transformer.network(64, 1, 64).from_pretrained(tmp_path)

    table = again.pos_embed.pos_embed.reshape(16, 16, 64)
    assert torch.equal(again.pos_embed.pos_embed, network.pos_embed.pos_embed)
    torch.testing.assert_close(table[:, 5, 32], torch.arange(16.0).sin(), atol=1e-5, rtol=0)
