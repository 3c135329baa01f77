"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from limner.client.command import CommandFailed

DEFAULT_ADDRESS = "127.0.0.1:7400"

Command = Callable[..., Any]

INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True)


@dataclass(frozen=True)
class Connection:
    """Where the router is and how a command tells what happens."""

    address: str
    timeout: float | None
    quiet: bool
    as_json: bool


def with_connection(function: Command) -> Command:
    """Adds --address, --timeout, --quiet and --json and passes them on as one Connection, the first argument."""

    @click.option(
        "--address",
        envvar="LIMNER_ADDRESS",
        default=DEFAULT_ADDRESS,
        show_default=True,
        show_envvar=True,
        metavar="HOST:PORT",
        help="The router.",
    )
    @click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up then.")
    @click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
    @click.option("--json", "as_json", is_flag=True, help="Write events to standard output as lines of JSON.")
    @functools.wraps(function)
    def command(*args: Any, address: str, timeout: float | None, quiet: bool, as_json: bool, **kwargs: Any) -> Any:
        return function(Connection(address, timeout, quiet, as_json), *args, **kwargs)

    return command


def with_output(function: Command) -> Command:
    """Adds -o and --quality."""
    output = click.option(
        "-o",
        "--output",
        required=True,
        type=click.Path(dir_okay=False, allow_dash=True),
        help="Where the result goes; `-` is standard output. The suffix says the format.",
    )
    quality = click.option("--quality", type=click.IntRange(1, 100), help="Quality of JPEG and of lossy WebP.")
    return output(quality(function))


def with_object(function: Command) -> Command:
    """Adds the options that point at an object."""
    options: list[Callable[[Command], Command]] = [
        click.option("--click", "clicks", **_numbers("x,y", float), help="A point on the object."),
        click.option("--not", "avoid", **_numbers("x,y", float), help="A point off the object."),
        click.option("--box", "boxes", **_numbers("x,y,w,h", int), help="A box around an object."),
        click.option("--grow", type=click.IntRange(0, 1024), metavar="PX", help="Enlarge the mask by so much."),
        click.option("--feather", type=click.IntRange(0, 1024), metavar="PX", help="Soften the mask's edge so far."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _numbers(form: str, kind: type[int] | type[float]) -> dict[str, Any]:
    """What makes an option take numbers with commas between them, several times: `420,310.5`."""

    def read(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(kind(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != form.count(",") + 1:
            raise click.BadParameter(f"{text!r} is not of the form {form}, in pixels")
        return numbers

    return {"type": read, "metavar": form.upper(), "multiple": True}


def read_input(path: str) -> bytes:
    """The bytes of a file, or of standard input for `-`."""
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def output_format(path: str) -> str | None:
    """The format that a file's suffix asks for; None, which keeps the input's, for standard output."""
    from limner.client import pictures

    if path == "-":
        return None
    if not Path(path).parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(Path(path).parent)!r}", param_hint="-o")
    found = pictures.format_of(path)
    if found is None and Path(path).suffix:
        known = ", ".join(sorted(pictures.READABLE_SUFFIXES))
        raise click.BadParameter(f"{Path(path).suffix!r} is no known suffix; there are: {known}", param_hint="-o")
    return found


def write_output(path: str, data: bytes) -> None:
    """Writes a result to a file, or to standard output for `-`. Files appear whole or not at all."""
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    write_whole(Path(path), data)


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside the place and moves there, so that nobody sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CommandFailed(f"cannot write {path}: {error.strerror}") from None
