"""`limner run`: runs a pipeline that is written down as YAML."""

from __future__ import annotations

from pathlib import Path

import click

from limner.client.command import CommandFailed
from limner.client.options import Connection, numbered, read_input, with_connection, write_whole


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
    pictures_in = _read_inputs(inputs)
    if not pictures_in and not any(step.HasField("generate") for step in steps.steps):
        raise click.UsageError("give at least one picture, such as -i photo.jpg")
    results = run_pipeline(connection, steps, pictures_in, intermediates=intermediates)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"cannot make the folder {output}: {error.strerror}") from None
    written: dict[str, str | list[str]] = {}
    for step, result in results.items():
        places = numbered(str(output / f"{step}{pictures.suffix_of(result.data)}"), len(result.files))
        for place, file in zip(places, result.files, strict=True):
            write_whole(Path(place), file)
            if not (connection.quiet or connection.as_json):
                click.echo(f"wrote {place}", err=True)
        written[step] = places if result.more else places[0]
    if connection.as_json:
        write_json({"written": written})


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
    return found
