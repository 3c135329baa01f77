"""The command `limner`. Each subcommand is a file of `limner.client.commands`, imported when it is asked for; none
imports gRPC, rich or YAML before it runs, so that `limner --help` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no server available, 130 interrupted.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

COMMANDS = (
    "batch",
    "convert",
    "edit",
    "erase",
    "generate",
    "info",
    "models",
    "outpaint",
    "remove-background",
    "run",
    "segment",
    "status",
    "up",
    "upscale",
)
FAILED, UNAVAILABLE, INTERRUPTED = 1, 3, 130


class CommandFailed(click.ClickException):
    """Ends the command with a message and exit code 1."""

    exit_code = FAILED


class NoServer(CommandFailed):
    """Ends the command with exit code 3."""

    exit_code = UNAVAILABLE


class _Group(click.Group):
    """Finds subcommands by name and turns what they raise into messages and exit codes."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"limner.client.commands.{name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # of a broken pipe, as in `limner info a.png | head`, click says nothing
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except OSError as error:
            raise CommandFailed(
                f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
            ) from None
        except Exception as error:
            raise _explained(error) from None


def _explained(error: Exception) -> Exception:
    """What a failed command tells; faults of our own stay as they are and show their traceback."""
    from limner.client.errors import RequestFailed, Unavailable
    from limner.client.local import ServiceFailed
    from limner.client.pipelines import BadPipelineFile

    if isinstance(error, Unavailable):
        return NoServer(str(error))
    if isinstance(error, (RequestFailed, ServiceFailed)):
        return CommandFailed(str(error))
    if isinstance(error, BadPipelineFile):
        return click.UsageError(str(error))
    return error


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="limner-client", prog_name="limner")
def limner() -> None:
    """Edit and make pictures with Limner's services."""


def main() -> None:
    """What the installed script calls."""
    limner(prog_name="limner")
