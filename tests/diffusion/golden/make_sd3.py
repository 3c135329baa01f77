"""Makes sd3.npz and the names of published files from Stability's own code; README.md says how it is run and what it
stands on.

python -m tests.diffusion.golden.make_sd3 PATH_TO_A_CHECKOUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.diffusion.golden import sd3_cases as cases

HERE = Path(__file__).parent
PUBLISHED = {
    "sd3.5_large": (38, (), "rms", 192),
    "sd3.5_medium": (24, tuple(range(13)), "rms", 384),
    "sd3_medium": (24, (), None, 192),
}
CLIP_L = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
CLIP_G = {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
}
T5 = {"d_ff": 10240, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}


@torch.no_grad()
def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    import other_impls
    from mmditx import MMDiTX
    from sd3_impls import SDVAE, VAEDecoder, VAEEncoder

    def transformer(
        depth: int, dual: tuple[int, ...], qk_norm: str | None, side: int, joint: int, pooled: int, device: str
    ) -> torch.nn.Module:
        context = {"target": "torch.nn.Linear", "params": {"in_features": joint, "out_features": 64 * depth}}
        made: torch.nn.Module = MMDiTX(
            input_size=None,
            pos_embed_max_size=side,
            patch_size=2,
            in_channels=16,
            depth=depth,
            num_patches=side**2,
            adm_in_channels=pooled,
            context_embedder_config=context,
            qk_norm=qk_norm,
            x_block_self_attn_layers=list(dual),
            device=device,
            dtype=torch.float32,
        )
        return made

    given = {name: torch.from_numpy(values) for name, values in cases.inputs().items()}
    outputs: dict[str, Any] = {}
    for name, sizes in cases.CASES.items():
        network = transformer(
            sizes.depth, sizes.dual_attention, sizes.qk_norm, cases.POSITIONS, cases.JOINT, cases.POOLED, "cpu"
        )
        write_names(f"small_{name}", fill(network, cases.TRANSFORMER_PREFIX))
        outputs[name] = network(given["latents"], given["timestep"], given["pooled"], given["text"])
    vae = SDVAE()
    vae.encoder, vae.decoder = VAEEncoder(ch=cases.VAE_CHANNELS), VAEDecoder(ch=cases.VAE_CHANNELS)
    write_names("small_vae", fill(vae, cases.VAE_PREFIX))
    outputs["moments"] = vae.encoder(given["picture"])
    outputs["decoded"] = vae.decoder(given["latents"][:1])
    for name, activation in cases.ACTIVATIONS.items():
        config = {"hidden_act": activation, **cases.CLIP}
        if name == "text_encoder":
            encoder = other_impls.SDClipModel(
                layer="hidden",
                layer_idx=-2,
                dtype=torch.float32,
                layer_norm_hidden_state=False,
                return_projected_pooled=False,
                textmodel_json_config=config,
            )
        else:
            encoder = other_impls.SDXLClipG(config, dtype=torch.float32)
        write_names(f"small_{name}", fill(encoder.transformer, ""))
        hidden, pooled = encoder(cases.tokens(49407 if name == "text_encoder" else 0).tolist())
        outputs[name], outputs[f"{name}_pooled"] = hidden, pooled
    encoder = other_impls.T5XXLModel(cases.T5, dtype=torch.float32)
    write_names("small_text_encoder_3", fill(encoder.transformer, ""))
    outputs["text_encoder_3"] = encoder(cases.t5_tokens().tolist())[0]
    np.savez_compressed(HERE / "sd3.npz", **{name: np.asarray(values) for name, values in outputs.items()})

    for name, (depth, dual, qk_norm, side) in PUBLISHED.items():
        network = transformer(depth, dual, qk_norm, side, 4096, 2048, "meta")
        parts = {cases.TRANSFORMER_PREFIX: network, cases.VAE_PREFIX: SDVAE(device="meta")}
        write_names(
            name, {p + key: tuple(t.shape) for p, part in parts.items() for key, t in part.state_dict().items()}
        )
    published = {
        "clip_l": other_impls.CLIPTextModel(CLIP_L, torch.float32, "meta"),
        "clip_g": other_impls.CLIPTextModel(CLIP_G, torch.float32, "meta"),
        "t5xxl": other_impls.T5(T5, torch.float32, "meta"),
    }
    for name, part in published.items():
        write_names(name, {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()})


def fill(network: torch.nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    """Give a network the seeded weights and return the shapes of its tensors by their names in a file."""
    state = network.eval().state_dict()
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in state.items()}
    values = cases.weights(shapes)
    network.load_state_dict({name: torch.from_numpy(values[prefix + name]) for name in state})
    return shapes


def write_names(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    lines = (f"{key} {'x'.join(map(str, shape))}".rstrip() for key, shape in shapes.items())
    (HERE / f"{name}.names.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
