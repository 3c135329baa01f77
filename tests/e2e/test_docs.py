"""Documents that list what the code defines list all of it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from limner.v1 import errors_pb2

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("service", ["router", "inpaint", "segment", "postprocess", "diffusion"])
def test_every_setting_is_documented_with_its_default(service: str) -> None:
    module = importlib.import_module(f"limner.{service}.config")
    config = getattr(module, f"{service.capitalize()}Config")()
    document = (ROOT / "docs" / "configuration.md").read_text()
    for field in dataclasses.fields(config):
        rows = [line for line in document.splitlines() if line.startswith("|") and f"`{field.name}`" in line]
        assert rows, f"{field.name} of {service} is not in docs/configuration.md"
        default = getattr(config, field.name)
        if default != "" and not isinstance(default, tuple | dict):
            shown = f"{default:g}" if isinstance(default, float) and default < 1e5 else str(default)
            shown = shown.lower() if isinstance(default, bool) else shown
            assert any(shown in row for row in rows), f"the default of {field.name} is {shown}"


def test_every_reason_of_an_error_is_documented() -> None:
    document = (ROOT / "docs" / "contract.md").read_text()
    for name in errors_pb2.ErrorReason.keys()[1:]:
        assert f"| `{name.removeprefix('ERROR_REASON_')}` |" in document
