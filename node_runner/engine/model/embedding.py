"""What is before a model's first layer and after its last one: embedding, final norm, LM head."""

from typing import Any

import torch
from torch import nn

from node_runner.engine.device.matmul import Linear
from node_runner.engine.model.families import Config, Family


class Embedding(nn.Module):
    """Token ids and positions, int64 ``[rows]`` each, to hidden states ``[rows, hidden]``.

    Moves all that embeds out of the decoder, whose own forward would repeat it in every span.
    """

    def __init__(self, decoder: Any, family: Family) -> None:
        super().__init__()
        self._tokens = decoder.get_input_embeddings()
        decoder.set_input_embeddings(nn.Identity())
        self._positions = _taken(decoder, family.positions, _NoPositions())
        self._norm = _taken(decoder, family.embedding_norm, nn.Identity())
        self._factor: float | None = _taken(decoder, family.embedding_factor, 1.0)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._tokens(token_ids)
        if self._factor is not None:
            hidden = hidden * self._factor
        if self._positions is not None:
            hidden = hidden + self._positions(positions)
        return hidden if self._norm is None else self._norm(hidden)


class LMHead(nn.Module):
    """Hidden states ``[rows, hidden]`` to logits ``[rows, vocab]``."""

    def __init__(
        self, norm: nn.Module, logits: nn.Linear, config: Config, family: Family, linear: Linear
    ) -> None:
        super().__init__()
        self._linear = linear
        self._norm = norm
        self._logits = logits
        self._factor = family.logit_factor and family.logit_factor(config)
        self._cap = family.logit_cap and getattr(config, family.logit_cap)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._linear(self._norm(hidden), self._logits.weight, self._logits.bias)
        if self._factor is not None:
            logits = logits * self._factor
        if self._cap is not None:
            logits = (logits / self._cap).tanh() * self._cap
        return logits


def take_norm(decoder: Any, family: Family) -> nn.Module:
    """Move the final norm out of the decoder: it belongs to the head."""
    norm: nn.Module = _taken(decoder, family.norm, nn.Identity())
    return norm


class _NoPositions(nn.Module):
    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=positions.device)


def _taken(decoder: Any, name: str | None, neutral: object) -> Any:
    """An attribute of the decoder, where ``neutral``, which changes nothing, takes its place."""
    if name is None:
        return None
    taken = getattr(decoder, name)
    setattr(decoder, name, neutral)
    return taken
