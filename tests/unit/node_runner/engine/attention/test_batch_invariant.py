"""Attention gives the same bits for a row, whatever is computed with it or comes behind it."""

from collections.abc import Sequence

import pytest
import torch

from node_runner.engine.attention import batch_invariant
from node_runner.engine.attention.interface import ScoreModifier, Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVShape
from node_runner.engine.attention.ragged_batch import RaggedBatch, attend

HEADS, KV_HEADS, WIDTH = 8, 2, 32
LENGTH = 3 * batch_invariant.KEY_TILE + 40
POSITIONS = [0, 15, 50, 127, 128, 150, 191, 200, 255, 256, 300, LENGTH - 1]

SCORES = {
    "plain": ScoreModifier(),
    "window": ScoreModifier(window=150),
    "softcap": ScoreModifier(softcap=2.0),
}


class Text:
    """A text's queries, keys and values, and what attention gives for pieces of it."""

    def __init__(self, dtype: torch.dtype, score: ScoreModifier) -> None:
        random = torch.Generator().manual_seed(0)

        def drawn(heads: int) -> torch.Tensor:
            return torch.randn(LENGTH, heads, WIDTH, generator=random).to(dtype)

        self._query, self._keys, self._values = drawn(HEADS), drawn(KV_HEADS), drawn(KV_HEADS)
        self._score = score
        shape = KVShape(1, KV_HEADS, WIDTH, WIDTH, dtype, torch.device("cpu"), batch_invariant=True)
        self._pool = KVBlockPool(shape, 1000 * shape.bytes_per_block)

    def attended(self, pieces: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Of pieces (position, rows), each in a cache of its own, in one batch: what each gives."""
        caches, segments = [], []
        for position, rows in pieces:
            cache = self._pool.reserve(LENGTH)
            assert cache is not None
            self._pool.keys[0][cache.slots[:position]] = self._keys[:position]
            self._pool.values[0][cache.slots[:position]] = self._values[:position]
            caches.append(cache)
            segments.append(Segment(cache, rows, position))
        query, key, value = (
            torch.cat([whole[position : position + rows] for position, rows in pieces])
            for whole in (self._query, self._keys, self._values)
        )
        output = attend(RaggedBatch(segments), 0, query, key, value, self._score)
        for cache in caches:
            self._pool.zero(cache)
            self._pool.free(cache)
        return list(output.split([rows for _, rows in pieces]))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_row_has_the_same_bits_alone_beside_others_and_in_a_prompt(
    dtype: torch.dtype, score: str
) -> None:
    text = Text(dtype, SCORES[score])
    [prompt] = text.attended([(0, LENGTH)])
    together = text.attended([(position, 1) for position in POSITIONS])
    for position, beside in zip(POSITIONS, together, strict=True):
        [alone] = text.attended([(position, 1)])
        [in_a_chunk] = text.attended([(max(0, position - 5), min(position, 5) + 1)])
        assert torch.equal(beside, alone), position
        assert torch.equal(in_a_chunk[-1:], alone), position
        assert torch.equal(prompt[position : position + 1], alone), position
