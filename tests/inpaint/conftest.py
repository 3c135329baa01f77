"""Jobs without a call, and a real inpaint server on localhost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from limner.engine.store import Store
from limner.inpaint.__main__ import build
from limner.inpaint.config import InpaintConfig
from limner.inpaint.filler import Filler
from limner.inpaint.models import MODELS
from limner.runtime.job import Job
from limner.runtime.server import start


@pytest.fixture
def job() -> Job:
    return Job(seed=1, previews=False, deadline=None, publish=lambda field, message: None)


@pytest.fixture(scope="session")
def fillers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Filler]]:
    """Every model of the server that needs no weights, loaded once."""
    store = Store(tmp_path_factory.mktemp("store"))
    without_weights = {name: source for name, source in MODELS.items() if not source.CARD.files}
    loaded = {name: source.load(None, store) for name, source in without_weights.items()}  # type: ignore[arg-type]
    yield loaded
    loaded.clear()


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    config = InpaintConfig(port=0, model_dir=str(tmp_path), queue_limit=4)
    options = [("grpc.max_receive_message_length", -1)]
    async with (
        await start("inpaint", config, build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as opened,
    ):
        yield opened
