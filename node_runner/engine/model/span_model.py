"""The layers of one span, loaded; and the embedding and LM head, where the span has the edge."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from mesh.errors import UnsupportedModel, WeightsMissing
from mesh.model import generation_config, tokenizer
from mesh.model.generation_config import GenerationConfig, read_generation_config
from mesh.model.memory_footprint import check_quantization
from mesh.model.tokenizer import load_tokenizer
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVShape
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.device.batch_invariant import linear as batch_invariant_linear
from node_runner.engine.device.batch_invariant import with_invariant_products
from node_runner.engine.device.host_memory import returning_memory, use_huge_pages
from node_runner.engine.device.matmul import Linear
from node_runner.engine.device.matmul import linear as fast_linear
from node_runner.engine.device.tensors import on_device
from node_runner.engine.model.alibi_layers import AlibiLayers
from node_runner.engine.model.cuda_graphs import Capture, DecodeGraphs
from node_runner.engine.model.embedding import Embedding, LMHead, take_norm
from node_runner.engine.model.families import FAMILIES, Family
from node_runner.engine.model.fused_layers import FusedLayers, can_fuse
from node_runner.engine.model.quantization import missing_library, quantizer, use_weight_only
from node_runner.engine.model.transformers_layers import ATTENTION, LayerStack, TransformersLayers


class SpanModel:
    """Runs hidden states through a span's layers, ``[rows, hidden] → [rows, hidden]``.

    Attributes:
        hidden_size: Width of hidden states.
        vocab_size: Rows of the embedding; of a span without the edge, no use.
        max_positions: Positions that the model was made for.
        batch_invariant: Whether what a row gives is the same bits, whatever rows are computed with
            it.
        layers: How many the span has.
        kv_shape: What a position takes in a KV cache.
        weights: All tensors of weights, quantized ones and their scales included.
        tokenizer: The model's; edge only.
        generation_config: What the checkpoint says of generation; edge only.
        end_tokens: Token ids that end a text; edge only.
    """

    @returning_memory()
    def __init__(
        self,
        folder: Path,
        *,
        edge: bool,
        device: torch.device,
        dtype: torch.dtype,
        quantization: str = "none",
        batch_invariant: bool = True,
    ):
        """Load a checkpoint that :func:`prepare_span` made.

        Args:
            folder: The checkpoint's.
            edge: Whether to load embedding, final norm, LM head and tokenizer too.
            device: Where to compute.
            dtype: What to compute in, and to keep all weights in that are not quantized.
            quantization: Of the layers' linear weights, one of
                :data:`mesh.model.memory_footprint.QUANTIZATIONS`.
            batch_invariant: Whether what a row gives must be the same bits whatever rows are
                computed with it. For dtypes of 16 bits; in float32 the order of adding up changes
                no token in practice, and products stay as fast as they are.

        Raises:
            UnsupportedModel: the checkpoint lacks a tensor, or has one too many; or it cannot be
                quantized like this, or not on this machine.
            WeightsMissing: the edge's checkpoint does not say how to generate.
        """
        self.device, self.dtype, self.edge = device, dtype, edge
        self.batch_invariant = batch_invariant and dtype.itemsize == 2
        model, family = _load(
            folder,
            edge=edge,
            dtype=dtype,
            device=device,
            how=quantization,
            batch_invariant=self.batch_invariant,
        )
        scales = use_weight_only(model, batch_invariant=self.batch_invariant)
        linear = batch_invariant_linear if self.batch_invariant else fast_linear
        config, decoder = model.config, model.base_model
        embedding, norm = Embedding(decoder, family), take_norm(decoder, family)
        held = nn.ModuleList([model])
        if edge:
            self._embedding = embedding
            self._head = LMHead(norm, model.get_output_embeddings(), config, family, linear)
            held += [self._embedding, self._head]
            self.tokenizer = load_tokenizer(folder / tokenizer.NAME)
            self.generation_config = _generation_config(folder, config.vocab_size)
            self.end_tokens = self.generation_config.eos_token_ids
        self._layers, taken = _layers(decoder, family, linear)
        if self.batch_invariant and not self.capturable:
            self._layers = with_invariant_products(self._layers)
        self._graphs: DecodeGraphs | None = None
        self.weights = [*held.parameters(), *taken, *scales]
        use_huge_pages(self.weights)
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = getattr(config, "max_position_embeddings", None) or sys.maxsize
        self.layers: int = config.num_hidden_layers
        self.kv_shape = KVShape(
            self.layers,
            *family.kv(config),
            dtype=dtype,
            device=device,
            batch_invariant=self.batch_invariant,
        )

    def warm_up(self) -> None:
        """Run a small batch of each kind, so that no generation waits for what torch does once."""
        pool = KVBlockPool(self.kv_shape, 2 * self.kv_shape.bytes_per_block)
        caches = [pool.reserve(1), pool.reserve(1)]
        rows = torch.zeros(2, self.hidden_size, dtype=self.dtype, device=self.device)
        for segments in (
            [Segment(caches[0], rows=2, position=0)],
            [Segment(caches[0], rows=1, position=2)],
            [Segment(cache, rows=1, position=3) for cache in caches],
        ):
            batch = RaggedBatch(segments)
            output = self.forward(rows[: batch.rows], batch)
        if self.edge:
            self.logits(output)

    @torch.inference_mode()
    def embed(self, token_ids: list[int], positions: list[int]) -> torch.Tensor:
        """Token ids to hidden states ``[rows, hidden]``. Edge only.

        Args:
            token_ids: One a row.
            positions: One a row; only families with learned position embeddings use them.
        """
        embedded: torch.Tensor = self._embedding(
            on_device(token_ids, self.device), on_device(positions, self.device)
        )
        return embedded

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """A batch's rows ``[rows, hidden]`` through the layers, to hidden states of that shape. The
        KV caches grow by the rows."""
        output = None if self._graphs is None else self._graphs.run(hidden, batch)
        if output is None:
            output = self._layers(hidden, batch)
        batch.commit()
        return output

    @property
    def capturable(self) -> bool:
        """Whether decode steps can be captured as CUDA graphs: the layers do the same operations
        for all inputs of one shape, which experts do not."""
        return isinstance(self._layers, FusedLayers)

    @torch.inference_mode()
    def capture(self, pool: KVBlockPool, capture: Capture) -> None:
        """Compute decode steps of the pool's generations by graphs from now on.

        Args:
            pool: Whose generations.
            capture: How to capture a computation.

        Raises:
            ValueError: the layers are not :attr:`capturable`, or the pool is not fit for it.
        """
        if not isinstance(self._layers, FusedLayers):
            raise ValueError("Only fused layers are captured.")
        self._graphs = DecodeGraphs(self._layers, pool, capture)

    def drop_graphs(self) -> None:
        """Compute decode steps without graphs again, if there were any."""
        if self._graphs is not None:
            self._graphs.release()
        self._graphs = None

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[rows, hidden]`` to logits ``[rows, vocab]``, float32. Edge only."""
        logits: torch.Tensor = self._head(hidden)
        return logits.float()


def _load(
    folder: Path,
    *,
    edge: bool,
    dtype: torch.dtype,
    device: torch.device,
    how: str,
    batch_invariant: bool,
) -> tuple[PreTrainedModel, Family]:
    settings = json.loads((folder / "config.json").read_text())
    family = FAMILIES[settings["model_type"]]
    check_quantization(settings, how)
    loader = AutoModelForCausalLM if edge else AutoModel
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a middle span lacks the embedding on purpose
    transformers_logging.disable_progress_bar()
    try:
        model, info = loader.from_pretrained(
            folder,
            dtype=dtype,
            device_map=device,
            quantization_config=quantizer(how, dtype, settings),
            attn_implementation=ATTENTION if family.interface else "eager",
            # One product an expert: others compute all experts' rows in one kernel.
            experts_implementation="eager" if batch_invariant else None,
            output_loading_info=True,
        )
    except ImportError as error:
        raise missing_library() from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # What a middle span lacks is taken out of the decoder, unless it is a layer's.
    missing = [key for key in info["missing_keys"] if edge or f"{family.layers}." in key]
    if missing or info["unexpected_keys"]:
        raise UnsupportedModel(
            f"The checkpoint in {folder} does not fit its configuration: missing "
            f"{sorted(missing)}, unexpected {sorted(info['unexpected_keys'])}."
        )
    return model, family


def _layers(decoder: Any, family: Family, linear: Linear) -> tuple[LayerStack, list[torch.Tensor]]:
    """The fastest way to run the decoder's layers, and the weights that were moved out of the model
    for it."""
    if not family.interface:
        return AlibiLayers(decoder, family), []
    if hasattr(decoder, "layers") and can_fuse(decoder):
        fused = FusedLayers(decoder, linear)
        return fused, fused.weights
    return TransformersLayers(decoder, family), []


def _generation_config(folder: Path, vocab_size: int) -> GenerationConfig:
    try:
        settings = json.loads((folder / generation_config.NAME).read_text())
    except FileNotFoundError:
        raise WeightsMissing(
            f"{folder} has no {generation_config.NAME}: an older far-node made it. Remove it, and "
            "start the node where the weights can be fetched again."
        ) from None
    return read_generation_config(settings, vocab_size=vocab_size)
