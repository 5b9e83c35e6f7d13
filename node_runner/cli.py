"""`far-node`: serve a span of a model's layers, and be paid for it."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import structlog
import torch
import typer
from eth_account import Account
from prometheus_client import start_http_server
from rich.console import Console

from mesh import log as logging
from mesh import wire as wire_format
from mesh.errors import MeshError
from mesh.footprint import QUANTIZATIONS
from node_runner import metrics
from node_runner.engine.cuda import accelerate, capture_decoding
from node_runner.engine.draft_model import load_draft
from node_runner.engine.engine import Engine
from node_runner.engine.loader import CACHE, prepare_span
from node_runner.engine.span import Span
from node_runner.engine.tensors import DTYPES
from node_runner.platform import Identity, Platform, PlatformError, Vitals
from node_runner.runner import Runner
from node_runner.transport import Unreachable
from node_runner.transport.redis import RedisTransport

app = typer.Typer(
    help="Serve layers of a model on this machine and earn FAR for every token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)
log = structlog.get_logger()


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
        typer.Option(help="Checkpoint folder or hub id, if it is not the model's id."),
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
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 for none.")] = 0,
) -> None:
    """Register, load the span, and pull work until Ctrl-C or SIGTERM (which drains)."""
    logging.configure(json=not errors.is_terminal)
    private_key = _unlock(keyfile, wallet)
    place = _device(device, gpu)
    if quantization not in QUANTIZATIONS:
        raise _fail(f"--quantization is one of {', '.join(QUANTIZATIONS)}; got {quantization!r}.")
    torch.set_num_threads(threads)
    try:
        folder, spec = prepare_span(path or model, layers=_layers(span), edge=edge, cache=cache)
        loaded = Span(
            folder,
            edge=edge,
            device=place,
            dtype=_dtype(dtype, place),
            quantization=quantization,
        )
        loaded.warm_up()
        guesser = _draft(draft, loaded, cache) if speculate else None
        if paged and place.type == "cuda":
            accelerate(loaded)
            if guesser is not None:
                accelerate(guesser)
    except MeshError as error:
        raise _fail(error.detail) from None
    budget = _kv_budget(kv_gb, loaded)
    identity = Identity(
        wallet_address=wallet,
        model_id=model,
        start_layer=spec.start,
        end_layer=spec.end,
        edge=edge,
        gpu_model=_device_name(place),
        vram_gb=_vram_gb(place),
        public_addr=public_addr,
        location=location,
    )
    platform = Platform(discovery, identity, private_key)
    try:
        node_id = platform.join()
    except PlatformError as error:
        raise _fail(f"The platform did not register this node: {error}") from None
    if metrics_port:
        start_http_server(metrics_port, addr="127.0.0.1")
    meter = metrics.Meter()
    engine = Engine(
        loaded,
        node_id=node_id,
        kv_budget_bytes=budget,
        wire_dtype=_wire_dtype(wire),
        speculate=speculate,
        draft=guesser,
    )
    if loaded.kv_shape.paged:
        capture_decoding(loaded, engine.pool)
    try:
        transport = RedisTransport(redis, node_id, engine.room)
    except Unreachable as error:
        raise _fail(f"{error} Is --redis right?") from None
    runner = Runner(engine, transport, meter)

    def drain(*_: object) -> None:
        runner.drain()
        threading.Thread(target=platform.leave).start()  # HTTP has no place in a handler

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, drain)
    forgotten = threading.Event()

    def start_over() -> None:
        forgotten.set()
        runner.drain()

    platform.start_heartbeats(
        lambda: Vitals(*meter.read(), runner.generations, engine.capacity()), start_over
    )
    log.info(
        "node_started",
        node_id=node_id,
        model_id=model,
        layers=[identity.start_layer, identity.end_layer],
        edge=edge,
        device=str(place),
        quantization=quantization,
        weight_bytes=sum(weight.nbytes for weight in loaded.weights),
    )
    runner.run()
    platform.close()
    if forgotten.is_set():
        raise _fail("The platform does not know this node any more. Start it again to register.")


def _fail(message: str) -> typer.Exit:
    errors.print(f"[red]far-node:[/] {message}", highlight=False)
    return typer.Exit(1)


def _unlock(keyfile: Path, wallet: str) -> bytes:
    try:
        key = Account.decrypt(
            json.loads(keyfile.read_text()), os.environ.get("FAR_NODE_PASSWORD", "")
        )
    except OSError as error:
        raise _fail(f"Cannot read the keystore {keyfile}: {error.strerror}.") from None
    except ValueError as error:
        raise _fail(
            f"Cannot unlock {keyfile} ({error}). Is FAR_NODE_PASSWORD its password?"
        ) from None
    address = Account.from_key(key).address
    if address.lower() != wallet.lower():
        raise _fail(f"{keyfile} belongs to {address}, not to --wallet {wallet}.")
    return bytes(key)


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    start, _, end = text.partition(":")
    try:
        return int(start), int(end)
    except ValueError:
        raise _fail(f"--span is START:END, such as 0:8; got {text!r}.") from None


def _device(name: str, gpu: int | None) -> torch.device:
    if gpu is not None:
        name = f"cuda:{gpu}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise _fail("torch finds no GPU here. Use --device cpu, or install a CUDA build.")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise _fail(f"--dtype is one of auto, {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


def _draft(source: str | None, loaded: Span, cache: Path) -> Span | None:
    if source is None:
        return None
    if not loaded.edge:
        raise _fail("--draft goes with --edge: only the edge has tokens to guess.")
    return load_draft(source, loaded, cache=cache)


def _kv_budget(gigabytes: float, loaded: Span) -> int:
    least = loaded.kv_shape.bytes_per_block
    if gigabytes * 1e9 < least:
        raise _fail(f"--kv-gb {gigabytes:g} holds nothing: a block takes {least / 1e9:g} GB.")
    return round(gigabytes * 1e9)


def _wire_dtype(name: str) -> str | None:
    if name == "auto":
        return None
    if name not in wire_format.DTYPES:
        raise _fail(f"--wire is one of auto, {', '.join(wire_format.DTYPES)}; got {name!r}.")
    return name


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _vram_gb(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory / 1e9)


if __name__ == "__main__":
    app()
