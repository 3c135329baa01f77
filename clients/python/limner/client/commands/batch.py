"""`limner batch`: does the same with many pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limner.client.command import FAILED, INTERRUPTED
from limner.client.options import Connection, read_format, with_connection, write_whole

if TYPE_CHECKING:
    from limner.client.batch import Outcome
    from limner.v1.router_pb2 import Pipeline

# Which options each operation takes.
_OPERATIONS = {
    "erase": ("masks", "grow", "feather", "model", "strategy", "file_format", "quality"),
    "upscale": ("scale", "model", "file_format", "quality"),
    "remove-background": ("model", "file_format", "quality"),
    "convert": ("file_format", "quality", "bit_depth"),
}
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("batch", short_help="Do the same with all pictures of a folder.")
@click.argument("operation", metavar="OPERATION")
@click.argument("folder", type=_FOLDER)
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="For the results."
)
@click.option("--masks", type=click.Path(exists=True, path_type=Path), help="A folder of masks, or one mask for all.")
@click.option("-i", "--input", "inputs", multiple=True, metavar="NAME=PATH", help="More inputs of a pipeline's file.")
@click.option("-r", "--recursive", is_flag=True, help="Go into subfolders.")
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Pictures at a time.")
@click.option("--redo", is_flag=True, help="Do again what is done.")
@click.option("--grow", type=click.IntRange(0, 1024), metavar="PX", help="Enlarge the masks by so much.")
@click.option("--feather", type=click.IntRange(0, 1024), metavar="PX", help="Soften the masks' edges so far.")
@click.option("--scale", type=click.FloatRange(0.1, 16), help="How many times as wide and high.")
@click.option("--model", help="The model.")
@click.option("--strategy", type=click.Choice(["auto", "original", "resize", "crop"]), help="What the model sees.")
@click.option(
    "--format", "file_format", type=read_format, metavar="NAME", help="Of the results. By default each picture's own."
)
@click.option("--quality", type=click.IntRange(1, 100), help="Quality of JPEG and of lossy WebP.")
@click.option("--bit-depth", type=click.Choice(["8", "16"]), help="Bits a channel.")
@with_connection
def command(
    connection: Connection,
    operation: str,
    folder: Path,
    output: Path,
    inputs: tuple[str, ...],
    recursive: bool,
    jobs: int,
    redo: bool,
    **options: Any,
) -> None:
    """Do the same with all pictures of FOLDER.

    OPERATION is erase, upscale, remove-background, convert, or a pipeline's YAML file. Masks and further inputs are
    matched to pictures by their names without suffix. What is done already is skipped; what fails doesn't stop the
    rest. The output folder gets a report.json. Exits with 1 if any picture failed.
    """
    from limner.client import batch
    from limner.client.errors import Unavailable
    from limner.client.execute import with_client

    pipeline, companions = _pipeline(operation, options, inputs)
    if output.resolve() in [path.resolve() for path in (folder, *companions.values())]:
        raise click.UsageError("the results need a folder of their own")
    items = batch.find_items(folder, companions, recursive=recursive, excluded=output)
    if not items and not connection.quiet:
        deeper = "" if recursive else "; --recursive looks into its folders, too"
        click.echo(f"there are no pictures in {folder}{deeper}", err=True)
    outcomes: list[Outcome] = []

    async def work(client: Any) -> None:
        await client.status()  # nobody there is one fault, not one of each picture
        with _display(connection, len(items)) as tell:

            def note(outcome: Outcome) -> None:
                outcomes.append(outcome)
                tell(outcome)

            await batch.run_batch(client, pipeline, items, output, jobs=jobs, redo=redo, tell=note)

    interrupted, lost = False, None
    try:
        with_client(connection, work)
    except KeyboardInterrupt:
        interrupted = True
    except Unavailable as failure:
        if not outcomes:
            raise
        lost = failure
    output.mkdir(parents=True, exist_ok=True)
    summary = batch.report(outcomes, len(items))
    write_whole(output / "report.json", json.dumps(summary, indent=2).encode())
    if not connection.quiet and not connection.as_json:
        click.echo(
            f"{summary['done']} done, {summary['skipped']} skipped, {summary['failed']} failed; "
            f"results and report.json are in {output}",
            err=True,
        )
    if interrupted:
        click.echo(f"interrupted, {summary['left']} not begun or not ended; run it again to go on", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if lost is not None:
        click.echo(f"stopped, {summary['left']} not begun; run it again to go on", err=True)
        raise lost
    if summary["failed"]:
        raise click.exceptions.Exit(FAILED)


def _pipeline(operation: str, options: dict[str, Any], inputs: tuple[str, ...]) -> tuple[Pipeline, dict[str, Path]]:
    """What to do with each picture, and where what goes with it is found."""
    from limner.client import jobs
    from limner.client.pipelines import load_pipeline

    given = {name for name, value in options.items() if value is not None}
    masks = options.pop("masks")
    companions = {} if masks is None else {"mask": masks}
    if operation not in _OPERATIONS:
        if not Path(operation).is_file():
            raise click.UsageError(f"{operation!r} is neither a file nor one of: {', '.join(_OPERATIONS)}")
        if unfit := given - {"masks"}:
            raise click.UsageError(f"{_flags(unfit)} can't be given with a pipeline's file; write it there")
        for text in inputs:
            name, equals, path = text.partition("=")
            if not equals or not Path(path).exists():
                raise click.BadParameter(f"{text!r} is not NAME=PATH of a file or folder", param_hint="-i")
            companions[name] = Path(path)
        return load_pipeline(operation), companions
    if inputs:
        raise click.UsageError("-i goes with a pipeline's file")
    if unfit := given - set(_OPERATIONS[operation]):
        raise click.UsageError(f"{operation} takes no {_flags(unfit)}")
    arguments = {name: value for name, value in options.items() if name in given and name != "masks"}
    if "file_format" in arguments:
        arguments["format"] = arguments.pop("file_format")
    if "bit_depth" in arguments:
        arguments["bit_depth"] = int(arguments["bit_depth"])
    if operation == "erase":
        if masks is None:
            raise click.UsageError("erase needs --masks")
        arguments["mask"] = b""
    write: Callable[..., jobs.Job] = getattr(jobs, operation.replace("-", "_"))
    return write(b"", **arguments).pipeline, companions


def _flags(names: set[str]) -> str:
    return ", ".join(sorted("--" + name.replace("file_format", "format").replace("_", "-") for name in names))


def _display(connection: Connection, total: int) -> Any:
    """A context manager that gives the function that tells of an outcome."""
    from contextlib import nullcontext

    from limner.client.batch import outcome_as_json
    from limner.client.terminal import Count, write_json

    if connection.as_json:
        return nullcontext(lambda outcome: write_json(outcome_as_json(outcome)))
    return nullcontext(lambda outcome: None) if connection.quiet else Count(total)
