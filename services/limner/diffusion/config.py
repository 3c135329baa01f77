"""What the diffusion server can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from limner.runtime.config import ServerConfig, within


@dataclass(frozen=True)
class DiffusionConfig(ServerConfig):
    """[diffusion] of the configuration, and LIMNER_DIFFUSION_*."""

    port: int = 7404
    default_model: str = "sd3.5-medium"
    default_edit_model: str = ""  # for Edit and Outpaint; empty: the default model, if it edits
    # Where models are, by name: a diffusers folder, a .safetensors file, or a hub id (`owner/name`). Names of models
    # that Limner knows say where these are; others are models of one's own. In the environment: name=place,name=place.
    sources: dict[str, str] = field(default_factory=dict)
    text_encoders: str = ""  # folder with text encoders and tokenizers for single files that hold none
    offline: bool = True  # take hub models from the cache alone; false: fetch what is missing when a model is loaded
    hub_cache: str = ""  # empty: the Hugging Face library's own
    lora_dir: str = ""  # folder of LoRAs; empty: `loras` in the model directory
    preview_decoder: str = ""  # folder of a tiny autoencoder (AutoencoderTiny, 16 channels) that paints SD3's previews
    quantisation: Literal["auto", "none", "int8", "fp8", "nf4"] = "auto"  # of the transformer's weights
    text_encoder_placement: Literal["auto", "device", "offload", "cpu"] = "auto"
    t5: bool = True  # false: leave the T5 encoder out, which takes most of the memory and reads long prompts
    compile: bool = False  # compile the transformer's blocks: seconds at the first use of a size, faster afterwards
    max_active: int = 16  # pictures that are made at the same time
    prompt_cache_mb: int = 256  # MiB of encoded prompts that are kept

    def __post_init__(self) -> None:
        super().__post_init__()
        within("max_active", self.max_active, 1, 1024)
        within("prompt_cache_mb", self.prompt_cache_mb, 0, 1 << 20)
