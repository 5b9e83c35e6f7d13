"""The models of the benchmarks, as checkpoints in a folder, and prompts for them.

None has an end token: so all sides generate exactly as many tokens as they are asked for.
"""

import json
import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.checkpoints import copier

CORPUS = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
VOCAB = 8192

NAMES = ("S", "M", "L")
"""The models that commands offer."""


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A checkpoint to measure. ``weights`` counts its parameters."""

    name: str
    title: str
    folder: Path
    weights: int
    tokenizer: Tokenizer

    def prompt(self, tokens: int, number: int = 0) -> str:
        """Text of exactly so many tokens; another text for another number."""
        start = number * 1009 % (len(CORPUS) // 2)
        while True:
            text = CORPUS[start : start + 16 * tokens]
            text = text[: self.tokenizer.encode(text).offsets[tokens - 1][1]]
            if len(self.tokenizer.encode(text).ids) == tokens:
                return text
            start += 1  # cut elsewhere, these tokens do not survive


def make(name: str, demo: Path, folder: Path) -> BenchModel:
    """A model by name, in a new folder; L in one of its own, which is kept for the next time.
    ``demo``: the demo model's checkpoint."""
    logging.disable_progress_bar()
    match name:
        case "S":
            return small(demo, folder)
        case "S8":
            return deep(demo, folder)
        case "copier":
            copier.make(demo, folder)
            return _bench_model("copier", "weights that repeat the prompt", folder)
        case "M":
            return medium(folder)
        case _:
            return large(Path(tempfile.gettempdir()) / "far-bench-L")


def checkpoint(folder: Path) -> BenchModel:
    """The model of a checkpoint that is there, with its end tokens."""
    return _bench_model(folder.name, folder.name, folder)


def small(demo: Path, folder: Path) -> BenchModel:
    """The demo model, with its end token taken out of the configuration."""
    shutil.copytree(demo, folder)
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))
    return _bench_model("S", "the demo model", folder)


def deep(demo: Path, folder: Path) -> BenchModel:
    """Random weights in the demo model's shape, with eight layers, so that they can be cut into
    1, 2, 4 or 8 spans; and its tokenizer."""
    settings = json.loads((demo / "config.json").read_text())
    settings |= {"num_hidden_layers": 8, "eos_token_id": None, "dtype": "float32"}
    _save_random(LlamaConfig(**settings), folder)
    shutil.copy(demo / "tokenizer.json", folder)
    return _bench_model("S8", "random weights in the demo model's shape", folder)


def medium(folder: Path) -> BenchModel:
    """A Llama of random weights, and a byte-level BPE tokenizer that knows all of its ids."""
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=VOCAB,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
    )
    _save_random(config, folder)
    _train_tokenizer(VOCAB).save(str(folder / "tokenizer.json"))
    return _bench_model("M", "random weights", folder)


def large(folder: Path) -> BenchModel:
    """Random weights in TinyLlama's shape, 4.4 GB in float32, written a layer at a time."""
    if not folder.exists():
        config = LlamaConfig(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            vocab_size=32000,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=None,
            dtype="float32",
        )
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix="far-bench-making-"))
        _save_shards(config, made)
        _train_tokenizer(config.vocab_size).save(str(made / "tokenizer.json"))
        made.rename(folder)
    return _bench_model("L", "random weights", folder)


def _save_random(config: LlamaConfig, folder: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def _save_shards(config: LlamaConfig, folder: Path) -> None:
    """As `save_pretrained` would, for weights that need not be in memory at once."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer = re.search(r"\.layers\.(\d+)\.", name)
        part = f"layer-{layer[1]}" if layer else name.removesuffix(".weight")
        shards.setdefault(f"model-{part}.safetensors", []).append(name)
    for shard, names in shards.items():
        tensors = {
            name: torch.ones(shapes[name])
            if len(shapes[name]) == 1  # a norm's
            else config.initializer_range * torch.randn(shapes[name], generator=generator)
            for name in names
        }
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    index = {name: shard for shard, names in shards.items() for name in names}
    size = sum(4 * shape.numel() for shape in shapes.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def _train_tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE with so many ids; beyond what the corpus can teach, with names without
    sense."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([f"<{number}>" for number in range(tokenizer.get_vocab_size(), size)])
    return tokenizer


def _bench_model(name: str, origin: str, folder: Path) -> BenchModel:
    config = json.loads((folder / "config.json").read_text())
    weights = sum(_count(file) for file in folder.glob("*.safetensors"))
    title = (
        f"{origin}, {weights / 1e6:.0f}M parameters, hidden {config['hidden_size']}, "
        f"{config['num_hidden_layers']} layers, vocabulary {config['vocab_size']}"
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return BenchModel(name, title, folder, weights, tokenizer)


def _count(file: Path) -> int:
    """The parameters of a file, of which only the header is read."""
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
