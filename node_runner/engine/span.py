"""The layers of one span, loaded; and the embedding and head, where it holds the edge."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from mesh.errors import UnsupportedModel
from node_runner.engine.attention import Pack, Segment
from node_runner.engine.fused import FusedLayers, can_fuse
from node_runner.engine.kv import KVPool, KVShape
from node_runner.engine.layers import NAME, Layers, TransformersLayers
from node_runner.engine.weights import use_huge_pages

NOT_IN_A_MIDDLE_SPAN = {"embed_tokens.weight", "norm.weight"}


class Span:
    """Runs hidden states through its layers, ``[rows, hidden] → [rows, hidden]``."""

    def __init__(self, folder: Path, *, edge: bool, device: torch.device, dtype: torch.dtype):
        """Load a checkpoint that :func:`prepare_span` made.

        Raises:
            UnsupportedModel: the checkpoint lacks a tensor, or has one too many.
        """
        self.device, self.dtype, self.edge = device, dtype, edge
        model = _load(folder, edge=edge, dtype=dtype).to(device).eval()
        config = model.config
        decoder = model.get_decoder() if edge else model
        # The final norm belongs to the head, which only the edge has.
        self._norm, decoder.norm = decoder.norm, nn.Identity()
        if edge:
            self._embedding = model.get_input_embeddings()
            self._head = model.get_output_embeddings()
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.end_tokens = _end_tokens(folder, config)
        else:
            decoder.embed_tokens = nn.Identity()
            self._norm = nn.Identity()
        self._layers, taken = _layers(decoder)
        self.weights = [*model.parameters(), *self._norm.parameters(), *taken]
        use_huge_pages(self.weights)
        self.hidden_size: int = config.hidden_size
        self.layers: int = config.num_hidden_layers
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self.kv_shape = KVShape(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            dtype=dtype,
            device=device,
        )

    def warm_up(self) -> None:
        """Compute a little of each kind, so that no generation waits for what torch does once."""
        pool = KVPool(self.kv_shape, 2 * self.kv_shape.bytes_per_block)
        caches = [pool.reserve(1), pool.reserve(1)]
        rows = torch.zeros(2, self.hidden_size, dtype=self.dtype, device=self.device)
        for packed in (
            [Segment(caches[0], rows=2, position=0)],
            [Segment(caches[0], rows=1, position=2)],
            [Segment(cache, rows=1, position=3) for cache in caches],
        ):
            output = self.forward(rows[: sum(segment.rows for segment in packed)], Pack(packed))
        if self.edge:
            self.logits(output)

    @torch.inference_mode()
    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Token ids to hidden states ``[rows, hidden]``. Edge only."""
        embedded: torch.Tensor = self._embedding(torch.tensor(token_ids, device=self.device))
        return embedded

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
        """All rows of a pack through the layers; their caches grow by them."""
        output = self._layers(hidden, pack)
        pack.close()
        return output

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[rows, hidden]`` to logits ``[rows, vocab]``, float32. Edge only."""
        logits: torch.Tensor = self._head(self._norm(hidden))
        return logits.float()


def _load(folder: Path, *, edge: bool, dtype: torch.dtype) -> PreTrainedModel:
    loader = AutoModelForCausalLM if edge else AutoModel
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a middle span lacks the embedding on purpose
    transformers_logging.disable_progress_bar()
    try:
        model, info = loader.from_pretrained(
            folder, dtype=dtype, attn_implementation=NAME, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = set(info["missing_keys"]) - (set() if edge else NOT_IN_A_MIDDLE_SPAN)
    if missing or info["unexpected_keys"]:
        raise UnsupportedModel(
            f"The checkpoint in {folder} does not fit its configuration: missing "
            f"{sorted(missing)}, unexpected {sorted(info['unexpected_keys'])}."
        )
    return model


def _layers(decoder: Any) -> tuple[Layers, list[torch.Tensor]]:
    """The quickest way to run the decoder's layers, and weights that it took out of the model."""
    if can_fuse(decoder):
        fused = FusedLayers(decoder)
        return fused, fused.weights
    return TransformersLayers(decoder), []


def _end_tokens(folder: Path, config: object) -> frozenset[int]:
    file = folder / "generation_config.json"
    found = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
    if found is None:
        found = getattr(config, "eos_token_id", None)
    return frozenset([found] if isinstance(found, int) else found or [])
