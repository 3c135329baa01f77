"""The demonstration of `make demo`: a photograph is repaired, changed and extended by the models that ship with Limner.

Starts the services as processes of their own, sends one Run with the pipeline of demo.yaml, shows its progress and
previews, writes what each step gave to out/demo/, and all of it on one sheet, sheet.png. Stops what it started. It is a
program like anybody's: it uses limner.client alone, and Pillow to lay pictures out.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from limner.client import Client, LocalServers, RequestFailed, ServiceFailed, load_pipeline
from limner.client.previews import way_of
from limner.client.results import Result
from limner.client.terminal import Bars
from limner.v1.router_pb2 import Step

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "assets" / "ladybird.jpg"
PIPELINE = ROOT / "examples" / "demo.yaml"
OUT = ROOT / "out" / "demo"


@dataclass(frozen=True)
class Done:
    """What a run gave: results, previews and seconds by step, and the seconds from the request to the last event."""

    results: dict[str, Result]
    previews: dict[str, list[bytes]]
    seconds: dict[str, float]
    total: float

    def picture(self, step: str) -> Image.Image:
        return Image.open(io.BytesIO(self.results[step].data)).convert("RGB")

    def previews_of(self, step: str) -> list[Image.Image]:
        return [Image.open(io.BytesIO(data)).convert("RGB") for data in self.previews[step]]

    def note(self, step: str) -> str:
        """Say which model did a step, and how long it took."""
        finished = self.results[step].finished
        model = finished.model if finished is not None else ""
        return ", ".join(part for part in (model, f"{self.seconds[step]:.2f} s") if part)


def main() -> int:
    """Run the demonstration and return the exit code."""
    console = Console(highlight=False)
    try:
        began = time.monotonic()
        with LocalServers() as servers:
            console.print(f"{', '.join(servers.services)} healthy after {time.monotonic() - began:.1f} s")
            done = run(servers.address("router"), console)
    except (RequestFailed, ServiceFailed) as failure:
        console.print(f"the demonstration failed: {failure}", style="red", markup=False)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    for step in done.results:
        done.picture(step).save(OUT / f"{step}.png")
    contact_sheet(done).save(OUT / "sheet.png")
    console.print(timings(done))
    console.print(f"wrote sheet.png and each step's picture to {OUT.relative_to(ROOT)}/", soft_wrap=True)
    return 0


def run(address: str, console: Console) -> Done:
    """Send the pipeline to a router and read all that comes back."""
    previews: dict[str, list[bytes]] = defaultdict(list)
    way = way_of(os.environ, console.color_system) if console.is_terminal else None
    began = time.monotonic()
    with (
        Client(address, timeout=300) as client,
        client.run(load_pipeline(PIPELINE), {"source": PHOTOGRAPH}, previews=True) as run,
        Bars(console, way) as bars,
    ):
        for event in run:
            bars.show(event)
            if event.preview.image.encoded:
                previews[event.step].append(event.preview.image.encoded)
    return Done(run.results, previews, run.seconds, time.monotonic() - began)


def step_of(name: str) -> Step:
    """Return a step of the pipeline."""
    return next(step for step in load_pipeline(PIPELINE).steps if step.name == name)


def timings(done: Done) -> Table:
    """Return a table of how long each step took."""
    table = Table("step", "model", "seconds")
    table.columns[2].justify = "right"
    for step, seconds in done.seconds.items():
        finished = done.results[step].finished if step in done.results else None
        table.add_row(step, finished.model if finished is not None else "", f"{seconds:.2f}")
    table.add_section()
    table.add_row("from the request to the last picture", "", f"{done.total:.2f}")
    return table


# ---- the sheet -----------------------------------------------------------------------------------------------------

WIDTH, MARGIN, GAP = 1680, 40, 24  # pixels
TITLE, NOTE = 26, 22  # sizes of the letters
LABEL = 80  # height of a label below its picture
INK, GREY, PAPER = (24, 24, 24), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """A picture, or several side by side, and what stands below."""

    pictures: Sequence[Image.Image]
    title: str
    note: str = ""

    @property
    def aspect(self) -> float:
        """Its width at a height of 1, without the gaps between pictures."""
        return sum(picture.width / picture.height for picture in self.pictures)


def contact_sheet(done: Done) -> Image.Image:
    """Lay out the photograph and what became of it."""
    photo = done.picture("photo")
    becoming = done.previews_of("butterfly")
    shown = [becoming[len(becoming) * part // 4] for part in range(4)] if becoming else []
    boxes = [(box.x_px, box.y_px, box.width_px, box.height_px) for box in step_of("object").segment.options.boxes]
    prompt = step_of("butterfly").generate.prompt
    return sheet(
        [
            [
                Panel([with_boxes(photo, boxes)], "1  A photograph and a box"),
                Panel([dimmed(photo, done.picture("object"))], "2  What it holds is found", done.note("object")),
                Panel([done.picture("erased")], "3  … and erased", done.note("erased")),
            ],
            [Panel([*shown, done.picture("butterfly")], f"4  “{prompt}” becomes a picture", done.note("butterfly"))],
            [
                Panel([done.picture("replaced")], "5  One in the photograph", done.note("replaced")),
                Panel([done.picture("extended")], "6  … which goes on to the left", done.note("extended")),
            ],
        ]
    )


def sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Lay panels out in rows of one width, all pictures of a row equally high."""
    heights = [_height(row) for row in rows]
    page = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(heights) + len(rows) * LABEL + (len(rows) - 1) * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for panel in row:
            draw.text((x, y + height + 12), panel.title, INK, ImageFont.load_default(TITLE))
            draw.text((x, y + height + 12 + TITLE + 6), panel.note, GREY, ImageFont.load_default(NOTE))
            for picture in panel.pictures:
                width = round(height * picture.width / picture.height)
                page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
                x += width + GAP
        y += height + LABEL + GAP
    return page


def _height(row: Sequence[Panel]) -> int:
    """Return how high a row's pictures are so that they and the gaps fill the width."""
    gaps = GAP * (sum(len(panel.pictures) for panel in row) - 1)
    return int((WIDTH - 2 * MARGIN - gaps) / sum(panel.aspect for panel in row))


def with_boxes(picture: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> Image.Image:
    """Draw boxes, each given by its left and upper edges, its width and its height."""
    drawn = picture.copy()
    for x, y, width, height in boxes:
        for line, colour in ((5, "black"), (3, "white")):
            ImageDraw.Draw(drawn).rectangle((x, y, x + width, y + height), outline=colour, width=line)
    return drawn


def dimmed(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Show what a mask covers, and the rest of the picture pale."""
    pale = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.72)
    return Image.composite(picture, pale, mask.convert("L"))


if __name__ == "__main__":
    sys.exit(main())
