"""`limner outpaint`: extends a picture on its sides."""

from __future__ import annotations

from typing import Any

import click

from limner.client.options import (
    INPUT,
    Connection,
    Previews,
    output_format,
    read_input,
    with_connection,
    with_making,
    with_output,
)

_SIDE = click.IntRange(0, 4096)


@click.command("outpaint", short_help="Extend IMAGE on any of its sides.")
@click.argument("image", type=INPUT)
@click.argument("prompt", default="")
@with_output
@click.option("--left", type=_SIDE, default=0, metavar="PX", help="Pixels to add on the left.")
@click.option("--top", type=_SIDE, default=0, metavar="PX", help="At the top.")
@click.option("--right", type=_SIDE, default=0, metavar="PX", help="On the right.")
@click.option("--bottom", type=_SIDE, default=0, metavar="PX", help="At the bottom.")
@click.option("--feather", type=click.IntRange(0, 512), metavar="PX", help="Blend the seam so far. By default 16.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="How far from a plain continuation of the picture. By default 1.",
)
@with_making
@with_connection
def command(
    connection: Connection,
    image: str,
    prompt: str,
    output: str,
    making: dict[str, Any],
    previews: Previews,
    keep_recipe: bool,
    **options: Any,
) -> None:
    """Extend IMAGE by --left, --top, --right and --bottom pixels into what PROMPT says, if it says anything.

    PNG files keep what they were made from, which `limner info` shows; other formats don't.
    """
    from limner.client import jobs
    from limner.client.execute import run_making

    file_format = output_format(output)
    run_making(
        connection,
        lambda: jobs.outpaint(read_input(image), prompt, format=file_format, **options, **making),
        output,
        previews=previews,
        keep_recipe=keep_recipe,
    )
