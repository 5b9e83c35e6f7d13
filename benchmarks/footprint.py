"""How many layers of known models fit a device: `python -m benchmarks.footprint --help`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mesh.model.config import normalize
from mesh.model.memory_footprint import QUANTIZATIONS, Footprint, footprint, linear_shapes

GB = 10**9
DEVICES = (8, 12, 16, 24, 80)
"""GB of memory of devices that are sold."""

LLAMA = {"model_type": "llama", "vocab_size": 32000}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7B": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "Llama-2-13B": LLAMA
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "Llama-2-70B": LLAMA
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "BLOOM-176B": {
        "model_type": "bloom",
        "vocab_size": 250880,
        "hidden_size": 14336,
        "num_hidden_layers": 70,
        "num_attention_heads": 112,
    },
}
"""Their `config.json`s, as far as bytes depend on them."""

BITS = {"none": 16, "int8": 8, "nf4": 4}
NUMBER = 2
"""Bytes of a number in 16 bits."""

ROWS = 256
"""Positions of one forward: a chunk of a prompt, and steps of others beside it."""

console = Console(highlight=False)


def main(
    sessions: Annotated[int, typer.Option(help="Generations whose KV cache a node holds.")] = 8,
    tokens: Annotated[int, typer.Option(help="Positions of each, prompt and answer.")] = 2048,
    context_gb: Annotated[
        float, typer.Option(help="GB for what CUDA and its libraries take on a device.")
    ] = 0.8,
) -> None:
    """Tell, from configurations alone, how many layers fit a device and how many nodes cover a
    model, all on such devices.

    KV caches have 16 bits, and hold all positions of all sessions in each layer. Reserved
    besides: what CUDA takes, activations of a forward of 256 rows, and one product in 16 bits
    where weights have to be unpacked. The first node also holds the edge, in 16 bits.
    """
    positions = sessions * tokens
    table = Table(
        "model",
        "bits",
        "a layer, MB",
        "edge, MB",
        "KV a layer, MB",
        "reserve, MB",
        *(f"{device} GB" for device in DEVICES),
    )
    for name, config in MODELS.items():
        for quantization in QUANTIZATIONS:
            takes = footprint(config, quantization)
            reserve = round(context_gb * GB) + working_bytes(config, quantization)
            sizes = (
                takes.layer,
                takes.edge,
                positions * takes.kv,
                reserve,
            )
            fitting = (
                fits(
                    takes,
                    config["num_hidden_layers"],
                    device * GB - reserve,
                    positions,
                )
                for device in DEVICES
            )
            table.add_row(
                name if quantization == "none" else "",
                str(BITS[quantization]),
                *(f"{size / 10**6:.0f}" for size in sizes),
                *fitting,
            )
    console.print(
        f"Layers on a node / nodes that cover the model, for {sessions} sessions of {tokens} "
        "positions. GB are 10⁹ bytes.",
        soft_wrap=True,
    )
    console.print(table)


def fits(takes: Footprint, layers: int, free_bytes: int, positions: int) -> str:
    """Layers that fit a node, and nodes that cover the model.

    ``free_bytes``: for weights and KV cache. A dash where not one layer fits beside the edge.
    """
    on_first = min(
        layers,
        takes.layers_within(free_bytes - takes.edge, positions=positions),
    )
    on_others = min(layers, takes.layers_within(free_bytes, positions=positions))
    if not on_first:
        return f"{on_others} / -" if on_others else "-"
    return f"{on_others} / {1 + -(-(layers - on_first) // on_others)}"


def working_bytes(config: Mapping[str, Any], quantization: str) -> int:
    """Bytes that one forward takes besides weights and KV cache."""
    products = linear_shapes(normalize(config))
    rows = ROWS * sum(outputs for outputs, _ in products)
    unpacked = max(outputs * inputs for outputs, inputs in products)
    return (rows + (unpacked if quantization != "none" else 0)) * NUMBER


if __name__ == "__main__":
    typer.run(main)
