"""A model that repeats its prompt, in the demo model's shape, with weights that are set by hand.

The demo model is too small to have learned to copy. Larger models copy by induction heads (Olsson
et al. 2022): one layer tells every position which tokens came before it, a later one finds the
place where the same tokens stood before, and writes what followed there. Here are both, in
the first two layers; the other layers compute as much as the demo model's and add nothing.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

MATCH = 8
"""Width of the code by which tokens are compared."""

COMPARED = 3
"""Tokens that have to stand there again."""

NAME = 64
"""Width of the code by which a token is written: 32 for each of two key-value heads."""

OWN = slice(0, NAME)
WRITTEN = slice(NAME, 2 * NAME)
BACK = [slice(at, at + MATCH) for at in range(2 * NAME, 2 * NAME + MATCH * (COMPARED + 1), MATCH)]
ALWAYS = 255
"""Where a position's vector holds its token, what is to be written, the codes of its token and of
those before it, and a one."""

ROPE_THETA = 1e20
QUICK = range(3)
"""Pairs of a head's values that rotate fast enough to tell neighbours apart. The others hardly
rotate within a thousand positions, so that they compare tokens at any distance."""

SHARPNESS = 100.0
"""Of the heads' choice: scores of the right place and the next best differ by this and more."""


def make(demo: Path, folder: Path) -> None:
    """Write the checkpoint to a new folder, with the demo model's tokenizer."""
    settings = json.loads((demo / "config.json").read_text())
    settings |= {"eos_token_id": None, "dtype": "float32", "tie_word_embeddings": False}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": ROPE_THETA}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        _write(model)
    model.save_pretrained(folder)
    shutil.copy(demo / "tokenizer.json", folder)


def _write(model: LlamaForCausalLM) -> None:
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    names = _unit(torch.randn(vocabulary, NAME, generator=generator))
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding.zero_()
    embedding[:, OWN] = names
    embedding[:, BACK[0]] = _unit(torch.randn(vocabulary, MATCH, generator=generator))
    embedding[:, ALWAYS] = 1
    head.zero_()
    head[:, WRITTEN] = names
    _write_previous_token_heads(model.model.layers[0].self_attn)
    _write_induction_heads(model.model.layers[1].self_attn)


def _write_previous_token_heads(attention: torch.nn.Module) -> None:
    """Previous-token heads: each attends to a fixed distance, and brings that token's code."""
    queries, keys, values, output, half, _ = _weights(attention)
    keys[0, list(QUICK), ALWAYS] = SHARPNESS
    values[0, :MATCH, BACK[0]] = torch.eye(MATCH)
    for head in range(COMPARED):
        distance = head + 1
        for pair in QUICK:
            angle = distance * ROPE_THETA ** (-pair / half)
            queries[head, pair, ALWAYS] = math.cos(angle)
            queries[head, half + pair, ALWAYS] = -math.sin(angle)
        output[BACK[distance], head, :MATCH] = torch.eye(MATCH)


def _write_induction_heads(attention: torch.nn.Module) -> None:
    """Induction heads: attend to what followed the last tokens before, each for half of its
    code."""
    queries, keys, values, output, half, group = _weights(attention)
    slow = [*range(len(QUICK), half), *range(half + len(QUICK), 2 * half)]
    width = NAME // 2
    for head in range(2):
        for back in range(COMPARED):
            at = slow[back * MATCH : (back + 1) * MATCH]
            queries[group * head, at, BACK[back]] = SHARPNESS * torch.eye(MATCH)
            keys[head, at, BACK[back + 1]] = torch.eye(MATCH)
        part = slice(head * width, (head + 1) * width)
        values[head, :, OWN][:, part] = torch.eye(width)
        output[WRITTEN, group * head][part] = torch.eye(width)


def _weights(attention: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values by head, the output by head, half a head's width, and queries'
    heads for each of the keys'; all weights zero."""
    width = attention.head_dim
    found = []
    for product in (attention.q_proj, attention.k_proj, attention.v_proj):
        product.weight.zero_()
        found.append(product.weight.view(-1, width, product.in_features))
    output = attention.o_proj.weight.view(attention.o_proj.out_features, -1, width)
    return *found, output, width // 2, len(found[0]) // len(found[1])


def _unit(codes: torch.Tensor) -> torch.Tensor:
    return codes / codes.norm(dim=-1, keepdim=True)
