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


@dataclass(frozen=True)
class Previews:
    """Where previews go: onto the terminal, into a file that is written anew with each, or nowhere."""

    shown: bool = False
    file: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether the servers are to send any."""
        return self.shown or self.file is not None


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


def with_making(function: Command) -> Command:
    """Adds what can be said of how pictures are made and passes it on as `making`, the arguments that functions of
    `jobs` take; and --preview, --preview-file and --no-parameters, as `previews` and `keep_recipe`. Goes with
    `with_output`."""
    options: list[Callable[[Command], Command]] = [
        click.option("--model", help="The model; `limner models served` lists them."),
        click.option("--negative", "negative_prompt", metavar="TEXT", help="What the picture does not show."),
        click.option(
            "--width", type=click.IntRange(min=1), metavar="PX", help="A multiple of 16, or of 8 (SD 1.5, SDXL)."
        ),
        click.option(
            "--height", type=click.IntRange(min=1), metavar="PX", help="A multiple of 16, or of 8 (SD 1.5, SDXL)."
        ),
        click.option("--steps", type=click.IntRange(1, 1000), help="Steps of the sampler."),
        click.option("--guidance", type=click.FloatRange(1, 50), help="How strongly the prompt is followed; 1: least."),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Of the first picture. By default drawn."),
        click.option("--count", type=click.IntRange(1, 16), help="How many pictures: OUT-1.png, OUT-2.png, and so on."),
        click.option("--sampler", help="SD3 models: euler, heun, dpmpp-2m or turbo. Others: see docs/diffusion.md."),
        click.option("--shift", type=click.FloatRange(0.1, 20), help="Of the schedule, towards noise."),
        click.option("--text-length", type=click.IntRange(16, 512), help="How many tokens of the prompt are read."),
        click.option("--truncate", is_flag=True, help="Cut a prompt that is too long, instead of failing."),
        click.option(
            "--lora", "loras", type=_read_lora, multiple=True, metavar="NAME[:SCALE]", help="Apply a LoRA, or several."
        ),
        click.option("--skip-layers", type=_read_layers, metavar="N,N...", help="Guide by leaving these layers out."),
        click.option(
            "--step-cache", type=click.IntRange(2, 8), help="Compute one step of so many, and predict others."
        ),
        click.option("--weight", type=click.FloatRange(0.1, 10), help="Share of the device, in proportion to others."),
        click.option("--preview", is_flag=True, help="Show previews, where the terminal can."),
        click.option("--preview-file", type=click.Path(dir_okay=False), help="Write each preview over the last, here."),
        click.option("--preview-interval", type=click.IntRange(1, 1000), metavar="N", help="Every so many steps."),
        click.option("--no-parameters", is_flag=True, help="Don't keep in PNG files what they were made from."),
    ]

    @functools.wraps(function)
    def command(*args: Any, preview: bool, preview_file: str | None, no_parameters: bool, **kwargs: Any) -> Any:
        making = {name: kwargs.pop(name) for name in _MAKING}
        making["loras"] = dict(making["loras"]) or None
        making["truncate"] = making["truncate"] or None
        if kwargs["output"] == "-" and (making["count"] or 1) > 1:
            raise click.UsageError("standard output takes one picture; give -o a file")
        previews = Previews(preview, preview_file)
        return function(*args, making=making, previews=previews, keep_recipe=not no_parameters, **kwargs)

    decorated: Command = command
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


# The options of `with_making` that say how pictures are made.
_MAKING = (
    *("model", "negative_prompt", "width", "height", "steps", "guidance", "seed", "count", "sampler", "shift"),
    *("text_length", "truncate", "loras", "skip_layers", "step_cache", "preview_interval", "weight"),
)


def _read_lora(text: str) -> tuple[str, float]:
    name, _, scale = text.rpartition(":") if ":" in text else (text, "", "1")
    try:
        return name, float(scale)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not NAME or NAME:SCALE") from None


def _read_layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form 7,8,9") from None


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


def numbered(path: str, count: int) -> list[str]:
    """Where each of so many pictures goes: the path itself, or `out-1.png`, `out-2.png` and so on."""
    if count == 1:
        return [path]
    place = Path(path)
    return [str(place.with_name(f"{place.stem}-{number}{place.suffix}")) for number in range(1, count + 1)]


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
