"""What files tell of their pictures: sizes, texts, and what they were made from."""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from limner.client import headers, png, recipe
from limner.client.making import generate_options
from limner.v1 import diffusion_pb2, progress_pb2

PARAMETERS = {
    "prompt": "ein roter Apfel, 赤い",
    "negative_prompt": "blur",
    "width_px": "96",
    "height_px": "64",
    "step_count": "28",
    "guidance_scale": "4.5",
    "sampler": "euler",
    "schedule_shift": "3",
    "text_length": "256",
    "truncate_prompt": "true",
    "image_count": "4",
    "skip_layer_guidance": '{"scale": 2.5, "layers": [7, 8, 9], "start": 0.01, "stop": 0.2}',
    "step_cache": '{"interval": 2, "order": 1, "warm_up": 3}',
    "loras": '[{"name": "ink", "scale": 0.5}]',
}


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(1).integers(0, 256, (64, 96, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA")


@pytest.fixture
def made():
    finished = progress_pb2.Finished(model="tiny", model_digest="ab" * 32, seed=41, parameters=PARAMETERS)
    return recipe.recipe_of("generate", finished, 43)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + b"II*\0\x08\0\0\0" + bytes(20)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + b"II*\0\x08\0\0\0" + bytes(20)}),
        ("TIFF", {}),
        ("TIFF", {"big_endian": True}),
    ],
)
def test_the_head_of_a_file_tells_its_size(picture, kind, options):
    data = encoded(picture.convert("RGB"), kind, **options)
    assert headers.size_of(data) == (96, 64)
    for length in range(0, min(len(data), 64)):
        assert headers.size_of(data[:length]) in (None, (96, 64))  # cut off: it may tell nothing


def test_what_is_no_picture_has_no_size():
    assert headers.size_of(b"") is None
    assert headers.size_of(b"%PDF-1.7") is None


def test_a_text_changes_no_pixel_and_no_other_chunk(picture):
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "kept")
    data = encoded(picture, "PNG", pnginfo=info, icc_profile=b"profile" * 30, dpi=(300, 300))
    with_text = png.with_texts(data, {"limner": "ein Äpfel, 赤い"})
    image = Image.open(io.BytesIO(with_text))
    assert image.text == {"limner": "ein Äpfel, 赤い", "Title": "kept"}  # before the pixels: nothing was loaded yet
    assert np.array_equal(np.asarray(image), np.asarray(picture))
    assert image.info["icc_profile"] == b"profile" * 30
    head = data.index(b"IDAT") - 4
    assert with_text.endswith(data[head:])
    assert png.read_texts(with_text) == image.text
    assert png.with_texts(with_text, {"limner": "ein Äpfel, 赤い"}) == with_text


def test_texts_of_all_kinds_are_read(picture):
    info = PngImagePlugin.PngInfo()
    info.add_text("latin", "Äpfel")
    info.add_text("packed", "x" * 1000, zip=True)
    info.add_itxt("itxt", "赤い" * 50, lang="ja", tkey="字", zip=True)
    info.add_itxt("plain", "赤い", lang="ja", tkey="字")
    texts = png.read_texts(encoded(picture, "PNG", pnginfo=info))
    assert texts == {"latin": "Äpfel", "packed": "x" * 1000, "itxt": "赤い" * 50, "plain": "赤い"}


def test_a_small_file_cannot_fill_the_memory_with_a_text(picture):
    bomb = zlib.compress(bytes(png.MAX_TEXT_BYTES + 1))
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"bomb\0\0" + bomb)
    info.add(b"zTXt", b"broken\0\0no zlib")
    info.add_text("kept", "text")
    assert png.read_texts(encoded(picture, "PNG", pnginfo=info)) == {"kept": "text"}


def test_damaged_files_are_refused(picture):
    data = encoded(picture, "PNG")
    for broken in (b"", b"GIF89a", data[:-1], data[:100], data[:20] + b"\xff" + data[21:]):
        with pytest.raises(ValueError, match="PNG file"):
            png.with_texts(broken, {"limner": "text"})


def test_a_recipe_is_kept_and_read_again(picture, made):
    data = recipe.store(encoded(picture, "PNG"), made)
    assert recipe.read(png.read_texts(data)) == made
    assert made.seed == 43
    assert recipe.read(png.read_texts(recipe.store(data, made))) == made  # the earlier one is replaced


def test_other_programs_find_prompt_and_settings_where_they_look(picture, made):
    lines = Image.open(io.BytesIO(recipe.store(encoded(picture, "PNG"), made))).text["parameters"].splitlines()
    assert lines[:2] == ["ein roter Apfel, 赤い", "Negative prompt: blur"]
    assert lines[2].startswith("Steps: 28, Sampler: euler, CFG scale: 4.5, Seed: 43, Size: 96x64, Model: tiny, ")


def test_parameters_stand_in_the_contracts_order(made):
    assert list(made.parameters)[:4] == ["prompt", "negative_prompt", "width_px", "height_px"]
    shuffled = {**dict(reversed(PARAMETERS.items())), "strength": "0.6", "crop_margin_px": "64"}
    again = recipe.recipe_of("generate", progress_pb2.Finished(model="tiny", parameters=shuffled), 43)
    assert list(again.parameters) == [*made.parameters, "crop_margin_px", "strength"]


def test_files_of_other_formats_stay_as_they_are(picture, made):
    for data in (encoded(picture, "WEBP"), b"\x89PNG\r\n\x1a\nno picture"):
        assert recipe.store(data, made) == data


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "{}", '{"version": 1}', json.dumps({"parameters": [], "seed": "x"}), "null"]
)
def test_what_is_no_recipe_is_none(text):
    assert recipe.read({"limner": text}) is None
    assert recipe.read({}) is None


def test_a_recipe_gives_the_options_that_make_its_picture_again(made):
    options = recipe.options_of(made)
    assert options == diffusion_pb2.GenerateOptions(
        **generate_kinds(),
        seed=43,
        skip_layer_guidance=diffusion_pb2.SkipLayerGuidance(scale=2.5, layers=[7, 8, 9], start=0.01, stop=0.2),
        step_cache=diffusion_pb2.StepCache(interval=2, order=1, warm_up=3),
        loras=[diffusion_pb2.Lora(name="ink", scale=0.5)],
    )
    assert not options.HasField("image_count")


def generate_kinds():
    return {
        "model": "tiny",
        "negative_prompt": "blur",
        "width_px": 96,
        "height_px": 64,
        "step_count": 28,
        "guidance_scale": 4.5,
        "sampler": "euler",
        "schedule_shift": 3,
        "text_length": 256,
        "truncate_prompt": True,
    }


@pytest.mark.parametrize("wrong", [{"step_count": "many"}, {"loras": "ink"}, {"step_cache": '{"every": 2}'}])
def test_parameters_that_are_none_are_told(made, wrong):
    bad = recipe.Recipe(**{**vars(made), "parameters": {**PARAMETERS, **wrong}})
    with pytest.raises(ValueError, match="parameters can't be read"):
        recipe.options_of(bad)


def test_every_option_is_kept_or_known_not_to_be():
    """Whoever adds an option to the contract says here what `limner generate --from` makes of it."""
    kept = {field.name for field in diffusion_pb2.GenerateOptions.DESCRIPTOR.fields}
    assert kept - PARAMETERS.keys() == {"model", "seed", "preview_interval", "weight"}
    assert generate_options({"steps": 4}).step_count == 4
