"""`limner segment`: finds an object and writes its mask."""

from __future__ import annotations

import click

from limner.client.options import INPUT, Connection, output_format, read_input, with_connection, with_object


@click.command("segment", short_help="Find an object in IMAGE and write its mask.")
@click.argument("image", type=INPUT)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Where the mask goes; `-` is standard output, as PNG. The suffix says the format.",
)
@with_object
@click.option("--model", help="The segmentation model; `limner models served` lists them.")
@with_connection
def command(
    connection: Connection,
    image: str,
    output: str,
    clicks: tuple[tuple[float, float], ...],
    avoid: tuple[tuple[float, float], ...],
    boxes: tuple[tuple[int, int, int, int], ...],
    grow: int | None,
    feather: int | None,
    model: str | None,
) -> None:
    """Find the object in IMAGE that --click, --not and --box point at, and write its mask."""
    from limner.client import jobs
    from limner.client.execute import run_job

    file_format = output_format(output)
    run_job(
        connection,
        lambda: jobs.segment(
            read_input(image),
            clicks=clicks,
            avoid=avoid,
            boxes=boxes,
            grow=grow,
            feather=feather,
            model=model,
            format=file_format,
        ),
        output,
    )
