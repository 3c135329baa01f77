"""`limner edit`: changes a picture, or a part of it, from text."""

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
    with_object,
    with_output,
)


@click.command("edit", short_help="Change IMAGE, or a part of it, as PROMPT says.")
@click.argument("image", type=INPUT)
@click.argument("prompt", default="")
@with_output
@click.option("--mask", type=INPUT, help="What to make anew: white on black, of the picture's size.")
@with_object
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="How far from what is there. By default 1 with a mask or object, 0.6 without.",
)
@click.option("--crop-margin", type=click.IntRange(0, 4096), metavar="PX", help="What the model sees around the mask.")
@with_making
@with_connection
def command(
    connection: Connection,
    image: str,
    prompt: str,
    output: str,
    mask: str | None,
    making: dict[str, Any],
    previews: Previews,
    keep_recipe: bool,
    **options: Any,
) -> None:
    """Change IMAGE into what PROMPT says, or into a variation if there is none.

    With --mask, or with --click, --not and --box, in pixels from the top left, only that is changed. `-` reads standard
    input. PNG files keep what they were made from, which `limner info` shows; other formats don't.
    """
    if image == "-" and mask == "-":
        raise click.UsageError("only one of image and mask can come from standard input")
    from limner.client import jobs
    from limner.client.execute import run_making

    file_format = output_format(output)
    run_making(
        connection,
        lambda: jobs.edit(
            read_input(image),
            prompt,
            mask=None if mask is None else read_input(mask),
            format=file_format,
            **options,
            **making,
        ),
        output,
        previews=previews,
        keep_recipe=keep_recipe,
    )
