"""What plans say is computed with, against what lives at once in networks of the published sizes on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limner.diffusion.hardware import Hardware
from limner.diffusion.plan import plan
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.shape import Part, Shape

ROOM = Hardware("cuda:0", 1 << 40, 1 << 40, bf16="the device multiplies it")
WIDTH, LAYERS, PIXELS, TEXT = 1536, 3, 1024 * 1024, 256


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made and live, and the most there were."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
        self._sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self._own:
                if key not in self._sizes:
                    weakref.finalize(tensor.untyped_storage(), self._sizes.pop, key, None)
                self._sizes[key] = tensor.untyped_storage().nbytes()
        self.most = max(self.most, sum(self._sizes.values()))
        return output


@pytest.fixture(autouse=True)
def _on_meta(monkeypatch) -> Iterator[None]:
    """On meta, attention would be told by its definition, with all scores; devices have kernels that keep none."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    with torch.device("meta"), torch.no_grad():
        yield


def most(module: nn.Module, run: Callable[[], object]) -> int:
    with Living(module) as living:
        run()
    return living.most


@pytest.mark.parametrize("dual", [(), (0, 1, 2)])
@pytest.mark.parametrize("rows", [2, 8])
def test_a_step_takes_about_what_is_said(dual, rows):
    transformer = Transformer(
        sample_size=128,
        num_layers=LAYERS,
        attention_head_dim=64,
        num_attention_heads=WIDTH // 64,
        joint_attention_dim=4096,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
        dual_attention_layers=dual,
        qk_norm="rms_norm",
    )
    for parameter in transformer.parameters():
        parameter.data = parameter.data.bfloat16()
    transformer.fuse()
    given = [torch.empty(shape, dtype=torch.bfloat16) for shape in ((rows, 16, 128, 128), (rows,))]
    given += [torch.empty(shape, dtype=torch.bfloat16) for shape in ((rows, 77 + TEXT, 4096), (rows, 2048))]
    found = most(transformer, lambda: transformer(*given))
    shape = Shape("medium", "sd3", Part(0), (), None, Part(0), width=WIDTH)
    said = plan(shape, ROOM, pixels=PIXELS, rows=rows, text_length=TEXT).parts["step"]
    assert 0.75 * said < found < said


def test_decoding_takes_about_what_is_said():
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    latents = torch.empty(1, 16, 128, 128)
    shape = Shape("medium", "sd3", Part(0), (), None, Part(0), width=WIDTH)
    said = plan(shape, ROOM, precision="fp32", pixels=PIXELS).parts["text and VAE at work"]
    assert 0.7 * said < most(vae, lambda: vae.decode(latents)) < said
    assert most(vae, lambda: vae.encode(torch.empty(1, 3, 1024, 1024))) < said
