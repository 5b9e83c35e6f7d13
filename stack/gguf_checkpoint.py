"""A checkpoint out of a GGUF file: dequantized once, and then served like any other.

transformers reads the file (https://huggingface.co/docs/transformers/gguf). It and torch are only
on machines that have the extra `gguf`: they are imported when a file is read.
"""

import errno
import re
import shutil
import tempfile
from collections.abc import Callable
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from market.catalog.models import load_model
from market.settings.models import ModelSettings
from mesh.errors import DiskFull, UnsupportedModel, WeightsMissing, WeightsRefused
from mesh.model.served_models import check_model

MAGIC = b"GGUF"

NEEDED = ("gguf", "torch", "transformers")

DTYPES = ("float16", "bfloat16", "float32")
"""Of the checkpoint's weights. What was quantized keeps more of its digits in float16 than in
bfloat16; a node computes in a dtype of its own."""

PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
"""How the names of files end that hold a part of a model."""


def missing_packages() -> list[str]:
    """What of the packages that read GGUF is not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def import_gguf(file: Path, folder: Path, dtype: str, say: Callable[[str], None]) -> None:
    """Write a checkpoint: weights, configuration, tokenizer with its chat template, and settings of
    generation.

    Args:
        file: The whole model.
        folder: Where the checkpoint shall lie: empty, or not there yet. It is there, complete, or
            not at all.
        dtype: One of :data:`DTYPES`.
        say: Called with a line for each part of the work.

    Raises:
        WeightsMissing: no such file.
        WeightsRefused: not a GGUF file, part of one, broken, or with numbers that ``dtype`` lacks.
        UnsupportedModel: transformers does not read its family from GGUF, or no node serves it.
        FileExistsError: the folder is not empty.
        DiskFull: no room for the checkpoint.
    """
    _check_file(file)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and not empty: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it can be moved there in one step.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(file, unfinished, dtype, say)
        load_model(ModelSettings(id=file.stem, path=str(unfinished), payment_per_token=Decimal()))
        for path in unfinished.iterdir():  # safetensors writes what only its owner may read
            path.chmod(0o644)
        unfinished.chmod(0o755)
        unfinished.replace(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder) from None
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise WeightsMissing(f"There is no file {file}.")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise WeightsRefused(f"{file} is not a GGUF file: it does not begin with {MAGIC!r}.")
    if PART.search(file.name):
        raise WeightsRefused(
            f"{file} is a part of a model. Merge the parts first: `llama-gguf-split --merge`."
        )


def _write(file: Path, folder: Path, dtype: str, say: Callable[[str], None]) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(file.parent), file.name
    say(f"Reading {name}")
    config = _read(file, lambda: AutoConfig.from_pretrained(source, gguf_file=name))
    check_model(config.to_dict())
    say("Reading its tokenizer")
    tokenizer = _read(file, lambda: AutoTokenizer.from_pretrained(source, gguf_file=name))
    say(f"Dequantizing its weights to {dtype}")
    model = _read(
        file,
        lambda: AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            dtype=getattr(torch, dtype),
            # Where there are kernels for them, it would keep the weights as they are.
            quantization_config=GgufConfig(dequantize=True),
        ),
    )
    for tensor_name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise WeightsRefused(
                f"{tensor_name} has numbers that {dtype} does not: use --dtype float32."
            )
    needed = sum(tensor.nbytes for tensor in model.parameters())
    if shutil.disk_usage(folder).free < needed:
        raise _disk_full(folder.parent, needed)
    say(f"Writing {needed / 1e9:.2f} GB")
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # which has the system's error as text alone
        if "os error 28" in str(error):
            raise _disk_full(folder.parent, needed) from None
        raise
    tokenizer.save_pretrained(folder)


def _read(file: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # its readers raise whatever Python does
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "not supported yet" in reason:
            raise UnsupportedModel(f"transformers does not read {file.name}: {reason}") from None
        raise WeightsRefused(f"{file} cannot be read ({type(error).__name__}: {reason}).") from None


def _disk_full(folder: Path, needed: int | None = None) -> DiskFull:
    wanted = "" if needed is None else f" for {needed / 1e9:.2f} GB"
    return DiskFull(f"There is no room{wanted} in {folder}.")
