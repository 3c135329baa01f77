"""The one job that is real from end to end: a click on a photograph to the repaired, enlarged photograph."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from limner.client import Client, load_pipeline
from tests.e2e.conftest import ASSETS, DEMO_CLICK

PHOTOGRAPH = ASSETS / "demo.jpg"
ROSETTE = (slice(248, 356), slice(568, 682))  # rows, columns


def orange(pixels: np.ndarray) -> int:
    """How many pixels are as orange as the rosette."""
    hue, saturation, value = np.moveaxis(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), 2, 0)
    return int(((hue > 4) & (hue < 22) & (saturation > 140) & (value > 110)).sum())


def test_a_click_erases_the_object_and_nothing_else(client: Client) -> None:
    pipeline = load_pipeline(ASSETS.parent / "examples" / "erase.yaml")
    with client.run(pipeline, {"source": PHOTOGRAPH}, intermediates=True) as run:
        events = list(run)
        pictures = {name: np.asarray(Image.open(io.BytesIO(result.data))) for name, result in run.results.items()}

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].WhichOneof("event") == "accepted"
    assert events[-1].WhichOneof("event") == "run_finished"
    kinds = {(event.step, event.WhichOneof("event")) for event in events}
    for step in ("segment", "mask", "erased", "upscaled"):
        assert {(step, "started"), (step, "result"), (step, "finished")} <= kinds

    source = np.asarray(Image.open(PHOTOGRAPH))
    mask, erased = pictures["mask"], pictures["erased"]
    assert 0.005 < (mask > 0).mean() < 0.05
    assert (mask[ROSETTE] > 0).sum() > 0.9 * (mask > 0).sum()
    assert np.array_equal(erased[mask == 0], source[mask == 0])
    assert orange(source[ROSETTE]) > 1500
    assert orange(erased[ROSETTE]) < 0.05 * orange(source[ROSETTE])
    assert pictures["upscaled"].shape == (1200, 1920, 3)
    halved = np.asarray(Image.fromarray(pictures["upscaled"]).resize((960, 600), Image.Resampling.BOX), np.float32)
    assert np.abs(halved - erased).mean() < 8  # the same picture, only larger


def test_helpers_do_in_a_line_what_the_pipeline_does(client: Client) -> None:
    mask = client.segment(PHOTOGRAPH, clicks=[DEMO_CLICK])
    erased = np.asarray(Image.open(io.BytesIO(client.erase(PHOTOGRAPH, mask=mask, grow=12, seed=7, format="png"))))
    source = np.asarray(Image.open(PHOTOGRAPH))
    assert orange(erased[ROSETTE]) < 0.05 * orange(source[ROSETTE])


def test_the_result_keeps_the_format_of_the_photograph(client: Client) -> None:
    assert Image.open(io.BytesIO(client.erase(PHOTOGRAPH, clicks=[DEMO_CLICK]))).format == "JPEG"


def test_sixteen_bits_and_alpha_pass_through_the_whole_pipeline(client: Client) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (120, 160, 4), dtype=np.uint16)
    mask = np.zeros((120, 160), np.uint8)
    mask[40:60, 50:80] = 255
    ok, source = cv2.imencode(".png", pixels)
    assert ok
    erased = client.erase(source.tobytes(), mask=cv2.imencode(".png", mask)[1].tobytes())
    result = cv2.imdecode(np.frombuffer(erased, np.uint8), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16
    assert np.array_equal(result[mask == 0], pixels[mask == 0])
    assert np.array_equal(result[..., 3], pixels[..., 3])
    assert not np.array_equal(result[mask > 0], pixels[mask > 0])
