"""A machine on which nothing was ever pulled: every service starts, and erases and makes pictures with what ships."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.client import Client, LocalServers
from limner.engine.shipped import shipped
from limner.v1 import models_pb2
from tests.e2e.conftest import ASSETS

PHOTOGRAPH = ASSETS / "demo.jpg"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def new_machine(home: Path) -> Iterator[LocalServers]:
    empty = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "HF_HOME": str(home / "hub")}
    empty |= {name: "" for name in ("LIMNER_MODEL_DIR", "LIMNER_CONFIG") if name in os.environ}
    with LocalServers(environment={**empty, "HF_HUB_OFFLINE": "1"}) as servers:
        yield servers


@pytest.fixture
def client(new_machine: LocalServers) -> Iterator[Client]:
    with Client(new_machine.address("router"), timeout=100) as client:
        yield client


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def hole() -> tuple[bytes, np.ndarray]:
    """Return a mask of the photograph's size as a PNG, and where it is white."""
    with Image.open(PHOTOGRAPH) as photograph:
        width, height = photograph.size
    mask = np.zeros((height, width), np.uint8)
    mask[250:350, 570:680] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue(), mask > 0


def test_both_are_offered_with_their_digests(client: Client) -> None:
    models = {model.name: model for model in client.models()}
    for name, server in (("limner-erase", "inpaint"), ("limner-sketch", "diffusion")):
        assert models[name].server == server
        assert models[name].state != models_pb2.MODEL_STATE_NOT_INSTALLED
        assert len(models[name].digest) == 64
    assert models["limner-sketch"].default
    assert models["limner-erase"].digest == shipped("limner-erase")[0].digest.removeprefix("sha256:")


def test_an_object_is_erased_and_nothing_else_is_touched(client: Client) -> None:
    mask, white = hole()
    result = client.erase(PHOTOGRAPH, mask=mask, model="limner-erase", format="png")
    before, after = np.asarray(Image.open(PHOTOGRAPH).convert("RGB")), read(result)
    assert (after[~white] == before[~white]).all()
    assert (after[white] != before[white]).mean() > 0.5


def test_a_picture_is_made_changed_and_extended(client: Client) -> None:
    made = client.generate("a red apple", steps=4, seed=1)
    assert made.finished.model == "limner-sketch"
    assert len(made.finished.model_digest) == 64
    apple = read(made.data)
    assert apple.shape == (128, 128, 3)
    mask, white = hole()
    changed = client.edit(PHOTOGRAPH, "a red apple", mask=mask, steps=3, seed=1, format="png")
    assert changed.finished.model == "limner-sketch"
    before, after = np.asarray(Image.open(PHOTOGRAPH).convert("RGB")), read(changed.data)
    assert (after[~white] == before[~white]).all()
    assert (after[white] != before[white]).mean() > 0.5
    extended = client.outpaint(made.data, "a red apple", right=32, feather=0, steps=3, format="png")
    assert read(extended.data).shape == (128, 160, 3)


def test_a_red_apple_is_red(client: Client) -> None:
    """Of four pictures; that it is an apple too is measured by `training.sketch.evaluate`."""
    made = client.generate("a red apple", count=4, seed=1)
    for file in made.files:
        middle = read(file)[40:88, 40:88].reshape(-1, 3).mean(axis=0)
        assert middle[0] > 1.3 * max(middle[1], middle[2])


def test_the_command_needs_no_model_named(new_machine: LocalServers, tmp_path: Path) -> None:
    environment = {**os.environ, "LIMNER_ADDRESS": new_machine.address("router")}
    command = [sys.executable, "-m", "limner.client", "generate", "a red apple", "--steps", "2", "-o", "apple.png"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert read((tmp_path / "apple.png").read_bytes()).shape == (128, 128, 3)


def test_nothing_was_written_to_the_model_directory(new_machine: LocalServers, home: Path) -> None:
    assert not list(home.rglob("*.onnx"))
    assert not list(home.rglob("*.safetensors"))
