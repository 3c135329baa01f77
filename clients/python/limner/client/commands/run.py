"""`limner run`: runs a pipeline that is written down as YAML."""

from __future__ import annotations

from pathlib import Path

import click

from limner.client.command import CommandFailed
from limner.client.options import Connection, read_input, with_connection, write_whole


@click.command("run")
@click.argument("pipeline", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-i", "--input", "inputs", multiple=True, metavar="[NAME=]FILE", help="A picture. By default `source`.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the results, each named after its step; made if it isn't there.",
)
@click.option("--intermediates", is_flag=True, help="Write what steps in between gave, too.")
@with_connection
def command(connection: Connection, pipeline: Path, inputs: tuple[str, ...], output: Path, intermediates: bool) -> None:
    """Run the steps of PIPELINE, a YAML file."""
    from limner.client import pictures
    from limner.client.execute import run_pipeline
    from limner.client.pipelines import load_pipeline
    from limner.client.terminal import write_json

    steps = load_pipeline(pipeline)
    results = run_pipeline(connection, steps, _read_inputs(inputs), intermediates=intermediates)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"cannot make the folder {output}: {error.strerror}") from None
    written = {}
    for step, result in results.items():
        path = output / f"{step}{pictures.suffix_of(result.data)}"
        write_whole(path, result.data)
        written[step] = str(path)
    if connection.as_json:
        write_json({"written": written})
    elif not connection.quiet:
        for path_written in written.values():
            click.echo(f"wrote {path_written}", err=True)


def _read_inputs(inputs: tuple[str, ...]) -> dict[str, bytes]:
    """`source=photo.jpg` or `photo.jpg` to bytes by name."""
    found: dict[str, bytes] = {}
    for text in inputs:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else ("source", text)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", param_hint="-i")
        if path != "-" and not Path(path).is_file():
            raise click.BadParameter(f"there is no file {path!r}", param_hint="-i")
        found[name] = read_input(path)
    if not found:
        raise click.UsageError("give at least one picture, such as -i photo.jpg")
    return found
