"""Pictures from text from end to end, with a tiny pipeline: client, router, diffusion server, and what comes after."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.client import Client, LocalServers, load_pipeline
from tests.e2e.conftest import ASSETS

PHOTOGRAPH = ASSETS / "demo.jpg"


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    from limner.diffusion.tiny import write_sd3

    folder = tmp_path_factory.mktemp("diffusion")
    environment = {
        "LIMNER_DIFFUSION_SOURCES": f"tiny={write_sd3(folder / 'tiny')}",
        "LIMNER_DIFFUSION_DEFAULT_MODEL": "tiny",
        "LIMNER_DIFFUSION_MODEL_DIR": str(folder / "models"),
        "LIMNER_DIFFUSION_HUB_CACHE": str(folder / "hub"),
        "LIMNER_DIFFUSION_PRECISION": "fp32",
    }
    services = ("router", "diffusion", "postprocess")
    with LocalServers(services=services, environment=environment) as servers:
        yield servers


@pytest.fixture
def client(diffusion: LocalServers) -> Iterator[Client]:
    with Client(diffusion.address("router"), timeout=100) as client:
        yield client


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_picture_is_made_changed_and_extended_in_one_pipeline(client: Client, tmp_path: Path) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[20:40, 30:60] = 255
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        """
steps:
  - name: room
    generate: {prompt: a house, options: {width_px: 96, height_px: 64, step_count: 3, seed: 7, image_count: 2}}
  - name: furnished
    edit: {image: room, mask: keep, prompt: a red cat, options: {generate: {step_count: 3, seed: 1}}}
  - name: wide
    outpaint: {image: furnished, prompt: a house, options: {right_px: 32, feather_px: 4, generate: {step_count: 3}}}
  - name: large
    upscale: {image: wide, options: {model: lanczos, scale: 2}}
outputs: [room, furnished, wide, large]
"""
    )
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    with client.run(load_pipeline(file), {"keep": buffer.getvalue()}, previews=True) as run:
        events = list(run)
        results = dict(run.results)
    room, furnished, wide, large = (read(results[name].data) for name in ("room", "furnished", "wide", "large"))
    assert len(results["room"].files) == 2
    assert results["room"].seeds == [7, 8]
    assert (furnished[mask == 0] == room[mask == 0]).all()
    assert (furnished[mask > 0] != room[mask > 0]).any()
    assert (wide[:, :92] == furnished[:, :92]).all()
    assert (wide.shape, large.shape) == ((64, 128, 3), (128, 256, 3))
    previews = {(event.step, event.preview.image_index) for event in events if event.WhichOneof("event") == "preview"}
    assert {("room", 0), ("room", 1), ("wide", 0)} <= previews


def test_helpers_make_pictures_and_tell_what_they_were_made_from(client: Client) -> None:
    made = client.generate("a red apple", width=64, height=64, steps=3, count=2, seed=4)
    again = client.generate("a red apple", width=64, height=64, steps=3, seed=made.seeds[1])
    assert np.abs(read(made.files[1]).astype(int) - read(again.data)).max() <= 1
    assert made.finished.model == "tiny"
    assert made.finished.parameters["step_count"] == "3"
    photograph = np.asarray(Image.open(PHOTOGRAPH))
    extended = read(client.outpaint(PHOTOGRAPH, left=64, feather=0, steps=2, format="png").data)
    assert (extended[:, 64:] == photograph).all()


def test_the_command_makes_a_picture_and_makes_it_again_from_its_file(diffusion: LocalServers, tmp_path: Path) -> None:
    environment = {**os.environ, "LIMNER_ADDRESS": diffusion.address("router")}

    def limner(*arguments: str) -> str:
        command = [sys.executable, "-m", "limner.client", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    limner("generate", "a small tree", "-o", "tree.png", "--width", "64", "--height", "64", "--steps", "3")
    told = json.loads(limner("info", "--json", "tree.png"))
    assert "a small tree" in json.dumps(told)
    limner("generate", "--from", "tree.png", "-o", "again.png")
    first, second = (read((tmp_path / name).read_bytes()).astype(int) for name in ("tree.png", "again.png"))
    assert np.abs(first - second).max() <= 1
