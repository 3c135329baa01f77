"""Small pipelines with random weights that are written in a second: what tests and benchmarks run, with every part of
the real ones and pictures of noise.

    python -m limner.diffusion.tiny DIRECTORY                   # an SD3 pipeline, as a diffusers folder
    python -m limner.diffusion.tiny DIRECTORY sdxl-inpaint      # or sd1-inpaint
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "and",
    "with",
    "red",
    "green",
    "blue",
    "apple",
    "house",
    "tree",
    "cat",
    "dog",
    "sky",
    "sea",
    "small",
    "large",
    "photo",
    "painting",
]


def write_sd3(directory: Path, *, seed: int = 0, text_encoder_3: bool = True) -> Path:
    """Write an SD3 pipeline as a diffusers folder and return its path: four blocks, the first two with dual attention,
    64 channels, a VAE that reduces by 8 to 16 channels. Takes pictures of 32 to 512 pixels a side."""
    sd3_pipeline(seed=seed, text_encoder_3=text_encoder_3).save_pretrained(directory, safe_serialization=True)
    return directory


def sd3_pipeline(*, seed: int = 0, text_encoder_3: bool = True) -> StableDiffusion3Pipeline:
    """Return the pipeline of `write_sd3`, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = _clip()
        t5 = T5Config(vocab_size=1103, d_model=64, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=4,
                attention_head_dim=16,
                num_attention_heads=4,
                joint_attention_dim=64,
                caption_projection_dim=64,
                pooled_projection_dim=64,
                pos_embed_max_size=32,
                dual_attention_layers=(0, 1),
                qk_norm="rms_norm",
            ),
            text_encoder=CLIPTextModelWithProjection(clip),
            text_encoder_2=CLIPTextModelWithProjection(clip),
            text_encoder_3=T5EncoderModel(t5) if text_encoder_3 else None,
            tokenizer=word_tokenizer(77),
            tokenizer_2=word_tokenizer(77),
            tokenizer_3=word_tokenizer(512) if text_encoder_3 else None,
            vae=vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
        _spread(pipeline.transformer)
    return pipeline


# The schedule that SD 1 and SDXL were trained with, in the names of their published configurations.
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


def write_sd1_inpaint(directory: Path, *, seed: int = 0, in_channels: int = 9) -> Path:
    """Write an SD 1 pipeline as a diffusers folder and return its path: a UNet of two levels, a VAE that reduces by 8
    to 4 channels. Of 9 channels it is an inpainting model, of 4 a base model."""
    sd1_pipeline(seed=seed, in_channels=in_channels).save_pretrained(directory, safe_serialization=True)
    return directory


def write_sdxl_inpaint(directory: Path, *, seed: int = 0, in_channels: int = 9) -> Path:
    """Write an SDXL pipeline as a diffusers folder and return its path; as small as `write_sd1_inpaint`'s."""
    sdxl_pipeline(seed=seed, in_channels=in_channels).save_pretrained(directory, safe_serialization=True)
    return directory


def sd1_pipeline(*, seed: int = 0, in_channels: int = 9) -> StableDiffusionInpaintPipeline:
    """Return the pipeline of `write_sd1_inpaint`, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusionInpaintPipeline(
            unet=UNet2DConditionModel(
                sample_size=16,
                in_channels=in_channels,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                attention_head_dim=2,
                cross_attention_dim=32,
                norm_num_groups=8,
            ),
            text_encoder=CLIPTextModel(_clip()),
            tokenizer=word_tokenizer(77),
            vae=vae(latent_channels=4, scaling_factor=0.18215),
            scheduler=PNDMScheduler(**SCHEDULE, set_alpha_to_one=False, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        _spread(pipeline.unet)
    return pipeline


def sdxl_pipeline(*, seed: int = 0, in_channels: int = 9) -> StableDiffusionXLInpaintPipeline:
    """Return the pipeline of `write_sdxl_inpaint`, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLInpaintPipeline(
            unet=UNet2DConditionModel(
                sample_size=16,
                in_channels=in_channels,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                cross_attention_dim=64,
                norm_num_groups=8,
            ),
            text_encoder=CLIPTextModel(_clip()),
            text_encoder_2=CLIPTextModelWithProjection(_clip()),
            tokenizer=word_tokenizer(77),
            tokenizer_2=word_tokenizer(77),
            vae=vae(latent_channels=4, scaling_factor=0.13025),
            scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
            add_watermarker=False,
        )
        _spread(pipeline.unet)
    return pipeline


def vae(*, latent_channels: int, scaling_factor: float, shift_factor: float | None = None) -> AutoencoderKL:
    """Return a small autoencoder that reduces by 8."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=128,
        use_quant_conv=shift_factor is None,
        use_post_quant_conv=shift_factor is None,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )


def word_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows a few words, and takes the others for `<unk>`; the first token is `<s>`."""
    vocabulary: dict[str, Any] = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {word: 4 + index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def _clip() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
        projection_dim=32,
        vocab_size=1000,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def _spread(module: torch.nn.Module) -> None:
    """Give what is initialised to zero random values: otherwise prompts, steps and layers would change nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd3": write_sd3,
    "sdxl-inpaint": write_sdxl_inpaint,
    "sd1-inpaint": write_sd1_inpaint,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pipeline that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m limner.diffusion.tiny",
        description="Write a small pipeline with random weights, as a diffusers folder. Its pictures are noise.",
    )
    parser.add_argument("directory", type=Path, help="folder to write; made if it isn't there")
    parser.add_argument("kind", nargs="?", choices=sorted(WRITERS), default="sd3")
    given = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    WRITERS[given.kind](given.directory)


if __name__ == "__main__":
    main()
