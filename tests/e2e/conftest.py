"""Real processes on free ports: what is tested here is what `limner up` runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from limner.client import Client, LocalServers

ASSETS = Path(__file__).parents[2] / "assets"
DEMO_CLICK = (610.0, 300.0)  # on the orange rosette of assets/demo.jpg


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    blobs = tmp_path_factory.mktemp("blobs")
    with LocalServers(environment={"LIMNER_ROUTER_BLOB_DIR": str(blobs)}) as servers:
        yield servers


@pytest.fixture
def client(servers: LocalServers) -> Iterator[Client]:
    with Client(servers.address("router"), timeout=90) as client:
        yield client
