"""`far-node`: serve a span of a model's layers, and be paid for it."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mesh import log as logging
from node_runner.engine.loader import CACHE
from node_runner.node import CannotServe, Options, serve

app = typer.Typer(
    help="Serve layers of a model on this machine and earn FAR for every token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)


@app.callback()
def main() -> None:
    """Serve layers of a model on this machine and earn FAR for every token."""


@app.command()
def start(
    model: Annotated[str, typer.Option(help="Model to serve, by the platform's id.")],
    wallet: Annotated[str, typer.Option(help="Wallet address that is paid: 0x...")],
    discovery: Annotated[
        str, typer.Option("--discovery", "--discovery-url", help="URL of the platform.")
    ],
    keyfile: Annotated[
        Path,
        typer.Option(
            envvar="FAR_NODE_KEYFILE",
            help="Encrypted keystore of the wallet; its password is in FAR_NODE_PASSWORD. "
            "Only used to sign the registration.",
        ),
    ],
    redis: Annotated[
        str,
        typer.Option(envvar="FAR_NODE_REDIS", help="Redis of the platform's operator."),
    ] = "redis://127.0.0.1:6379/0",
    path: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint folder, URL or hub id. Without it the platform is asked, then the hub."
        ),
    ] = None,
    span: Annotated[
        str | None, typer.Option(help="Layers to serve, as START:END (end not included).")
    ] = None,
    edge: Annotated[
        bool, typer.Option(help="Hold embedding, head and sampler too (operator's nodes only).")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU.")] = "auto",
    gpu: Annotated[int | None, typer.Option(help="Index of the GPU: the same as cuda:N.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: float32 on CPU, else bfloat16.")
    ] = "auto",
    quantization: Annotated[
        str,
        typer.Option(help="What the layers' weights are kept in: none (as --dtype), int8, nf4."),
    ] = "none",
    kv_gb: Annotated[float, typer.Option(help="Room for KV caches, in GB.")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads for the computing.")] = 1,
    wire: Annotated[
        str,
        typer.Option(
            help="What hidden states are sent as: float32, bfloat16, float16, int8; "
            "auto: as they are computed."
        ),
    ] = "auto",
    speculate: Annotated[
        bool, typer.Option(help="Guess tokens ahead where that pays (edge; same tokens).")
    ] = True,
    draft: Annotated[
        str | None,
        typer.Option(help="Small checkpoint of the same vocabulary that guesses (edge only)."),
    ] = None,
    paged: Annotated[
        bool,
        typer.Option(
            help="On a GPU: attend in place, replay graphs, if a trial at start goes right."
        ),
    ] = True,
    public_addr: Annotated[str, typer.Option(help="HOST:PORT to be listed under.")] = (
        "0.0.0.0:31330"
    ),
    location: Annotated[
        str, typer.Option(help="Where this machine is, such as EU-West.")
    ] = "unknown",
    cache: Annotated[Path, typer.Option(help="Folder for span checkpoints.")] = CACHE,
    cache_gb: Annotated[
        float | None,
        typer.Option(min=0, help="What they may take, in GB; half of the disk if not given."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read a checkpoint that is there and check its hash.")
    ] = False,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 for none.")] = 0,
) -> None:
    """Register, load the span, and pull work until Ctrl-C or SIGTERM (which drains)."""
    logging.configure(json=not errors.is_terminal)
    options = Options(
        model=model,
        wallet=wallet,
        discovery=discovery,
        keyfile=keyfile,
        password=os.environ.get("FAR_NODE_PASSWORD", ""),
        redis=redis,
        path=path,
        span=_layers(span),
        edge=edge,
        device=device if gpu is None else f"cuda:{gpu}",
        dtype=dtype,
        quantization=quantization,
        kv_gb=kv_gb,
        threads=threads,
        wire=wire,
        speculate=speculate,
        draft=draft,
        paged=paged,
        public_addr=public_addr,
        location=location,
        cache=cache,
        cache_gb=cache_gb,
        verify=verify,
        metrics_port=metrics_port,
    )
    try:
        serve(options)
    except CannotServe as error:
        raise _fail(str(error)) from None


def _fail(message: str) -> typer.Exit:
    errors.print(f"[red]far-node:[/] {message}", highlight=False)
    return typer.Exit(1)


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    start, _, end = text.partition(":")
    try:
        return int(start), int(end)
    except ValueError:
        raise _fail(f"--span is START:END, such as 0:8; got {text!r}.") from None


if __name__ == "__main__":
    app()
