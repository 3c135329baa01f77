"""`limner info`: what a picture's file tells, without any server."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from limner.client.command import CommandFailed
from limner.client.options import INPUT, read_input

if TYPE_CHECKING:
    from limner.client.recipe import Recipe


@click.command("info", short_help="Show what an image file tells of itself.")
@click.argument("image", metavar="FILE", type=INPUT)
@click.option("--json", "as_json", is_flag=True, help="Write it to standard output as one line of JSON.")
def command(image: str, as_json: bool) -> None:
    """Show format and size of the picture in FILE, and, of a PNG file that Limner made, what it was made from."""
    from limner.client import headers, pictures, png, recipe

    data = read_input(image)
    kind = pictures.format_of(f"picture{pictures.suffix_of(data)}") or pictures.suffix_of(data).removeprefix(".")
    if kind == "bin":
        raise CommandFailed(f"{image} is no picture of a format known here")
    size = headers.size_of(data)
    texts: dict[str, str] = {}
    if kind == "png":
        try:
            texts = png.read_texts(data)
        except ValueError as error:
            raise CommandFailed(f"{image}: {error}") from None
    found = recipe.read(texts)
    if as_json:
        width, height = size or (None, None)
        value = {"format": kind, "width_px": width, "height_px": height, "bytes": len(data)}
        click.echo(json.dumps({**value, "recipe": None if found is None else asdict(found), "texts": texts}))
        return
    lines = {"format": kind, "size": "unknown" if size is None else f"{size[0]} x {size[1]}", "bytes": f"{len(data):,}"}
    # Of a file that other programs made, what those keep in it.
    lines |= _told(found) if found is not None else texts
    column = max(map(len, lines))
    for name, text in lines.items():
        shown = "\n".join(_printable(line) for line in text.split("\n"))
        click.echo(f"{_printable(name):<{column}}  " + shown.replace("\n", "\n" + " " * (column + 2)))


def _printable(text: str) -> str:
    """Without what a terminal would take for commands: the file may come from anywhere."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _told(found: Recipe) -> dict[str, str]:
    """A recipe line by line, what says nothing left out."""
    facts = {"made by": f"limner {found.operation}, version {found.version}", "model": found.model}
    facts |= {"model digest": found.model_digest, "seed": str(found.seed)}
    facts |= {name: text for name, text in found.parameters.items() if name != "seed"}
    return {name: text for name, text in facts.items() if text}
