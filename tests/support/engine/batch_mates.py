"""Forward passes of the same texts in other company: alone, beside others, in other chunks."""

import torch

from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_model import SpanModel

LENGTHS = (3, 40, 17)
BLOCKS = 40


def random_texts(vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Texts of random tokens, the same in each call."""
    random = torch.Generator().manual_seed(3)
    return [torch.randint(vocabulary, (length,), generator=random).tolist() for length in lengths]


def logits_in_chunks(
    span: SpanModel, texts: list[list[int]], rows: int, *, together: bool
) -> list[torch.Tensor]:
    """The logits of each text's positions.

    Args:
        span: All layers of a model.
        texts: Of token ids.
        rows: Positions of a text in one forward pass, at most.
        together: Whether a pass has rows of all texts, or of one.
    """
    pool = KVBlockPool(span.kv_shape, BLOCKS * span.kv_shape.bytes_per_block)
    caches = [pool.reserve(len(text)) for text in texts]
    logits: list[list[torch.Tensor]] = [[] for _ in texts]
    chunks = [
        [(number, begin, min(begin + rows, len(text))) for begin in range(0, len(text), rows)]
        for number, text in enumerate(texts)
    ]
    batches = [[chunk] for of_one in chunks for chunk in of_one]
    if together:
        longest = max(map(len, chunks))
        batches = [[of[at] for of in chunks if at < len(of)] for at in range(longest)]
    for batch in batches:
        batch.sort(key=lambda chunk: chunk[2] - chunk[1])
        hidden = span.embed(
            [token for number, begin, end in batch for token in texts[number][begin:end]],
            [position for _, begin, end in batch for position in range(begin, end)],
        )
        segments = []
        for number, begin, end in batch:
            cache = caches[number]
            assert cache is not None
            segments.append(Segment(cache, end - begin, begin))
        output = span.logits(span.forward(hidden, RaggedBatch(segments)))
        parts = output.split([segment.rows for segment in segments])
        for (number, _, _), part in zip(batch, parts, strict=True):
            logits[number].append(part)
    return [torch.cat(parts) for parts in logits]


def check_batch_invariance(span: SpanModel, vocabulary: int) -> None:
    """The bits of all logits are those of one position at a time, alone."""
    texts = random_texts(vocabulary)
    alone = logits_in_chunks(span, texts, 1, together=False)
    for rows, together in ((1, True), (5, True), (3, False), (16, True), (128, True)):
        others = logits_in_chunks(span, texts, rows, together=together)
        for number, (one, other) in enumerate(zip(alone, others, strict=True)):
            assert torch.equal(one, other), (number, rows, together)
