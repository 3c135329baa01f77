"""`limner up`: runs the services in the foreground."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from limner.client.command import INTERRUPTED, CommandFailed

if TYPE_CHECKING:
    from limner.client.local import LocalServers

_SERVICES = ("router", "inpaint", "segment", "postprocess", "diffusion")
_COLOURS = dict(zip(_SERVICES, ("cyan", "green", "magenta", "yellow", "blue"), strict=True))
_WATCH_SECONDS = 0.2
_MOST_RESTARTS = 5
_STEADY_SECONDS = 60.0


@click.command("up", short_help="Run all services until Ctrl-C.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A TOML file for all.")
@click.option("--only", multiple=True, type=click.Choice(_SERVICES), help="Start only this; may be repeated.")
@click.option("--port-offset", type=int, default=0, metavar="N", help="Add N to every port.")
@click.option("--free-ports", is_flag=True, help="Let each service listen on a free port.")
@click.option("--restart/--no-restart", default=True, show_default=True, help="Start a service that dies again.")
@click.option("--log-dir", type=click.Path(file_okay=False, path_type=Path), help="Keep the logs here too.")
@click.option("-q", "--quiet", is_flag=True, help="Show no logs.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def command(
    config: Path | None,
    only: tuple[str, ...],
    port_offset: int,
    free_ports: bool,
    restart: bool,
    log_dir: Path | None,
    quiet: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run router, inpaint, segment, postprocess and, where its packages are installed, diffusion until Ctrl-C.

    With a COMMAND after `--`, run it once all are healthy, with LIMNER_ADDRESS set, stop them when it ends, and exit
    with its code. A service that dies is reported and started again, unless it dies too often or --no-restart is given.
    """
    from limner.client.local import LocalServers, default_services

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), _interrupt)
    began = time.monotonic()
    try:
        servers = LocalServers(
            config=config,
            services=only or default_services(),
            free_ports=free_ports,
            port_offset=port_offset,
            log_dir=log_dir,
            on_line=None if quiet else _write_log_line,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        with servers:
            _show_table(servers, time.monotonic() - began)
            if not only and "diffusion" not in servers.services:
                click.echo(
                    "without diffusion, as its packages are not installed: pip install 'limner[diffusion]'", err=True
                )
            if arguments:
                raise click.exceptions.Exit(_run_command(servers, arguments))
            _watch(servers, restart=restart)
    except KeyboardInterrupt:
        click.echo("all stopped", err=True)
        raise click.exceptions.Exit(INTERRUPTED if arguments else 0) from None


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _write_log_line(service: str, line: str) -> None:
    click.echo(f"{click.style(f'{service:>11}', fg=_COLOURS[service])} {line}", err=True)


def _show_table(servers: LocalServers, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("service", "address", "process")
    for name, pid in servers.pids.items():
        table.add_row(name, servers.address(name), str(pid))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"all healthy after {seconds:.1f} s; Ctrl-C stops them", highlight=False)


def _run_command(servers: LocalServers, arguments: tuple[str, ...]) -> int:
    environment = dict(os.environ)
    if "router" in servers.services:
        environment["LIMNER_ADDRESS"] = servers.address("router")
    try:
        return subprocess.run(arguments, env=environment, check=False).returncode
    except FileNotFoundError:
        raise CommandFailed(f"there is no command {arguments[0]!r}") from None


def _watch(servers: LocalServers, *, restart: bool) -> None:
    """Tells of every death. Without `restart`, or at the sixth death of a service within a minute each, gives up."""
    deaths = dict.fromkeys(servers.services, 0)
    last_death = dict.fromkeys(servers.services, 0.0)
    while True:
        time.sleep(_WATCH_SECONDS)
        for name in servers.dead():
            click.secho(servers.describe_death(name), fg="red", err=True)
            now = time.monotonic()
            deaths[name] = deaths[name] + 1 if now - last_death[name] < _STEADY_SECONDS else 1
            last_death[name] = now
            if not restart or deaths[name] > _MOST_RESTARTS:
                raise CommandFailed(f"{name} is gone; stopping the others")
            click.secho(f"starting {name} again, {deaths[name]} of {_MOST_RESTARTS}", fg="red", err=True)
            time.sleep(min(0.5 * 2 ** (deaths[name] - 1), 8.0))
            servers.restart(name, wait=False)
