"""What is said of the known models, before anything of them is here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from limner.core.geometry import Size
from limner.diffusion.models import MODELS
from limner.diffusion.sizes import is_legal

PUBLISHED = ["sd3.5-medium", "sd3.5-large", "sd3.5-large-turbo", "sd3-medium", "sdxl-inpaint", "sd1.5-inpaint"]
NAMES = [*PUBLISHED, "limner-sketch"]


def test_the_names_are_these():
    assert list(MODELS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_card_facts_and_sizes_are_of_one_model(name):
    known = MODELS[name]
    assert known.CARD.name == known.VARIANT.name == known.SHAPE.name == name
    assert known.VARIANT.family == known.SHAPE.family
    assert known.CARD.task in known.VARIANT.tasks
    assert known.CARD.size_multiple == known.VARIANT.size_multiple
    assert is_legal(Size(known.VARIANT.width, known.VARIANT.height), known.VARIANT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_ones_are_of_the_hub_and_untried(name):
    known = MODELS[name]
    assert known.CARD.source.endswith(known.CARD.hub)
    assert known.CARD.needs_acceptance
    assert not known.CARD.tried
    assert known.CARD.hub_bytes > 2e9


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "sampler", "layers"),
    [
        ("sd3.5-large", 40, 4.5, "dpmpp-2m", 38),
        ("sd3.5-large-turbo", 4, 1.0, "turbo", 38),
        ("sd3.5-medium", 50, 5.0, "dpmpp-2m", 24),
        ("sd3-medium", 50, 5.0, "dpmpp-2m", 24),
    ],
)
def test_defaults_are_the_published_ones(name, steps, guidance, sampler, layers):
    facts = MODELS[name].VARIANT
    assert (facts.step_count, facts.guidance_scale, facts.sampler, facts.layer_count) == (
        steps,
        guidance,
        sampler,
        layers,
    )
    assert facts.shift == 3.0
    assert ("turbo" in facts.samplers) == (name == "sd3.5-large-turbo")


def test_sizes_go_from_a_quarter_to_one_megapixel_and_to_two_for_medium():
    for name, most in (("sd3.5-large", 1), ("sd3.5-large-turbo", 1), ("sd3-medium", 1), ("sd3.5-medium", 2)):
        facts = MODELS[name].VARIANT
        assert (facts.min_pixels, facts.max_pixels) == (512 * 512, most * 1024 * 1024)


def test_the_nineteen_samplers_are_offered_once_each():
    for name in ("sdxl-inpaint", "sd1.5-inpaint"):
        samplers = MODELS[name].VARIANT.samplers
        assert len(samplers) == len(set(samplers)) == 19
    assert MODELS["sdxl-inpaint"].VARIANT.sampler == "Euler"
    assert MODELS["sd1.5-inpaint"].VARIANT.sampler == "PNDM"


def test_every_sampler_that_is_offered_exists():
    from limner.diffusion.legacy.samplers import SAMPLERS

    assert set(MODELS["sd1.5-inpaint"].VARIANT.samplers) == set(SAMPLERS)


def test_facts_need_no_torch():
    script = "import sys, limner.diffusion.models; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
