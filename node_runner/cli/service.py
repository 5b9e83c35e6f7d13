"""`far-node service`: keep the nodes running under systemd."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from node_runner.cli import options, start
from node_runner.cli.console import console, fail
from node_runner.machine import config_file
from node_runner.service import systemd

app = typer.Typer(help="Keep nodes running, also after a reboot (systemd).", no_args_is_help=True)

System = Annotated[
    bool,
    typer.Option(
        "--system/--user",
        help="A service of the machine, which starts at boot; or your own, which needs no root.",
    ),
]
User = Annotated[
    str | None, typer.Option("--as", help="Whom a system service runs as; who asks, if not given.")
]

PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}


@app.command(context_settings=PASS_THROUGH)
def install(
    context: typer.Context,
    system: System = False,
    run_as: User = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit only.")] = False,
) -> None:
    """Write the unit and start it. Options of `far-node start` may follow.

    [bold]far-node service install --model far/pydoc-llama[/]: yours, while you are logged in;
    [bold]loginctl enable-linger[/] keeps it running without that.

    [bold]sudo far-node service install --system --as alice --model M[/]: at boot.
    """
    root = context.find_root()
    settings: Path | None = root.params["config_file"]
    try:
        service = systemd.service_of(system=system, user=run_as)
        folders = _folders(root.command, service, settings, context.args)
        text = systemd.render(service, context.args, settings=settings, folders=folders)
        if dry_run:
            console.print(f"# {service.path}", markup=False, soft_wrap=True)
            console.print(text, markup=False, soft_wrap=True, end="")
            return
        systemd.install(service, text, folders=folders)
    except (systemd.ServiceError, config_file.InvalidConfig) as error:
        raise fail(str(error)) from None
    scope = "" if system else "--user "
    console.print(f"Installed {service.path} and started it.", markup=False)
    console.print(f"See it work: [bold]journalctl {scope}-fu far-node[/], [bold]far-node status[/]")


def _folders(
    root: Any, service: systemd.Service, settings: Path | None, given: list[str]
) -> list[Path]:
    """Folders that nodes with these options write to, beside what all do: by their options, and by
    what the service's user has in variables and settings."""
    command, variables = root.commands["start"], service.variables()
    file = settings or Path(variables.get("FAR_NODE_CONFIG", service.settings))
    values = config_file.read(file, start.known_settings(command))
    values |= {
        each.name: variables[each.envvar] for each in command.params if each.envvar in variables
    }
    chosen = command.make_context(
        "start", list(given), default_map=values, resilient_parsing=True
    ).params
    found = [Path(variables["FAR_NODE_STATE"])] if "FAR_NODE_STATE" in variables else []
    if chosen["cache"] != options.CACHE:
        found.append(chosen["cache"])
    if chosen["auto_update"]:
        found.append(Path(sys.prefix))
    return found


@app.command()
def uninstall(system: System = False, run_as: User = None) -> None:
    """Drain the nodes, and remove the unit."""
    try:
        removed = systemd.uninstall(systemd.service_of(system=system, user=run_as))
    except systemd.ServiceError as error:
        raise fail(str(error)) from None
    console.print("Removed." if removed else "There is no such service.")


@app.command()
def status(system: System = False, run_as: User = None) -> None:
    """What systemd says of it."""
    try:
        done = systemd.service_of(system=system, user=run_as).systemctl(
            "status", "--no-pager", systemd.UNIT_NAME
        )
    except systemd.ServiceError as error:
        raise fail(str(error)) from None
    console.print(done.stdout or done.stderr, markup=False, end="")
    raise typer.Exit(done.returncode)
