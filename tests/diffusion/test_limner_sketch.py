"""The model that ships: facts that are those of its files, chosen where there is no other, loaded by digest, and equal
to diffusers' pipeline of the same folder.

Nothing here is skipped where the weights are missing: without them Limner is not whole."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from limner.core.errors import ModelNotInstalled
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.digests import Digests
from limner.diffusion.library import Library
from limner.diffusion.models import MODELS
from limner.diffusion.parameters import Parameters
from limner.diffusion.shelf import Shelf
from limner.engine.catalog import State
from limner.engine.fetch import StoreError
from limner.engine.shipped import folder_of
from limner.engine.store import Store
from limner.models.pipelines import Pipelines
from tests.diffusion.sd3 import finish, latents, photograph, start
from training.sketch.sample import GUIDANCE, SHIFT, STEPS

NAME = "limner-sketch"
KNOWN = MODELS[NAME]


@pytest.fixture
def library(tmp_path):
    """`library(**settings)` of a machine on which nothing was ever installed."""

    def make(**settings):
        given = {"hub_cache": str(tmp_path / "hub"), "device": "cpu", "precision": "fp32", "thread_count": 1}
        return Library(DiffusionConfig(**{**given, **settings}), Store(tmp_path / "models"))

    return make


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The model in fp32."""
    folder = tmp_path_factory.mktemp("new")
    config = DiffusionConfig(hub_cache=str(folder / "hub"), device="cpu", precision="fp32", thread_count=1)
    with Library(config, Store(folder / "models")).lease(NAME) as lease:
        yield lease.model


def parameters(**changes):
    facts = KNOWN.VARIANT
    plain = Parameters(
        prompt="a red apple",
        negative_prompt="",
        width=facts.width,
        height=facts.height,
        step_count=3,
        guidance_scale=facts.guidance_scale,
        sampler="euler",
        shift=facts.shift,
        text_length=facts.text_length,
        seed=7,
    )
    return replace(plain, **changes)


def shelf(tmp_path, **settings):
    library = Library(DiffusionConfig(**settings), Store(tmp_path / "models"))
    return Shelf(DiffusionConfig(**settings), library.loras)


def test_facts_are_those_of_the_files(tmp_path):
    found = shelf(tmp_path)
    place = found.place(NAME)
    assert place.path == folder_of(NAME)
    assert found.variant(NAME) == KNOWN.VARIANT
    assert found.shape(place) == KNOWN.SHAPE
    assert KNOWN.VARIANT.width == place.config("transformer")["sample_size"] * 8
    assert KNOWN.VARIANT.max_side <= place.config("transformer")["pos_embed_max_size"] * KNOWN.VARIANT.size_multiple
    assert KNOWN.VARIANT.layer_count == place.config("transformer")["num_layers"]


def test_its_defaults_are_those_that_it_was_looked_at_with():
    facts = KNOWN.VARIANT
    assert (facts.step_count, facts.guidance_scale, facts.shift) == (STEPS, GUIDANCE, SHIFT)
    assert facts.sampler == "euler"


def test_a_copy_of_it_elsewhere_has_the_same_facts_by_its_architecture(tmp_path):
    found = shelf(tmp_path, sources={"mine": str(folder_of(NAME))})
    assert found.variant("mine") == replace(KNOWN.VARIANT, name="mine")


def test_it_is_the_default_of_a_new_machine(library, tmp_path):
    models = library()
    assert models.model_for(None, "generate") == models.model_for(None, "edit") == NAME
    assert models.state(NAME) is State.INSTALLED
    assert models.placement(NAME).device == "cpu"


def test_anything_else_that_is_installed_goes_before_it(library, tiny_sd3):
    models = library(sources={"tiny": str(tiny_sd3)})
    assert models.model_for(None, "generate") == models.model_for(None, "edit") == "tiny"
    assert library(default_model=NAME, sources={"tiny": str(tiny_sd3)}).model_for(None, "generate") == NAME


def test_its_digest_is_known_before_it_is_loaded_and_is_that_of_its_files(library, tmp_path):
    models = library()
    assert models.digest(NAME) == KNOWN.CARD.digest
    found = shelf(tmp_path)
    assert Digests(tmp_path / "digests.json").of(found.files(found.place(NAME)), read=True) == KNOWN.CARD.digest


def test_it_is_not_loaded_from_files_of_another_digest(library, monkeypatch):
    files = tuple(
        replace(file, digest=f"sha256:{'0' * 64}") if file.name.startswith("transformer/diff") else file
        for file in KNOWN.CARD.files
    )
    monkeypatch.setattr(MODELS[NAME], "CARD", replace(KNOWN.CARD, files=files))
    with pytest.raises(ModelNotInstalled, match=r"is not the file that limner-sketch was made for: pip install"):
        library().lease(NAME)


def test_a_file_that_is_missing_is_told_with_the_mend(library, monkeypatch, tmp_path):
    shutil.copytree(folder_of(NAME), tmp_path / NAME)
    (tmp_path / NAME / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr("limner.diffusion.shelf.folder_of", lambda name: tmp_path / name)
    models = library()
    assert models.state(NAME) is State.NOT_INSTALLED
    with pytest.raises(ModelNotInstalled, match=r"lacks vae/\*\.safetensors; pip install --force-reinstall"):
        models.variant(NAME)


def test_the_models_command_says_the_truth_of_it(tmp_path):
    pipelines = Pipelines(DiffusionConfig(hub_cache=str(tmp_path)), Store(tmp_path / "models"))
    (card,) = [card for card in pipelines.cards() if card.name == NAME]
    assert pipelines.missing(card) == ""
    assert pipelines.verify(card) == []
    assert pipelines.pull(card, accept_licence=False) == "is here already"
    assert pipelines.size(card) == sum(path.stat().st_size for path in folder_of(NAME).rglob("*.safetensors"))
    with pytest.raises(StoreError, match="a part of Limner"):
        pipelines.rm(card)
    assert folder_of(NAME).is_dir()


def test_verifying_it_finds_what_was_changed(tmp_path, monkeypatch):
    copy = tmp_path / NAME
    shutil.copytree(folder_of(NAME), copy)
    content = bytearray((copy / "scheduler" / "scheduler_config.json").read_bytes())
    (copy / "scheduler" / "scheduler_config.json").write_bytes(content + b" ")
    monkeypatch.setattr(Store, "_place", lambda self, card, file: copy / file.name)
    pipelines = Pipelines(DiffusionConfig(hub_cache=str(tmp_path)), Store(tmp_path / "models"))
    (fault,) = pipelines.verify(KNOWN.CARD)
    assert fault.startswith("scheduler/scheduler_config.json is damaged or of another version: pip install")


@pytest.mark.parametrize("text_length", [KNOWN.VARIANT.text_length, 64])
def test_pictures_are_those_of_diffusers(loaded, text_length):
    asked = parameters(text_length=text_length)
    row = start(loaded, asked)
    finish(loaded, [row])
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder_of(NAME), text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline.to(torch.float32)(
        prompt=asked.prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.step_count,
        guidance_scale=asked.guidance_scale,
        max_sequence_length=asked.text_length,
        generator=torch.Generator().manual_seed(asked.seed),
        output_type="latent",
    ).images[0]
    torch.testing.assert_close(latents(row), theirs, atol=1e-3, rtol=0)


def test_what_a_mask_does_not_cover_is_the_same_whatever_is_asked_for(loaded):
    mask = np.zeros((96, 128), np.bool_)
    mask[32:64, 40:88] = True
    image = photograph(128, 96)
    first, other = (
        filled(loaded, parameters(width=128, height=96, prompt=prompt, seed=seed), image, mask)
        for prompt, seed in (("a red apple", 1), ("a blue house", 2))
    )
    apart = np.abs(first - other)
    far = np.ones_like(mask)
    far[16:80, 24:104] = False
    assert apart[far].mean() < apart[mask].mean() / 4
    assert apart[mask].mean() > 5


def filled(model, asked, image, mask):
    row = start(model, asked, image=image, mask=mask)
    finish(model, [row])
    return model.decode(row).astype(float)
