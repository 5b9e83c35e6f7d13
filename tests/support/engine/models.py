"""Checkpoints of small models for engines: random ones, and ones that write what a test says."""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.support.engine.families import TINY

CHAIN = {"hidden_size": 320, "vocab_size": 320, "num_hidden_layers": 2}
"""A hidden state has a value for each token."""


def save_random(folder: Path, tokenizer: Tokenizer, **settings: object) -> Path:
    """A llama of random weights, with large logits, so that no two tokens are about equally
    likely."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**TINY | {"model_type": "llama"} | settings)
    )
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return _save(model, folder, tokenizer)


def save_chain(
    folder: Path,
    tokenizer: Tokenizer,
    successors: Mapping[int, int],
    *,
    overflowing: int | None = None,
) -> Path:
    """A llama that writes after each token its successor, whatever came before.

    Args:
        overflowing: After this token, a logit is infinite.
    """
    settings = TINY | CHAIN | {"model_type": "llama", "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    size = CHAIN["hidden_size"]
    weights = model.state_dict()
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # what a layer adds
            tensor.zero_()
    weights["model.embed_tokens.weight"].copy_(torch.eye(size))
    head = weights["lm_head.weight"].zero_()
    for token, successor in successors.items():
        head[successor, token] = 1
    if overflowing is not None:
        head[0, overflowing] = torch.finfo(torch.float32).max
    return _save(model, folder, tokenizer)


def _save(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
