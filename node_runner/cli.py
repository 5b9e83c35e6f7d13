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
    keyfile: Annotated[
        Path,
        typer.Option(
            envvar="FAR_NODE_KEYFILE",
            help="Encrypted keystore of the wallet; its password is in FAR_NODE_PASSWORD. "
            "Only used to sign the registration.",
        ),
    ],
    discovery: Annotated[
        str | None,
        typer.Option(
            "--discovery",
            "--discovery-url",
            help="URL of the platform; where it does not answer, or is not given, it is looked up "
            "in the DHT.",
        ),
    ] = None,
    dht_peers: Annotated[
        str,
        typer.Option(
            envvar="FAR_NODE_DHT_PEERS",
            help="Peers to join the DHT by, as multiaddresses, separated by commas.",
        ),
    ] = "",
    operator_key: Annotated[
        str | None,
        typer.Option(
            envvar="FAR_NODE_OPERATOR_KEY",
            help="Key of the platform's operator, whose word counts in the DHT.",
        ),
    ] = None,
    announce: Annotated[bool, typer.Option(help="Announce the span in the DHT.")] = True,
    redis: Annotated[
        str | None,
        typer.Option(
            envvar="FAR_NODE_REDIS",
            help="Redis of the platform, for nodes beside it; all others use the relay of "
            "--discovery.",
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or hub id, if it is not the model's id."),
    ] = None,
    span: Annotated[
        str | None,
        typer.Option(
            help="Layers to serve, as START:END (end not included). If not given, the platform "
            "chooses them, and may choose others later."
        ),
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
    memory_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory for weights and KV caches, in GB. If not given: 90 % of a GPU's, half of "
            "a CPU machine's. How many layers the platform gives this node depends on it."
        ),
    ] = None,
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
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 for none.")] = 0,
) -> None:
    """Register, load the span, and pull work until Ctrl-C or SIGTERM (which drains)."""
    logging.configure(json=not errors.is_terminal)
    options = Options(
        model=model,
        wallet=wallet,
        discovery=discovery,
        dht_peers=tuple(peer.strip() for peer in dht_peers.split(",") if peer.strip()),
        operator_key=operator_key,
        announce=announce,
        keyfile=keyfile,
        password=os.environ.get("FAR_NODE_PASSWORD", ""),
        redis=redis,
        path=path,
        span=_layers(span),
        edge=edge,
        device=device if gpu is None else f"cuda:{gpu}",
        dtype=dtype,
        quantization=quantization,
        memory_gb=memory_gb,
        kv_gb=kv_gb,
        threads=threads,
        wire=wire,
        speculate=speculate,
        draft=draft,
        paged=paged,
        public_addr=public_addr,
        location=location,
        cache=cache,
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
