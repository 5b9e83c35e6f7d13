"""`far-node config`: the settings' file."""

import json
from typing import Annotated, Any

import typer

from node_runner.cli import start
from node_runner.cli.console import console, fail
from node_runner.machine import config_file as settings

app = typer.Typer(help="Show or change what commands take as given.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="As the flag of far-node start, such as max-sessions.")]


@app.command()
def show(context: typer.Context) -> None:
    """Where the file is, and what it says."""
    console.print(f"# {context.obj}", style="dim", markup=False, soft_wrap=True)
    for name, value in settings.read(context.obj, _known(context)).items():
        console.print(f"{name} = {json.dumps(value)}", markup=False, soft_wrap=True)


@app.command("set")
def put(
    context: typer.Context,
    name: Name,
    value: Annotated[list[str], typer.Argument(help="Several for --gpu and --device.")],
) -> None:
    """Set one. [bold]far-node config set discovery https://...[/]"""
    plain, several = _checked(context, name)
    if len(value) > 1 and not several:
        raise fail(f"{name} takes one value.")
    values = [_typed(each) for each in value]
    settings.change(context.obj, plain, values if several else values[0])


@app.command()
def unset(context: typer.Context, name: Name) -> None:
    """Remove one."""
    plain, _ = _checked(context, name)
    settings.change(context.obj, plain, None)


def _checked(context: typer.Context, name: str) -> tuple[str, bool]:
    plain, known = name.removeprefix("--").replace("-", "_"), _known(context)
    if plain not in known:
        raise fail(f"There is no setting {name!r}. Settings: {', '.join(sorted(known))}.")
    return plain, known[plain]


def _known(context: typer.Context) -> dict[str, bool]:
    root: Any = context.find_root().command
    return start.known_settings(root.commands["start"])


def _typed(text: str) -> settings.Value:
    """The value that TOML should have: a number or a boolean where the text is one."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
