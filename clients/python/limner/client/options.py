"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
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
        callback=_check_address,
        help="The router.",
    )
    @click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up then.")
    @click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
    @click.option("--json", "as_json", is_flag=True, help="Write events to standard output as lines of JSON.")
    @functools.wraps(function)
    def command(*args: Any, address: str, timeout: float | None, quiet: bool, as_json: bool, **kwargs: Any) -> Any:
        return function(Connection(address, timeout, quiet, as_json), *args, **kwargs)

    return command


def _check_address(context: click.Context, option: click.Parameter, address: str) -> str:
    """Refuses what gRPC would look up as a host's name for a while."""
    if address.startswith(("http:", "https:")):
        raise click.BadParameter(f"{address!r} is a URL; give HOST:PORT, such as {DEFAULT_ADDRESS}")
    if ":" not in address:
        raise click.BadParameter(f"{address!r} has no port; give HOST:PORT, such as {DEFAULT_ADDRESS}")
    return address


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


def read_format(text: str) -> str:
    """The type of a --format option: the contract's name of a format, whatever usual name it is given by."""
    from limner.client import pictures

    found = pictures.format_named(text)
    if found is None:
        raise click.BadParameter(f"{text!r} can't be written; give one of {', '.join(pictures.WRITABLE_FORMATS)}")
    return found


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
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    if not data:
        raise CommandFailed(f"{'standard input' if path == '-' else path} is empty; give an image file")
    return data


def output_format(path: str, asked: str | None = None) -> str | None:
    """The format of a result: the one asked for, else what the file's suffix says, else None, which keeps the input's.

    Refuses a suffix that would lie about what the file holds, and a folder that isn't there.
    """
    from limner.client import pictures

    if path == "-":
        return asked
    if not Path(path).parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(Path(path).parent)!r}", param_hint="-o")
    found = pictures.format_of(path)
    suffix = Path(path).suffix
    if found is None and suffix:
        known = ", ".join(pictures.writable_suffixes())
        raise click.BadParameter(f"no picture can be written as {suffix!r}; there are: {known}", param_hint="-o")
    if asked and found and asked != found:
        raise click.BadParameter(f"{path!r} is no name for {asked}; let suffix and --format agree", param_hint="-o")
    return asked or found


def write_output(path: str, data: bytes) -> None:
    """Writes a result to a file, or to standard output for `-`. Files appear whole or not at all."""
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    write_whole(Path(path), data)


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside the place and moves there, so that nobody sees half a file.

    What a symbolic link points to is written, not the link. Devices and pipes are written to, never replaced.
    """
    place = path.resolve()
    partial = place.with_name(
        f".{hashlib.sha256(place.name.encode(errors='surrogateescape')).hexdigest()[:24]}.partial"
    )
    try:
        if place.exists() and not place.is_file():
            place.write_bytes(data)
            return
        partial.write_bytes(data)
        partial.replace(place)
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink()
