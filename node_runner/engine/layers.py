"""A span's layers as transformers runs them: right for every family, quick for none."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from node_runner.engine.attention import Segment

Layers = Callable[[torch.Tensor, Sequence[Segment]], torch.Tensor]
"""All layers of a span: hidden states ``[rows, hidden]`` of the segments, to the same shape."""


def positions_of(segments: Sequence[Segment]) -> list[int]:
    """The position of every row."""
    return [
        position
        for segment in segments
        for position in range(segment.position, segment.position + segment.rows)
    ]


class TransformersLayers:
    """The layers called one by one. What the model's own forward does around them (masks, recording
    of outputs, defaults) is nothing that a span needs, and a fifth of a short step."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __call__(self, hidden: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        output = hidden[None]
        positions = torch.tensor(positions_of(segments), device=hidden.device)[None]
        rotary = self._decoder.rotary_emb(output, position_ids=positions)
        for layer in self._decoder.layers:
            output = layer(
                output,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=rotary,
                segments=segments,
            )
        return output[0]
