"""What the gateway and the workers must know of a model: sizes and tokenizer, never weights."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from market.catalog.chat_template import ChatTemplate
from market.catalog.checkpoint_files import CheckpointFiles
from market.catalog.errors import ModelNotFound
from market.catalog.prices import Prices
from market.catalog.sampling_defaults import SamplingDefaults
from market.catalog.token_bytes import most_bytes_a_token
from market.catalog.tool_call_style import ToolCallStyle, tool_call_style
from market.settings.models import ModelSettings
from mesh.errors import UnsupportedModel
from mesh.model import generation_config
from mesh.model.compute_cost import edge_units
from mesh.model.config import normalize
from mesh.model.generation_config import effective_settings, read_generation_config
from mesh.model.memory_footprint import Footprint, footprint
from mesh.model.served_models import check_model
from mesh.model.tokenizer import load_tokenizer

LIKELY_TOKEN_BYTES = 4
"""Bytes of a token of English, with the tokenizers of most models."""


@dataclass(frozen=True)
class Model:
    """A model on offer. ``width``: values of a hidden state; ``edge_units``: the edge's work per
    token in thousandths of a layer."""

    id: str
    name: str
    path: str
    layers: int
    width: int
    context: int
    vocab: int
    min_nodes: int
    prices: Prices
    edge_units: int
    min_vram_gb: int
    tokenizer: Tokenizer
    token_bytes: int | None
    """See :func:`market.catalog.token_bytes.most_bytes_a_token`."""
    config: dict[str, Any]
    """Its `config.json`."""
    chat_template: ChatTemplate | None
    tool_call_style: ToolCallStyle | None
    """How it writes calls of tools; none if it was trained on none that are read here."""
    sampling_defaults: SamplingDefaults

    def least_tokens(self, text: str) -> int:
        """As many tokens as a text has at least, known at once."""
        if self.token_bytes is None:
            return 1
        return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // self.token_bytes))

    def likely_tokens(self, text: str) -> int:
        """About as many tokens as a text has, known at once: :data:`LIKELY_TOKEN_BYTES` each."""
        return max(
            self.least_tokens(text),
            len(text.encode("utf-8", "surrogatepass")) // LIKELY_TOKEN_BYTES,
        )

    def footprint(self, quantization: str, *, dtype_bytes: int) -> Footprint:
        """Bytes of its parts, see :func:`mesh.model.memory_footprint.footprint`.

        Raises:
            UnsupportedModel: it cannot be quantized like this.
        """
        return footprint(self.config, quantization, dtype_bytes=dtype_bytes)


class Catalog:
    """The models of the settings, loaded once at start."""

    def __init__(self, models: Iterable[ModelSettings]) -> None:
        self._models = {model.id: load_model(model) for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._models

    def get(self, model_id: str) -> Model:
        """
        Raises:
            ModelNotFound: no such model is on offer; the error lists those that are.
        """
        found = self._models.get(model_id)
        if found is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"There is no model {model_id!r} here. Models: {known}.")
        return found


def load_model(model: ModelSettings) -> Model:
    """Read a model's configuration, tokenizer and chat template, from a folder or a hub.

    Raises:
        UnsupportedModel: no node would serve it, or its chat template does not compile; the error
            names the setting.
    """
    path = model.path or model.id
    files = CheckpointFiles(path)
    written = json.loads(files.path("config.json").read_text())
    try:
        check_model(written)
        config = normalize(written)
        settings = effective_settings(written, files.json(generation_config.NAME))
        read_generation_config(settings, vocab_size=config["vocab_size"])
        sampling_defaults = SamplingDefaults.of(settings)
        chat_template = ChatTemplate.load(files)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{model.id} cannot be offered. {error.detail}") from None
    tokenizer = load_tokenizer(files.path("tokenizer.json"))
    layers: int = config["num_hidden_layers"]
    parts = footprint(config)
    return Model(
        id=model.id,
        name=model.name or model.id,
        path=path,
        layers=layers,
        width=config["hidden_size"],
        context=config["max_position_embeddings"],
        vocab=config["vocab_size"],
        min_nodes=model.min_nodes,
        prices=Prices.of(model),
        edge_units=edge_units(config),
        min_vram_gb=-(-(layers * parts.layer + parts.edge) // 10**9),
        tokenizer=tokenizer,
        token_bytes=most_bytes_a_token(tokenizer),
        config=written,
        chat_template=chat_template,
        tool_call_style=None
        if chat_template is None
        else tool_call_style(chat_template.for_tools, tokenizer),
        sampling_defaults=sampling_defaults,
    )
