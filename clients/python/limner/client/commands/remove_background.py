"""`limner remove-background`: makes a picture's background transparent."""

from __future__ import annotations

import click

from limner.client.options import INPUT, Connection, output_format, read_input, with_connection, with_output


@click.command("remove-background")
@click.argument("image", type=INPUT)
@with_output
@click.option("--mask", is_flag=True, help="Write the foreground as a mask instead.")
@click.option("--model", help="The model; `limner models served` lists them.")
@with_connection
def command(
    connection: Connection, image: str, output: str, mask: bool, model: str | None, quality: int | None
) -> None:
    """Make the background of IMAGE transparent."""
    from limner.client import jobs
    from limner.client.execute import run_job

    file_format = output_format(output)
    run_job(
        connection,
        lambda: jobs.remove_background(read_input(image), mask=mask, model=model, format=file_format, quality=quality),
        output,
    )
