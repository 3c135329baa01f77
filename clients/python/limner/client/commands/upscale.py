"""`limner upscale`: enlarges a picture."""

from __future__ import annotations

import click

from limner.client.options import INPUT, Connection, output_format, read_input, with_connection, with_output


@click.command("upscale")
@click.argument("image", type=INPUT)
@with_output
@click.option("--scale", type=click.FloatRange(0.1, 16), help="How many times as wide and high. By default 2.")
@click.option("--model", help="`lanczos`, or a network; `limner models served` lists them.")
@with_connection
def command(
    connection: Connection, image: str, output: str, scale: float | None, model: str | None, quality: int | None
) -> None:
    """Enlarge IMAGE."""
    from limner.client import jobs
    from limner.client.execute import run_job

    file_format = output_format(output)
    run_job(
        connection,
        lambda: jobs.upscale(read_input(image), scale, model=model, format=file_format, quality=quality),
        output,
    )
