"""Where models are found, and what is said of what isn't there. Folders are written by hand: no network, no torch."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from limner.core.errors import ModelNotInstalled
from limner.diffusion.encoders import find_encoders
from limner.diffusion.facts import variant_of
from limner.diffusion.shapes import shape_of
from limner.diffusion.sources import Tensor, find, is_hub_id, is_whole, read_header, weight_files

COMMIT = "c" * 40


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of zeros in fp16."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return path


def write_folder(folder: Path, kind: str = "StableDiffusionPipeline", **configs) -> Path:
    """A diffusers folder of the older kind, with one small tensor in each part."""
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    others = {"scheduler": "PNDMScheduler", "tokenizer": "CLIPTokenizer"}
    index = {"_class_name": kind, **{name: ["diffusers", cls] for name, cls in {**parts, **others}.items()}}
    index["safety_checker"] = [None, None]
    for name in parts:
        write_weights(folder / name / "model.safetensors", {"conv_in.weight": (8, 9, 3, 3)})
        (folder / name / "config.json").write_text(json.dumps(configs.get(name, {})))
    for name in others:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}_config.json").write_text(json.dumps(configs.get(name, {})))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def in_cache(cache: Path, hub: str) -> Path:
    """The folder of a snapshot in the hub's cache, to be written."""
    root = cache / f"models--{hub.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    return root / "snapshots" / COMMIT


UNET = {"sample_size": 64, "in_channels": 9}
VAE = {"block_out_channels": [128, 256, 512, 512]}


def test_a_folder_is_known_by_its_index(tmp_path, tiny_sd3):
    assert find("tiny", str(tiny_sd3)).family == "sd3"
    assert find("mine", str(write_folder(tmp_path / "a"))).family == "sd1"
    place = find("mine", str(write_folder(tmp_path / "b", "StableDiffusionInpaintPipeline")))
    assert (place.family, place.is_file, place.parts()) == ("sd1", False, ["unet", "text_encoder", "vae"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "lacks unet/config.json"),
        (lambda folder: (folder / "vae" / "model.safetensors").unlink(), r"lacks vae/\*\.safetensors"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "lacks tokenizer"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "can't be read as JSON"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), "FluxPipeline"),
    ],
)
def test_what_is_missing_of_a_folder_is_named(spoil, said, tmp_path):
    folder = write_folder(tmp_path / "it")
    spoil(folder)
    with pytest.raises(ModelNotInstalled, match=said):
        find("mine", str(folder))


def test_a_missing_t5_may_be_left_out(tmp_path, tiny_sd3):
    folder = shutil.copytree(tiny_sd3, tmp_path / "it")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    with pytest.raises(ModelNotInstalled, match=r"lacks text_encoder_3/config\.json, tokenizer_3; .* set t5 = false"):
        find("mine", str(folder))
    assert find("mine", str(folder), t5=False).family == "sd3"
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelNotInstalled, match=r"lacks text_encoder_3(?!.*t5 = false)"):
        find("mine", str(folder))


def test_pickles_are_refused_with_the_reason(tmp_path):
    folder = write_folder(tmp_path / "it")
    (folder / "unet" / "model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelNotInstalled, match=r"as pickles alone, which are programs.*safe_serialization"):
        find("mine", str(folder))


def test_a_path_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelNotInstalled, match=r"mine is not installed: there is no .*/nothing"):
        find("mine", str(tmp_path / "nothing"))


def test_shards_have_to_be_all_there_and_plain_weights_go_before_their_variants(tmp_path):
    for name in ("model-00001-of-00002", "model-00002-of-00002", "model.fp16"):
        write_weights(tmp_path / f"{name}.safetensors", {name: (2,)})
    index = tmp_path / "model.safetensors.index.json"
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    assert [path.name for path in weight_files(tmp_path)] == shards
    (tmp_path / shards[1]).unlink()
    assert [path.name for path in weight_files(tmp_path)] == ["model.fp16.safetensors"]
    (tmp_path / "model.fp16.safetensors").unlink()
    assert weight_files(tmp_path) == []


def test_a_hub_model_is_taken_from_the_cache(tmp_path):
    with pytest.raises(ModelNotInstalled, match=r"not in the cache.*limner models pull mine.*offline = false"):
        find("mine", "somebody/model", cache=str(tmp_path))
    write_folder(in_cache(tmp_path, "somebody/model"), unet=UNET, vae=VAE)
    place = find("mine", "somebody/model", cache=str(tmp_path))
    assert place.path.name == COMMIT
    assert variant_of(place).width == 512
    (place.path / "unet" / "model.safetensors").unlink()  # broken off
    with pytest.raises(ModelNotInstalled, match=r"lacks unet/\*\.safetensors; .limner models pull mine"):
        find("mine", "somebody/model", cache=str(tmp_path))


def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_id("stabilityai/stable-diffusion-3.5-large")
    assert not is_hub_id("models/mine")  # which exists
    assert not is_hub_id("/srv/mine")
    assert not is_hub_id("mine.safetensors")


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "sd3"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "sd3"),
        (["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"], "sdxl"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "sd1"),
    ],
)
def test_a_single_file_is_known_by_its_tensors(names, family, tmp_path):
    file = write_weights(tmp_path / "it.safetensors", dict.fromkeys(names, (8, 9, 3, 3)))
    place = find("mine", str(file))
    assert (place.family, place.is_file, place.weights()) == (family, True, {"": (file,)})


def test_other_files_are_refused(tmp_path):
    other = write_weights(tmp_path / "lora.safetensors", {"lora_A.weight": (2, 2)})
    with pytest.raises(ModelNotInstalled, match="tensors of no checkpoint that is known here"):
        find("mine", str(other))
    (tmp_path / "it.ckpt").write_bytes(b"PK\3\4 a zip file, as torch writes it")
    with pytest.raises(ModelNotInstalled, match="only safetensors are read"):
        find("mine", str(tmp_path / "it.ckpt"))


def test_a_file_that_is_cut_off_is_seen(tmp_path):
    file = write_weights(tmp_path / "it.safetensors", {"a": (4, 4)})
    assert is_whole(file)
    assert read_header(file) == {"a": Tensor("F16", (4, 4))}
    file.write_bytes(file.read_bytes()[:-1])
    assert not is_whole(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ModelNotInstalled, match="cut off"):
        read_header(file)


def test_facts_of_older_models_come_from_their_configurations(tmp_path):
    folder = write_folder(tmp_path / "a", unet=UNET, vae=VAE, scheduler={"_class_name": "DDIMScheduler"})
    facts = variant_of(find("mine", str(folder)))
    assert (facts.name, facts.family, facts.width, facts.sampler, facts.tasks) == ("mine", "sd1", 512, "DDIM", {"edit"})
    folder = write_folder(tmp_path / "b", unet={"sample_size": 32, "in_channels": 4}, vae=VAE)
    facts = variant_of(find("mine", str(folder)))
    assert facts.tasks == {"edit", "generate"}
    assert (facts.width, facts.max_pixels) == (256, 4 * 256**2)
    assert facts.sampler == "PNDM"


def test_a_configuration_that_lacks_something_is_told(tmp_path):
    with pytest.raises(ModelNotInstalled, match=r"mine can't be used: the configurations in .* lack something"):
        variant_of(find("mine", str(write_folder(tmp_path / "it"))))


def test_shapes_are_those_of_the_loaded_networks(tiny_sd3):
    place = find("tiny", str(tiny_sd3))
    shape = shape_of(place, find_encoders(place))
    assert shape.t5 is not None
    assert shape_of(place, find_encoders(place, t5=False)).t5 is None
    assert (shape.width, shape.vae_width, len(shape.clip)) == (64, 8, 2)
    assert sum(path.stat().st_size for path in place.weights()["transformer"]) > 4 * shape.denoiser.values
    assert 0 < shape.denoiser.block < shape.denoiser.linear < shape.denoiser.values


FILE = ["joint_blocks.0.x_block.attn.qkv.weight"]


def test_text_encoders_of_a_single_file_are_found_where_they_are_said_to_be(tmp_path, tiny_sd3):
    file = write_weights(tmp_path / "sd3.safetensors", dict.fromkeys(FILE, (2, 2)))
    place = find("mine", str(file))
    with pytest.raises(ModelNotInstalled, match=r"lacks clip_l\.safetensors; .* \[diffusion\] text_encoders"):
        find_encoders(place, cache=str(tmp_path))
    assert set(find_encoders(place, str(tiny_sd3))) == {"text_encoder", "text_encoder_2", "text_encoder_3"}
    beside = tmp_path / "text_encoders"
    for name in ("clip_l", "clip_g"):
        write_weights(beside / f"{name}.safetensors", {"a": (2,)})
    with pytest.raises(ModelNotInstalled, match="openai/clip-vit-large-patch14 is not in the cache"):
        find_encoders(place, cache=str(tmp_path))
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.copytree(tiny_sd3 / name, beside / name)
    assert set(find_encoders(place)) == {"text_encoder", "text_encoder_2"}  # T5 is optional
    for name in ("t5xxl_fp8_e4m3fn", "t5xxl_fp16"):
        write_weights(beside / f"{name}.safetensors", {"a": (2,)})
    assert find_encoders(place)["text_encoder_3"].path.name == "t5xxl_fp16.safetensors"
    assert "text_encoder_3" not in find_encoders(place, t5=False)


def test_tokenizers_come_from_the_hubs_cache_where_no_folder_has_them(tmp_path):
    names = [f"text_encoders.{name}.transformer.shared.weight" for name in ("clip_l", "clip_g", "t5xxl")]
    place = find("mine", str(write_weights(tmp_path / "all.safetensors", dict.fromkeys([*FILE, *names], (2, 2)))))
    for hub in ("openai/clip-vit-large-patch14", "google/t5-v1_1-xxl"):
        folder = in_cache(tmp_path / "hub", hub)
        folder.mkdir(parents=True)
        (folder / "tokenizer_config.json").write_text("{}")
    found = find_encoders(place, cache=str(tmp_path / "hub"))
    assert {encoder.path for encoder in found.values()} == {place.path}
    assert found["text_encoder_3"].header == {"shared.weight": Tensor("F16", (2, 2))}
    assert "t5-v1_1-xxl" in str(found["text_encoder_3"].tokenizer)
