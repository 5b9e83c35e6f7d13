"""`far-node`: what a provider types. One module a group of commands."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from mesh import log
from node_runner.cli import bench, config, doctor, login, service, start, status
from node_runner.cli.console import fail
from node_runner.machine import config_file as settings

app = typer.Typer(
    help="Serve layers of a model on this machine and earn FAR for every token.",
    epilog=(
        "First [bold]far-node login --discovery URL[/], then [bold]far-node doctor[/], then "
        "[bold]far-node start --model MODEL[/]. Every option can stand in the environment "
        "(FAR_NODE_MODEL) or in the file that [bold]far-node config[/] shows; a flag outweighs "
        "both."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(start.start)
app.command()(login.login)
app.command()(login.logout)
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command()(status.status)
app.command()(status.drain)
app.add_typer(service.app, name="service")
app.add_typer(config.app, name="config")


@app.callback()
def main(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="FAR_NODE_CONFIG",
            help="File of settings, instead of the one that `far-node config` shows.",
        ),
    ] = None,
) -> None:
    """Read the settings' file: what it says are the commands' defaults."""
    log.configure(json=False, level=logging.WARNING)  # `start` tells more
    file = config_file or settings.path()
    if config_file is not None and not file.exists():
        raise fail(f"There is no settings' file {file}.")
    context.obj = file
    if context.invoked_subcommand == "config":
        return  # shows and mends what may be wrong
    commands = getattr(context.command, "commands", {})
    try:
        values = settings.read(file, start.known_settings(commands["start"]))
    except settings.InvalidConfig as error:
        raise fail(str(error)) from None
    context.default_map = dict.fromkeys(commands, values)
