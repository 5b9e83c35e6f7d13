"""Memory and reads of loading a span: `python -m benchmarks.loading --help`."""

import ctypes
import json
import mmap
import os
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from benchmarks.checkpoints.watched_load import Loader
from benchmarks.common import machine
from mesh.model.memory_footprint import QUANTIZATIONS

MB = 10**6
HEAD_DIM = 64

console = Console(highlight=False)


def main(
    shards: Annotated[int, typer.Option(help="Files of the checkpoint; a multiple of 4.")] = 16,
    layers_each: Annotated[int, typer.Option(help="Layers in each file.")] = 4,
    hidden: Annotated[int, typer.Option(help="Hidden size; a layer has 12 x hidden².")] = 768,
    dtype: Annotated[str, typer.Option(help="What the span computes in.")] = "float32",
) -> None:
    """Load the second quarter of a generated Llama in float16, with each quantization.

    Loads are done by another process, whose anonymous memory (RssAnon) this one reads every
    millisecond. Pages of files are not in it: the system drops them when memory is wanted.

    Reads are counted in pages: those of the checkpoint that are in the system's cache after all
    loads, and were not before.
    """
    layers = (shards * layers_each // 4, shards * layers_each // 2)
    table = Table("quantization", "span", "peak", "peak less span", "kept", title=f"MB, {dtype}")
    with tempfile.TemporaryDirectory(prefix="far-loading-") as folder, Loader() as loader:
        source = Path(folder) / "model"
        files = make_checkpoint(source, hidden=hidden, shards=shards, layers_each=layers_each)
        for file in files:
            drop_from_cache(file)
        for quantization in QUANTIZATIONS:
            loaded = loader.load(source, layers, Path(folder) / quantization, dtype, quantization)
            figures = (loaded.span, loaded.peak, loaded.peak - loaded.span, loaded.kept)
            table.add_row(quantization, *(f"{figure / MB:.0f}" for figure in figures))
        own = files[shards // 4 : shards // 2]
        other_files = [file for file in files if file not in own]
        shard = files[0].stat().st_size
        console.print(table)
        console.print(
            f"A span of {layers[1] - layers[0]} of {shards * layers_each} layers; one shard of the "
            f"checkpoint has {shard / MB:.0f} MB.\n"
            f"Read of the span's {len(own)} shards: {sum(map(cached_bytes, own)) / MB:.0f} of "
            f"{sum(file.stat().st_size for file in own) / MB:.0f} MB; "
            f"of the other {len(other_files)}: {sum(map(cached_bytes, other_files))} bytes.",
            soft_wrap=True,
        )
    console.print(machine.summary(), soft_wrap=True)


def make_checkpoint(folder: Path, *, hidden: int, shards: int, layers_each: int) -> list[Path]:
    """A Llama of random weights in float16 without embedding and head; and its files, in order."""
    width = 8 * hidden // 3 // HEAD_DIM * HEAD_DIM
    layers = shards * layers_each
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_DIM,
        vocab_size=256,
    )
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_string())
    square, wide = torch.randn(hidden, hidden).half(), torch.randn(width, hidden).half()
    weights = {f"self_attn.{name}_proj": square.clone() for name in "qkvo"}
    weights |= {f"mlp.{name}_proj": wide.clone() for name in ("gate", "up")}
    weights |= {"mlp.down_proj": wide.T.contiguous()}
    weights |= {f"{name}_layernorm": square[0].clone() for name in ("input", "post_attention")}
    weight_map, files = {}, []
    for shard in range(shards):
        file = folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = {
            f"model.layers.{layer}.{name}.weight": weight.clone()
            for layer in range(shard * layers_each, (shard + 1) * layers_each)
            for name, weight in weights.items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
        files.append(file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index))
    return files


def drop_from_cache(file: Path) -> None:
    """Make the system drop a file from its page cache.

    Raises:
        OSError: the file stays in memory.
    """
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_bytes(file):
        raise OSError(f"The file system keeps {file} in memory: put TMPDIR on a disk.")


def cached_bytes(file: Path) -> int:
    """Bytes of a file that are in the system's page cache."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    with (
        file.open("r+b") as opened,
        mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start  # else the mapping cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


if __name__ == "__main__":
    typer.run(main)
