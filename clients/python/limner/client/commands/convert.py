"""`limner convert`: encodes a picture in another format, quality or depth."""

from __future__ import annotations

import click

from limner.client.options import (
    INPUT,
    Connection,
    output_format,
    read_format,
    read_input,
    with_connection,
    with_output,
)


@click.command("convert")
@click.argument("image", type=INPUT)
@with_output
@click.option(
    "--format",
    "file_format",
    type=read_format,
    metavar="NAME",
    help="png, jpeg, webp, tiff or bmp. By default what the suffix of -o says.",
)
@click.option("--bit-depth", type=click.Choice(["8", "16"]), help="Bits a channel. By default the picture's.")
@with_connection
def command(
    connection: Connection, image: str, output: str, file_format: str | None, bit_depth: str | None, quality: int | None
) -> None:
    """Encode IMAGE in another format, quality or depth."""
    from limner.client import jobs
    from limner.client.execute import run_job

    file_format = output_format(output, file_format)
    run_job(
        connection,
        lambda: jobs.convert(
            read_input(image), file_format, quality=quality, bit_depth=None if bit_depth is None else int(bit_depth)
        ),
        output,
    )
