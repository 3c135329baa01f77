"""A small SD3 pipeline as a diffusers folder, written once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with every part of SD3.5, random weights, about 1 MB."""
    from limner.diffusion.tiny import write_sd3  # torch takes seconds: only for tests that need it

    return write_sd3(tmp_path_factory.mktemp("tiny") / "sd3")
