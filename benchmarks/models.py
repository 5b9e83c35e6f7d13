"""The two models of the speed benchmark, as checkpoints in a folder, and prompts for them.

Neither has an end token: so both sides generate exactly as many tokens as they are asked for.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

CORPUS = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
VOCAB = 8192


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
        start = number * 1009
        while True:
            text = CORPUS[start : start + 16 * tokens]
            text = text[: self.tokenizer.encode(text).offsets[tokens - 1][1]]
            if len(self.tokenizer.encode(text).ids) == tokens:
                return text
            start += 1  # cut elsewhere, these tokens do not survive


def make(name: str, demo: Path, folder: Path) -> BenchModel:
    """The model S or M in a new folder. ``demo``: the demo model's checkpoint."""
    return small(demo, folder) if name == "S" else medium(folder)


def small(demo: Path, folder: Path) -> BenchModel:
    """The demo model, with its end token taken out of the configuration."""
    shutil.copytree(demo, folder)
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))
    return _described("S", "the demo model", folder)


def medium(folder: Path) -> BenchModel:
    """A Llama of random weights, and a byte-level BPE tokenizer that knows all of its ids."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
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
    LlamaForCausalLM(config).save_pretrained(folder)
    _train_tokenizer().save(str(folder / "tokenizer.json"))
    return _described("M", "random weights", folder)


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    if tokenizer.get_vocab_size() != VOCAB:
        raise ValueError(f"The tokenizer has {tokenizer.get_vocab_size()} ids, not {VOCAB}.")
    return tokenizer


def _described(name: str, origin: str, folder: Path) -> BenchModel:
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        weights = sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118
    title = (
        f"{origin}, {weights / 1e6:.0f}M parameters, hidden {config['hidden_size']}, "
        f"{config['num_hidden_layers']} layers, vocabulary {config['vocab_size']}"
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return BenchModel(name, title, folder, weights, tokenizer)
