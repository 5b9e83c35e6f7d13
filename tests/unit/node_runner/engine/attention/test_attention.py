"""Attention of ragged batches against attention written out, for each score modifier and layout."""

import shutil
from dataclasses import replace

import pytest
import torch

from node_runner.engine.attention import paged
from node_runner.engine.attention.interface import MAX_GROUPED_ROWS, ScoreModifier, Segment
from node_runner.engine.attention.kv_cache import BLOCK_SIZE, KVBlockPool, KVCache, KVShape
from node_runner.engine.attention.ragged_batch import RaggedBatch, attend
from tests.support.some_slow import some_slow

HEADS, KV_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6
SHAPE = KVShape(1, KV_HEADS, WIDTH, VALUE_WIDTH, torch.float32, torch.device("cpu"))
PAGED = replace(SHAPE, paged=True)
BATCH_INVARIANT = replace(SHAPE, batch_invariant=True)

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
SCORES = {
    "plain": ScoreModifier(),
    "scaled": ScoreModifier(scaling=0.3),
    "window": ScoreModifier(window=5),
    "wide window": ScoreModifier(window=1000),
    "softcap": ScoreModifier(softcap=2.0),
    "sinks": ScoreModifier(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "sinks in a window": ScoreModifier(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0]), window=7),
    "alibi": ScoreModifier(slopes=SLOPES),
    "key bias": ScoreModifier(
        key_bias=lambda positions: torch.arange(HEADS)[:, None] * positions.sin()
    ),
    "key bias in a window": ScoreModifier(
        key_bias=lambda positions: positions.sin().expand(HEADS, -1), window=7
    ),
}

BATCHES = {
    "one row": [(37, 1)],
    "a prompt": [(0, 40)],
    "a later chunk": [(20, 30)],
    "many single rows": [(0, 1), (3, 1), (50, 1), (16, 1)],
    "equally few rows": [(10, 4), (33, 4), (0, 4)],
    "all kinds": [(5, 1), (40, 1), (7, 3), (0, MAX_GROUPED_ROWS + 1), (60, MAX_GROUPED_ROWS + 20)],
    "a long chunk": [(3, 130)],
    "beyond a tile": [(150, 1), (300, 3), (10, 1)],
}

APART = ["in a row", "scattered"]


def expected(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    score: ScoreModifier,
) -> torch.Tensor:
    """One row ``[heads, width]`` over keys ``[length, kv_heads, width]``."""
    first = 0 if score.window is None else max(0, position + 1 - score.window)
    keys, values = (
        part[first : position + 1].repeat_interleave(HEADS // KV_HEADS, dim=1)
        for part in (keys, values)
    )
    scores = torch.einsum("hd,lhd->hl", query, keys)
    scores *= WIDTH**-0.5 if score.scaling is None else score.scaling
    if score.softcap is not None:
        scores = (scores / score.softcap).tanh() * score.softcap
    if score.slopes is not None:
        scores -= score.slopes[:, None] * (position - torch.arange(first, position + 1))
    if score.key_bias is not None:
        scores += score.key_bias(torch.arange(first, position + 1))
    if score.sinks is not None:
        scores = torch.cat([scores, score.sinks[:, None]], dim=1)
    weights = scores.softmax(-1)[:, : len(values)]
    return torch.einsum("hl,lhd->hd", weights, values)


def scattered(pool: KVBlockPool, capacity: int) -> KVCache:
    """A cache whose blocks do not follow each other."""
    block = pool.shape.block_size
    between = [pool.reserve(block) for _ in range(2 * -(-capacity // block))]
    for cache in between[::2]:
        assert cache is not None
        pool.free(cache)
    made = pool.reserve(capacity)
    assert made is not None
    return made


def check(
    shape: KVShape,
    batch: list[tuple[int, int]],
    score: ScoreModifier,
    *,
    apart: bool,
    others: float = 0.0,
) -> None:
    """Attention of a batch of (position, rows) equals what is written out. ``others``: the contents
    of blocks that are not the batch's."""
    torch.manual_seed(0)
    pool = KVBlockPool(shape, 100 * shape.bytes_per_block)
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(others)
    segments, texts = [], []
    for position, rows in batch:
        end = position + rows
        cache = scattered(pool, end) if apart else pool.reserve(end)
        assert cache is not None
        assert (cache.contiguous_start is None) == (apart and end > shape.block_size)
        pool.zero(cache)
        keys, values = torch.randn(end, KV_HEADS, WIDTH), torch.randn(end, KV_HEADS, VALUE_WIDTH)
        pool.keys[0][cache.slots[:position]] = keys[:position]
        pool.values[0][cache.slots[:position]] = values[:position]
        segments.append(Segment(cache, rows, position))
        texts.append((keys, values))
    query = torch.randn(sum(segment.rows for segment in segments), HEADS, WIDTH)
    fresh = [
        torch.cat([text[part][-segment.rows :] for text, segment in zip(texts, segments)])  # noqa: B905
        for part in (0, 1)
    ]
    attended = attend(RaggedBatch(segments), 0, query, *fresh, score)
    row = 0
    for segment, (keys, values) in zip(segments, texts, strict=True):
        for position in range(segment.position, segment.end):
            wanted = expected(query[row], keys, values, position, score)
            torch.testing.assert_close(attended[row], wanted, atol=1e-5, rtol=1e-4)
            row += 1


@pytest.mark.parametrize("apart", [False, True], ids=APART)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("score", SCORES)
def test_it_equals_attention_written_out(score: str, batch: str, apart: bool) -> None:
    check(SHAPE, BATCHES[batch], SCORES[score], apart=apart)


@pytest.mark.parametrize("apart", [False, True], ids=APART)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("score", SCORES)
def test_batch_invariant_attention_equals_attention_written_out(
    score: str, batch: str, apart: bool
) -> None:
    check(BATCH_INVARIANT, BATCHES[batch], SCORES[score], apart=apart, others=3.0)


def test_values_may_be_wider_than_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.VALUE_WIDTH", WIDTH + 4)
    wide = replace(BATCH_INVARIANT, value_dim=WIDTH + 4)
    for batch in ("one row", "beyond a tile", "all kinds"):
        check(wide, BATCHES[batch], SCORES["plain"], apart=False)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("apart", some_slow([False, True], quick=[True]), ids=APART)
@pytest.mark.parametrize("batch", some_slow(BATCHES, quick=["one row", "all kinds"]))
@pytest.mark.parametrize("score", SCORES)
def test_paged_attention_equals_attention_written_out(score: str, batch: str, apart: bool) -> None:
    longer = [
        (position * PAGED.block_size // BLOCK_SIZE, rows) for position, rows in BATCHES[batch]
    ]
    check(PAGED, longer, SCORES[score], apart=apart)


def has_compiler() -> bool:
    return shutil.which("g++") is not None and torch.cpu._is_avx2_supported()


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler and AVX2")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # torch's own, of its parts
@torch.inference_mode()
def test_a_compiled_kernel_reads_only_the_blocks_that_the_tables_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Uncompiled, FlexAttention multiplies by zero what the mask hides."""
    monkeypatch.setattr(paged, "flex", lambda device: paged.compiled())
    score = ScoreModifier(window=200, softcap=2.0, slopes=SLOPES)
    check(PAGED, [(300, 1), (5, 1), (140, 1)], score, apart=True, others=torch.nan)


def test_a_pool_never_gives_more_than_its_budget() -> None:
    pool = KVBlockPool(SHAPE, 3 * SHAPE.bytes_per_block + 1)
    first, second = pool.reserve(BLOCK_SIZE + 1), pool.reserve(BLOCK_SIZE)
    assert first is not None
    assert second is not None
    assert pool.used_bytes == pool.budget_bytes == 3 * SHAPE.bytes_per_block
    assert pool.reserve(1) is None
    pool.free(first)
    assert pool.used_bytes == SHAPE.bytes_per_block
    again = pool.reserve(2 * BLOCK_SIZE)
    assert again is not None
    assert not set(again.blocks) & set(second.blocks)
