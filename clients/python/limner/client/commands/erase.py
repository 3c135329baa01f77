"""`limner erase`: removes an object from a picture."""

from __future__ import annotations

import click

from limner.client.options import (
    INPUT,
    Connection,
    output_format,
    read_input,
    with_connection,
    with_object,
    with_output,
)


@click.command("erase")
@click.argument("image", type=INPUT)
@with_output
@click.option("--mask", type=INPUT, help="What to erase: white on black, of the picture's size.")
@with_object
@click.option("--model", help="The inpainting model; `limner models served` lists them.")
@click.option("--strategy", type=click.Choice(["auto", "original", "resize", "crop"]), help="What the model sees.")
@click.option("--seed", type=click.IntRange(min=0), help="For models that draw random numbers.")
@with_connection
def command(
    connection: Connection,
    image: str,
    output: str,
    mask: str | None,
    clicks: tuple[tuple[float, float], ...],
    avoid: tuple[tuple[float, float], ...],
    boxes: tuple[tuple[int, int, int, int], ...],
    grow: int | None,
    feather: int | None,
    model: str | None,
    strategy: str | None,
    seed: int | None,
    quality: int | None,
) -> None:
    """Remove an object from IMAGE.

    Say what by --mask, or by --click, --not and --box, in pixels from the top left; each may be given several times.
    `-` reads standard input.
    """
    if image == "-" and mask == "-":
        raise click.UsageError("only one of image and mask can come from standard input")
    from limner.client import jobs
    from limner.client.execute import run_job

    file_format = output_format(output)
    run_job(
        connection,
        lambda: jobs.erase(
            read_input(image),
            mask=None if mask is None else read_input(mask),
            clicks=clicks,
            avoid=avoid,
            boxes=boxes,
            grow=grow,
            feather=feather,
            model=model,
            strategy=strategy,
            seed=seed,
            format=file_format,
            quality=quality,
        ),
        output,
    )
