"""`far-node bench`: how fast this device is at a model."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from mesh.errors import MeshError
from mesh.model.config import normalize
from node_runner.cli import credentials, options
from node_runner.cli.console import console, errors, fail
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.http import client, request

LAYERS = 2
"""What is measured, where nothing else is asked for: all layers of a model take the same time."""


def bench(
    model: options.Model,
    discovery: options.Discovery = None,
    path: options.CheckpointPath = None,
    device: options.Device = None,
    gpu: options.Gpu = None,
    quantization: options.Quantization = "none",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 1,
    layers: Annotated[int, typer.Option(help="Layers to load.", min=1)] = LAYERS,
    seconds: Annotated[float, typer.Option(help="Seconds to measure.", min=0.3)] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Layers and tokens a second of this device, for a model of the platform.

    Takes the model's own weights from a folder (--path), and else random ones of its shape: that
    takes as long to compute, and nothing to download.
    """
    import torch  # takes seconds, which `far-node --help` should not

    from node_runner.diagnostics import speed_test
    from node_runner.machine import devices

    try:
        chosen = devices.pick_device(
            next(iter(device or [f"cuda:{each}" for each in gpu or []]), "auto")
        )
        number = devices.pick_dtype(dtype, chosen)
        config = _config(model, discovery, path)
    except (ValueError, PlatformError) as error:
        raise fail(str(error)) from None
    torch.set_num_threads(threads)
    total = normalize(config)["num_hidden_layers"]
    layers = min(layers, total)
    local = path is not None and Path(path).is_dir()
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=errors, transient=True, disable=as_json))
        bar = progress.add_task(escape(f"{model} on {devices.device_name(chosen)}"), total=1.0)
        try:
            folder = path or ""
            if not local:
                folder = str(stack.enter_context(speed_test.random_checkpoint(config, layers)))
            speed = speed_test.measure(
                folder,
                layers=layers,
                device=chosen,
                dtype=number,
                quantization=quantization,
                seconds=seconds,
                on_progress=lambda share: progress.update(bar, completed=share),
            )
        except MeshError as error:
            raise fail(error.detail) from None
    one, several = speed.tokens(total)
    figures: dict[str, Any] = {
        "model": model,
        "device": devices.device_name(chosen),
        "dtype": str(number).removeprefix("torch."),
        "quantization": quantization,
        "weights": "the model's own" if local else "random, in the model's shape",
        "layers_measured": layers,
        "layers_of_model": total,
        "decode_layers_per_second": speed.decode,
        "batch_layers_per_second": speed.batch,
        "prefill_layers_per_second": speed.prefill,
        "tokens_per_second_all_layers": one,
        "tokens_per_second_all_layers_batch": several,
        "load_seconds": speed.load_seconds,
    }
    if as_json:
        console.print_json(json.dumps(figures))
        return
    console.print(
        f"{model} on {figures['device']}, {figures['dtype']}, quantization {quantization}; "
        f"{layers} of {total} layers, weights {figures['weights']}",
        markup=False,
    )
    console.print(_table(speed, total))
    console.print(
        "[dim]A layer counts once for each position. The last column: if this device held all "
        "layers, without the edge.[/]"
    )


def _table(speed: Any, total: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("layers/s", f"tokens/s through {total} layers"):
        table.add_column(heading, justify="right")
    rows = {
        "decode, one generation": speed.decode,
        "decode, eight at once": speed.batch,
        "prefill, 256 positions": speed.prefill,
    }
    for name, rate in rows.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / total:,.1f}")
    return table


def _config(model: str, discovery: str | None, path: str | None) -> dict[str, Any]:
    """The model's configuration, from a folder or from the platform."""
    if path is not None and Path(path).is_dir():
        return dict(json.loads((Path(path) / "config.json").read_text()))
    login = credentials.saved_login()
    url = credentials.platform_of(discovery, login)
    if url is None:
        raise fail("Which platform? far-node login first, or --discovery URL, or --path FOLDER.")
    with client(url) as http:
        return request(http, "GET", f"/api/discovery/config/{model}")
