"""`far-mesh up`, `far-mesh demo` and `far-mesh chat`.

What they start needs packages that only a development machine has: imported when a command runs.
"""

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stack.plan import DEMO_MODEL, DEMO_MODEL_ID, PROMPT, SETTINGS, Plan
from stack.servers import StackError, free_port

if TYPE_CHECKING:
    from stack.development_stack import DevelopmentStack

console = Console(highlight=False)

Model = Annotated[str, typer.Option(help="Folder or hub id of a model that the engine serves.")]


Threads = Annotated[int, typer.Option(help="CPU threads of each node.")]


Nodes = Annotated[int, typer.Option(min=1, help="Nodes that share the model's layers.")]


def up(
    model: Model = str(DEMO_MODEL),
    nodes: Nodes = 3,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    redis_port: Annotated[int, typer.Option(help="Port of Redis.")] = 6399,
    chain_port: Annotated[int, typer.Option(help="Port of the chain's JSON-RPC.")] = 8549,
    data: Annotated[
        Path, typer.Option(help="Data folder; emptied at start and at the end.")
    ] = Path(".far-mesh"),
    price: Annotated[str, typer.Option(help="FAR for a generated token.")] = "0.0001",
    threads: Threads = 1,
    dht: Annotated[
        bool, typer.Option("--dht", help="Run the DHT too: seconds more to start, and memory.")
    ] = False,
) -> None:
    """Start everything and keep it running until Ctrl-C."""
    plan = Plan(
        folder=data.resolve(),
        api_port=port,
        redis_port=redis_port,
        chain_port=chain_port,
        model=_checkpoint(model),
        model_id=_model_id(model),
        nodes=nodes,
        price=price,
        node_threads=threads,
        dht=dht,
        environment=SETTINGS,
    )
    with _running(plan) as stack:
        _print_urls(stack)
        stack.watch(lambda line: console.print(f"[yellow]{line}[/]"))


def demo(
    prompt: Annotated[str, typer.Option(help="What the model shall continue.")] = (PROMPT),
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
) -> None:
    """Start everything, act as one user, settle on-chain, stop everything."""
    from stack.demo import run

    with tempfile.TemporaryDirectory(prefix="far-mesh-") as folder:
        plan = Plan(
            folder=Path(folder) / "data",
            api_port=free_port(),
            redis_port=free_port(),
            chain_port=free_port(),
            environment=SETTINGS,
        )
        with _running(plan) as stack:
            run(stack, console, prompt=prompt, max_tokens=max_tokens)
    console.print("Everything is stopped and cleaned up.")


def chat(
    model: Model,
    nodes: Nodes = 3,
    threads: Threads = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="The checkpoint's own by default.")
    ] = None,
) -> None:
    """Start everything, and chat with a model in the terminal until Ctrl-D."""
    from stack.chat import run, typed

    options: dict[str, float] = {"max_tokens": max_tokens}
    if temperature is not None:
        options["temperature"] = temperature
    with tempfile.TemporaryDirectory(prefix="far-mesh-") as folder:
        plan = Plan(
            folder=Path(folder) / "data",
            api_port=free_port(),
            redis_port=free_port(),
            chain_port=free_port(),
            model=_checkpoint(model),
            model_id=_model_id(model),
            nodes=nodes,
            node_threads=threads,
            environment=SETTINGS,
        )
        with _running(plan) as stack:
            run(stack, console, typed(console), **options)
    console.print("Everything is stopped and cleaned up.")


@contextlib.contextmanager
def _running(plan: Plan) -> Iterator["DevelopmentStack"]:
    """The stack, stopped again however the block ends."""
    from stack.development_stack import DevelopmentStack

    # Both stop in order, also where a shell started us in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with console.status("Starting ...") as status:

            def say(line: str) -> None:
                status.update(line)
                console.print(f"· {line}")

            stack = DevelopmentStack(plan, say)
            stack.start()
        try:
            yield stack
        finally:
            with console.status("Stopping everything ..."):
                stack.stop()
    except StackError as error:
        console.print(f"[red]far-mesh:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped.")


def _print_urls(stack: "DevelopmentStack") -> None:
    plan = stack.plan
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("API", plan.api_url)
    table.add_row("its documentation", f"{plan.api_url}/docs")
    table.add_row("metrics", f"{plan.api_url}/metrics")
    table.add_row("chain (JSON-RPC)", plan.rpc_url)
    table.add_row("FarToken", stack.deployment.token)
    table.add_row("InferenceEscrow", stack.deployment.escrow)
    table.add_row("Redis", plan.redis_url)
    table.add_row("Postgres", stack.database_url)
    table.add_row("model", f"{plan.model_id}: {stack.model.layers} layers on {plan.nodes} nodes")
    table.add_row("logs", str(plan.folder / "logs"))
    console.print("\n[bold]The mesh is up.[/] A development network: it begins empty each time.")
    console.print(table)
    console.print("Ctrl-C stops everything.")


def _checkpoint(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _model_id(model: str) -> str:
    if Path(model).resolve() == DEMO_MODEL:
        return DEMO_MODEL_ID
    return Path(model).resolve().name if Path(model).is_dir() else model
