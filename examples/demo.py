"""The demonstration of `make demo`: one click on a photograph, and the object is gone.

Starts the services as processes of their own, sends one Run with the pipeline of erase.yaml, shows its progress, writes
what each step gave to out/demo/ and stops what it started. It is a program like anybody's: it uses limner.client alone,
and Pillow to put two pictures side by side.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from limner.client import Client, LocalServers, RequestFailed, ServiceFailed, load_pipeline
from limner.client.terminal import Bars

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "assets" / "demo.jpg"
OUT = ROOT / "out" / "demo"


def main() -> int:
    """Runs the demonstration; returns the exit code."""
    console = Console(highlight=False)
    pipeline = load_pipeline(ROOT / "examples" / "erase.yaml")
    click = pipeline.steps[0].segment.options.clicks[0]
    try:
        began = time.monotonic()
        with LocalServers() as servers:
            console.print(f"{', '.join(servers.services)} healthy after {time.monotonic() - began:.1f} s")
            console.print(f"one click on {PHOTOGRAPH.relative_to(ROOT)} at ({click.x_px:.0f}, {click.y_px:.0f})")
            began = time.monotonic()
            with (
                Client(servers.address("router"), timeout=300) as client,
                client.run(pipeline, {"source": PHOTOGRAPH}) as run,
                Bars(console) as bars,
            ):
                for event in run:
                    bars.show(event)
            total = time.monotonic() - began
    except (RequestFailed, ServiceFailed) as failure:
        console.print(f"the demonstration failed: {failure}", style="red", markup=False)
        return 1
    source = Image.open(PHOTOGRAPH).convert("RGB")
    pictures = {"source": source} | {step: Image.open(io.BytesIO(result.data)) for step, result in run.results.items()}
    pictures["before_after"] = side_by_side(source, pictures["erased"], (click.x_px, click.y_px))
    OUT.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(OUT / f"{name}.png")
    console.print(timings(run.seconds, total))
    console.print(f"wrote {', '.join(f'{name}.png' for name in pictures)} to {OUT.relative_to(ROOT)}/", soft_wrap=True)
    return 0


def side_by_side(before: Image.Image, after: Image.Image, click: tuple[float, float]) -> Image.Image:
    """Before, with a ring where the click was, and after, a gap between them."""
    gap = before.width // 60
    both = Image.new("RGB", (2 * before.width + gap, before.height), "white")
    both.paste(before, (0, 0))
    both.paste(after, (before.width + gap, 0))
    x, y = click
    radius = before.width // 80
    for width, colour in ((5, "black"), (3, "white")):
        ImageDraw.Draw(both).ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return both


def timings(seconds: dict[str, float], total: float) -> Table:
    """How long each step took."""
    table = Table("step", "seconds")
    table.columns[1].justify = "right"
    for step, duration in seconds.items():
        table.add_row(step, f"{duration:.2f}")
    table.add_section()
    table.add_row("from the click to the last picture", f"{total:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
