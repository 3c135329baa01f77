"""What a command shows of a run: live bars on a terminal, a line a step elsewhere, lines of JSON, or nothing.

Progress goes to standard error, JSON to standard output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from google.protobuf import json_format
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from limner.client.options import Connection, Previews, numbered, write_whole
from limner.client.previews import Screen, Way, way_of
from limner.v1 import models_pb2, router_pb2

if TYPE_CHECKING:
    from limner.client.batch import Outcome

Show = Callable[[router_pb2.RunEvent], None]


@contextmanager
def display(connection: Connection, previews: Previews | None = None) -> Iterator[Show]:
    """Gives the function that shows an event, in the way that the command's options ask for."""
    previews = previews or Previews()
    with _display(connection, shows_previews=previews.shown) as show:
        yield show if previews.file is None else _with_preview_file(show, previews.file)


@contextmanager
def _display(connection: Connection, *, shows_previews: bool) -> Iterator[Show]:
    console = Console(stderr=True)
    if connection.as_json:
        yield write_json_event
    elif connection.quiet:
        yield lambda event: None
    elif console.is_terminal:
        way = way_of(os.environ, console.color_system) if shows_previews else None
        if shows_previews and way is None:
            click.echo("this terminal shows no pictures; --preview-file FILE writes previews to a file", err=True)
        with Bars(console, way) as bars:
            yield bars.show
    else:
        if shows_previews:
            click.echo("previews are shown on terminals; --preview-file FILE writes them to a file", err=True)
        yield _write_line


def _with_preview_file(show: Show, file: str) -> Show:
    """Shows events, and writes each preview over the last; those of further pictures beside it, with a number."""

    def show_and_write(event: router_pb2.RunEvent) -> None:
        if event.preview.image.encoded:
            number = event.preview.image_index
            write_whole(Path(numbered(file, number + 1)[number]), event.preview.image.encoded)
        show(event)

    return show_and_write


def table_console() -> Console:
    """Standard output for tables: as wide as the terminal, or wide enough for whatever reads it instead."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def model_state(model: models_pb2.Model) -> str:
    """`loaded`, `installed`, `not installed`."""
    return models_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower().replace("_", " ")


def write_json(value: Any) -> None:
    """One line of JSON on standard output."""
    click.echo(json.dumps(value))


def write_json_event(event: router_pb2.RunEvent) -> None:
    """An event as its JSON form, its picture's bytes left out."""
    plain = router_pb2.RunEvent()
    plain.CopyFrom(event)
    kind = plain.WhichOneof("event")
    if kind in ("result", "preview"):
        getattr(plain, kind).ClearField("image")
    write_json(json_format.MessageToDict(plain, preserving_proto_field_name=True))


def _write_line(event: router_pb2.RunEvent) -> None:
    kind = event.WhichOneof("event")
    if kind == "finished":
        click.echo(f"{event.step}: {_summary(event)}", err=True)
    elif kind == "retried":
        click.echo(f"{event.step}: try {event.retried.attempt}, as {event.retried.reason}", err=True)


def _summary(event: router_pb2.RunEvent) -> str:
    """`telea, 0.21 s` for a finished step."""
    seconds = sum(timing.duration.ToTimedelta().total_seconds() for timing in event.finished.timings)
    return ", ".join(part for part in (event.finished.model, f"{seconds:.2f} s") if part)


class Bars:
    """A bar for each step of one run; spins while the step waits for a device."""

    def __init__(self, console: Console, way: Way | None = None) -> None:
        """`way` is how the terminal shows previews; None: they are left out."""
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=way is None,  # its thread would draw while a preview is drawn
        )
        self._tasks: dict[str, TaskID] = {}
        self._way = way
        self._screen: Screen | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, event: router_pb2.RunEvent) -> None:
        """Draws what an event tells."""
        self._show(event)
        if self._way is not None:
            self._progress.refresh()
        if self._screen is not None and event.preview.image.encoded:
            drawn = self._screen.draw(event.preview.image_index, event.preview.image.encoded)
            if not drawn:
                self._progress.console.print(
                    "previews can't be shown here; it needs Pillow (pip install pillow), or --preview-file FILE"
                )
                self._screen = None

    def _show(self, event: router_pb2.RunEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "accepted":
            for step in event.accepted.steps:
                self._tasks[step] = self._progress.add_task(step, start=False, total=None, note="waits")
            if self._way is not None:
                self._screen = Screen(self._progress.console, self._way, len(self._tasks))
            return
        task = self._tasks.get(event.step)
        if task is None:
            return
        update = self._progress.update
        if kind == "queued":
            before = event.queued.position
            update(task, note=f"queued, {before} before it" if before else "queued, next")
        elif kind == "started":
            self._progress.start_task(task)
            update(task, note=f"on {event.started.placement.device}")
        elif kind == "progress":
            total = event.progress.step_count
            # A full bar counts as finished, which only the step's end makes it.
            update(task, total=total, completed=min(event.progress.step, total - 0.01), note=event.progress.stage)
        elif kind == "retried":
            update(task, note=f"try {event.retried.attempt}: {event.retried.reason}")
        elif kind == "finished":
            self._progress.start_task(task)
            update(task, total=1, completed=1, note=_summary(event))


class Count:
    """How many pictures of a batch are done."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("batch", total=total, note="")

    def __enter__(self) -> Callable[[Outcome], None]:
        self._progress.start()
        return self._tell

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _tell(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            self._progress.console.print(
                f"✗ {outcome.item.name}: {outcome.reason}",
                style="red",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        self._progress.update(self._task, advance=1, note=outcome.item.name)
