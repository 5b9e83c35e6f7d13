"""`far-node service`: keep the nodes running under systemd."""

from typing import Annotated

import typer

from node_runner import units
from node_runner.cli.console import console, fail

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

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


@app.command(context_settings=PASS_ON)
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
    try:
        service = units.here(system=system, user=run_as)
        text = units.render(service, context.args)
        if dry_run:
            console.print(f"# {service.path}", markup=False, soft_wrap=True)
            console.print(text, markup=False, soft_wrap=True, end="")
            return
        units.install(service, text)
    except units.ServiceError as error:
        raise fail(str(error)) from None
    scope = "" if system else "--user "
    console.print(f"Installed {service.path} and started it.", markup=False)
    console.print(f"See it work: [bold]journalctl {scope}-fu far-node[/], [bold]far-node status[/]")


@app.command()
def uninstall(system: System = False, run_as: User = None) -> None:
    """Drain the nodes, and remove the unit."""
    try:
        removed = units.uninstall(units.here(system=system, user=run_as))
    except units.ServiceError as error:
        raise fail(str(error)) from None
    console.print("Removed." if removed else "There is no such service.")


@app.command()
def status(system: System = False, run_as: User = None) -> None:
    """What systemd says of it."""
    try:
        done = units.here(system=system, user=run_as).systemctl("status", "--no-pager", units.NAME)
    except units.ServiceError as error:
        raise fail(str(error)) from None
    console.print(done.stdout or done.stderr, markup=False, end="")
    raise typer.Exit(done.returncode)
