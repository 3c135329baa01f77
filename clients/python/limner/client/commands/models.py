"""`limner models`: the weights on this machine, and what a router's servers offer."""

from __future__ import annotations

import subprocess
import sys

import click

from limner.client.command import CommandFailed
from limner.client.options import Connection, with_connection


@click.group("models")
def command() -> None:
    """List, fetch and check models."""


def _store_command(name: str, text: str) -> None:
    """A subcommand that the services' own `limner.models` carries out, with all its options."""

    @command.command(
        name, help=text, short_help=text, add_help_option=False, context_settings={"ignore_unknown_options": True}
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run_store(arguments: tuple[str, ...]) -> None:
        from importlib.util import find_spec

        if find_spec("limner.models") is None:
            raise CommandFailed("the services are not installed here: `pip install limner[all]` brings their models")
        ended = subprocess.run([sys.executable, "-m", "limner.models", name, *arguments], check=False)
        raise click.exceptions.Exit(ended.returncode)


_store_command("list", "List the models known here, with or without weights.")
_store_command("plan", "Say where each model would run here, and why.")
_store_command("pull", "Fetch a model's weights.")
_store_command("import", "Use a model's weights that are on this disk.")
_store_command("rm", "Delete a model's weights.")
_store_command("verify", "Check weights against their digests.")


@command.command("load", short_help="Have servers load models.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_connection
def load(connection: Connection, names: tuple[str, ...]) -> None:
    """Have every server that offers a model NAME load it, so that the next call needs not wait for it."""
    from limner.client.execute import change_models

    change_models(connection, names, lambda client: client.load_model)


@command.command("unload", short_help="Have servers let models go.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_connection
def unload(connection: Connection, names: tuple[str, ...]) -> None:
    """Have every server that offers a model NAME free its memory, once the calls that use it have ended."""
    from limner.client.execute import change_models

    change_models(connection, names, lambda client: client.unload_model)


@command.command("served", short_help="List what the router's servers offer.")
@click.option("--task", default="", help="Only models of this task, such as `inpaint`.")
@with_connection
def served(connection: Connection, task: str) -> None:
    """The models that the router's healthy servers offer."""
    from google.protobuf import json_format
    from rich.table import Table

    from limner.client.execute import with_client
    from limner.client.terminal import model_state, table_console, write_json

    models = with_client(connection, lambda client: client.models(task))
    if connection.as_json:
        for model in models:
            write_json(json_format.MessageToDict(model, preserving_proto_field_name=True))
        return
    if not models:
        raise CommandFailed(f"no healthy server offers a model{f' for {task!r}' if task else ''}; see `limner status`")
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for title in ("task", "state", "runs on", "licence"):
        table.add_column(title, overflow="fold")
    for model in models:
        where = " ".join(part for part in (model.placement.device, model.placement.precision) if part)
        table.add_row(
            f"{model.name} (default)" if model.default else model.name,
            model.task,
            model_state(model),
            where,
            model.licence,
        )
    table_console().print(table)
