"""`limner status`: how the router and its servers are."""

from __future__ import annotations

import click

from limner.client.command import FAILED
from limner.client.options import Connection, with_connection


@click.command("status")
@with_connection
def command(connection: Connection) -> None:
    """Show the router's servers. Exits with 1 if one of them is not healthy."""
    from google.protobuf import json_format
    from rich.table import Table

    from limner.client.execute import with_client
    from limner.client.terminal import table_console, write_json

    status = with_client(connection, lambda client: client.status())
    if connection.as_json:
        write_json(json_format.MessageToDict(status, preserving_proto_field_name=True))
    elif not connection.quiet:
        table = Table("server", "address", "health", "calls")
        for server in status.servers:
            health = "[green]healthy" if server.healthy else "[red]not available"
            table.add_row(server.kind, server.address, health, str(server.active_call_count))
        console = table_console()
        console.print(table)
        console.print(
            f"router {status.version} at {connection.address}: {status.active_run_count} runs, "
            f"{status.blob_bytes / 1e6:.1f} of {status.blob_quota_bytes / 1e6:.0f} MB of blobs"
        )
    if not all(server.healthy for server in status.servers):
        raise click.exceptions.Exit(FAILED)
