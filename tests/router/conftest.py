"""Fixtures: a router and fake model servers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from limner.router.__main__ import build
from limner.router.config import RouterConfig
from limner.runtime.server import start

# pytest's importlib mode puts no test directory on the path, and these tests share more than fixtures.
sys.path.append(str(Path(__file__).parent))

from router_fakes import FakeServer, Router

KINDS = ("inpaint", "segment", "postprocess", "diffusion")


@pytest.fixture
async def fakes() -> AsyncIterator[Callable[[], Awaitable[FakeServer]]]:
    """`await fakes()` starts a server."""
    servers = []

    async def make() -> FakeServer:
        server = FakeServer()
        await server.start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture
async def routers(tmp_path: Any) -> AsyncIterator[Callable[..., Awaitable[Router]]]:
    """`await routers(inpaint=[server.address])` starts a router that knows these servers and waits for their health."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*, wait: bool = True, **settings: Any) -> Router:
            targets = {kind: tuple(settings.pop(kind, ())) for kind in KINDS}
            defaults: dict[str, Any] = {
                "port": 0,
                "blob_dir": str(tmp_path / "blobs"),
                "connect_wait": 0.5,
                "drain_seconds": 0.0,
            }
            server = await start("router", RouterConfig(**targets, **(defaults | settings)), build)
            await stack.enter_async_context(server)
            router = Router(server)
            stack.push_async_callback(router.channel.close)
            if wait:
                await router.until_healthy(*(address for kind in targets.values() for address in kind))
            return router

        yield make


@pytest.fixture
async def fake(fakes: Any) -> FakeServer:
    return await fakes()


@pytest.fixture
async def router(routers: Any, fake: FakeServer) -> Router:
    """A router with one server that does everything."""
    return await routers(**{kind: [fake.address] for kind in KINDS})
