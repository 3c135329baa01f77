"""`limner generate`: makes pictures from text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from limner.client.making import Making


@click.command("generate")
@click.argument("prompt", required=False)
@with_output
@with_making
@click.option(
    "--from", "source", type=INPUT, help="Make a picture again from what its PNG file tells; options change it."
)
@with_connection
def command(
    connection: Connection,
    prompt: str | None,
    output: str,
    quality: int | None,
    source: str | None,
    making: dict[str, Any],
    previews: Previews,
    keep_recipe: bool,
) -> None:
    """Make pictures that show what PROMPT says.

    PNG files keep what they were made from, which `limner info` shows and --from makes again; other formats don't.
    """
    if prompt is None and source is None:
        raise click.UsageError("say what the picture shows, such as: limner generate 'a red apple' -o apple.png")
    from limner.client import jobs
    from limner.client.execute import run_making

    if source is not None:
        kept_prompt, kept = _kept(source)
        prompt = kept_prompt if prompt is None else prompt
        making = {**kept, **{name: value for name, value in making.items() if value is not None}}
    file_format = output_format(output)
    run_making(
        connection,
        lambda: jobs.generate(prompt or "", format=file_format, quality=quality, **making),
        output,
        previews=previews,
        keep_recipe=keep_recipe,
    )


def _kept(source: str) -> tuple[str, Making]:
    """The prompt of a file's picture, and how it was made."""
    from limner.client import png, recipe
    from limner.client.making import making_of

    try:
        found = recipe.read(png.read_texts(read_input(source)))
        if found is None:
            raise ValueError("it doesn't tell what it was made from")
        if found.operation != "generate":
            raise ValueError(f"it was made by `limner {found.operation}` from another picture")
        return found.parameters.get("prompt", ""), making_of(recipe.options_of(found))
    except ValueError as error:
        raise click.BadParameter(f"{source} can't be made again: {error}", param_hint="--from") from None
