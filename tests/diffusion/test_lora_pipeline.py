"""A LoRA of transformer and text encoders, saved by diffusers' pipeline, changes ours as it changes theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict

from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.lora import ScaledLora
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.parameters import LoraUse
from limner.diffusion.sd3.components import Components
from limner.diffusion.sd3.text import TextEncoder
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.tiny import sd3_pipeline

TRAINED = ("transformer", "text_encoder", "text_encoder_2")
TARGETS = {
    "transformer": ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn2.to_k"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "text_encoder_2": ["q_proj", "fc1"],
}


def pipeline() -> Any:
    parts = sd3_pipeline()
    for part in parts.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `style` is, as diffusers' training scripts save it: alphas are not the ranks, which the header tells."""
    trained, folder = pipeline(), tmp_path_factory.mktemp("loras")
    layers: dict[str, Any] = {}
    for index, name in enumerate(TRAINED):
        part = getattr(trained, name)
        part.add_adapter(LoraConfig(r=4, lora_alpha=2 + 3 * index, target_modules=TARGETS[name]), "default")
        generator = torch.Generator().manual_seed(index)
        for key, weight in part.named_parameters():
            if "lora_" in key:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.3
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
    metadata = _collate_lora_metadata({name: getattr(trained, name) for name in TRAINED})
    StableDiffusion3Pipeline.save_lora_weights(folder / "style", **layers, **metadata)
    return folder


@pytest.mark.parametrize("scale", [1.0, 0.6])
@torch.no_grad()
def test_transformer_and_text_encoders_change_as_theirs(scale: float, folder: Path) -> None:
    theirs = pipeline()
    plain = theirs.encode_prompt("a red apple", None, None, do_classifier_free_guidance=False)[0][0]
    theirs.load_lora_weights(folder / "style", adapter_name="style")
    theirs.set_adapters("style", scale)
    text, _, pooled, _ = theirs.encode_prompt("a red apple", None, None, do_classifier_free_guidance=False)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([700.0])
    velocity = theirs.transformer(
        latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep
    ).sample
    assert (text[0] - plain).abs().max() > 0.01

    parts = pipeline()
    transformer = Transformer.from_config(parts.transformer.config)
    transformer.load_state_dict(parts.transformer.state_dict())
    transformer.fuse()
    loaded = {name: part for name, part in parts.components.items() if name in Components.__annotations__}
    components = Components(
        **(loaded | {"transformer": transformer.eval()}), device=torch.device("cpu"), dtype=torch.float32
    )
    adapters = Adapters({name: getattr(components, name) for name in (*TRAINED, "text_encoder_3")})
    loras = LoraStore(folder).uses([LoraUse("style", scale)])
    encoder = TextEncoder(components, cache_bytes=0, adapters=adapters)
    encoded = encoder.encode("a red apple", text_length=256, truncate=False, loras=loras)
    assert (encoded.text - text[0]).abs().max() < 1e-5
    assert (encoded.pooled - pooled[0]).abs().max() < 1e-5
    with adapters.applied("transformer", [loras]):
        changed = transformer(latents, timestep, encoded.text[None], encoded.pooled[None])[0]
    assert (changed - velocity).abs().max() < 1e-5
    assert isinstance(loras[0], ScaledLora)
