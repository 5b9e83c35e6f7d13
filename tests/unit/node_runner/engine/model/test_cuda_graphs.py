"""Decode steps as graphs give what the layers give, whatever generations join and leave."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import PAGED_BLOCK_SIZE, KVBlockPool, KVCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model import cuda_graphs
from node_runner.engine.model.span_model import SpanModel
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import load_span
from tests.support.engine.tape import capture

pytestmark = pytest.mark.usefixtures("uncompiled")

BUCKETS = (1, 2, 4)
BLOCKS = 8


@pytest.fixture(params=[None, 9], ids=["llama", "mistral with a window"])
def span(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SpanModel:
    monkeypatch.setattr(cuda_graphs, "BUCKETS", BUCKETS)
    source = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, source)
    if request.param is not None:
        config = json.loads((source / "config.json").read_text())
        config |= {"model_type": "mistral", "sliding_window": request.param}
        (source / "config.json").write_text(json.dumps(config))
    return load_span(source, (0, 2), tmp_path / "cache")


class Both:
    """The same generations in a pool with graphs and in one without."""

    def __init__(self, span: SpanModel) -> None:
        self._span = span
        shape = replace(span.kv_shape, paged=True)
        self.graphed = KVBlockPool(shape, BLOCKS * shape.bytes_per_block)
        self.plain = KVBlockPool(span.kv_shape, self.graphed.budget_bytes)
        span.capture(self.graphed, capture)
        self._caches: dict[str, tuple[KVCache, KVCache]] = {}

    def step(self, names: str, rows: int) -> None:
        """``rows`` more of each generation; both pools give the same."""
        hidden = torch.randn(len(names) * rows, self._span.hidden_size)
        outputs = []
        for which in range(2):
            caches = [self._caches[name][which] for name in names]
            segments = [Segment(cache, rows, cache.length) for cache in caches]
            outputs.append(self._span.forward(hidden, RaggedBatch(segments)))
        torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-3)

    def open(self, name: str, capacity: int) -> None:
        caches = self.graphed.reserve(capacity), self.plain.reserve(capacity)
        assert caches[0] is not None
        assert caches[1] is not None
        self._caches[name] = caches

    def close(self, name: str) -> None:
        for pool, cache in zip((self.graphed, self.plain), self._caches.pop(name), strict=True):
            pool.free(cache)


def test_generations_join_grow_and_leave(span: SpanModel) -> None:
    torch.manual_seed(0)
    both = Both(span)
    for name in "abc":
        both.open(name, 2 * PAGED_BLOCK_SIZE)
    both.step("a", PAGED_BLOCK_SIZE - 2)
    both.step("b", 5)
    for names in ("a", "ab", "b", "a"):  # a comes over the end of its first block
        both.step(names, 1)
    both.step("c", 40)
    both.step("abc", 1)
    both.step("cab", 1)
    both.close("b")
    both.open("d", PAGED_BLOCK_SIZE)  # gets b's block, with b's keys in it
    both.step("d", 1)
    for _ in range(3):
        both.step("dca", 1)
    both.step("ac", 3)  # not a decode step
    both.open("e", 10)
    both.step("dace", 1)
    both.step("dac", 1)  # the padding row does not write where e was
    both.step("e", 1)


def test_buckets_of_all_sizes(span: SpanModel) -> None:
    torch.manual_seed(0)
    both = Both(span)
    names = [chr(ord("a") + number) for number in range(BUCKETS[-1] + 1)]
    for name in names:
        both.open(name, 20)
    for bucket in BUCKETS:
        both.step("".join(names[-bucket:]), 1)
        both.step("".join(names[: bucket + 1]), 1)  # the last is too many for any graph


def test_what_a_graph_gave_stays_when_it_is_replayed(span: SpanModel) -> None:
    both = Both(span)
    cache = both.graphed.reserve(20)
    assert cache is not None
    first = span.forward(torch.ones(1, span.hidden_size), RaggedBatch([Segment(cache, 1, 0)]))
    kept = first.clone()
    second = span.forward(-torch.ones(1, span.hidden_size), RaggedBatch([Segment(cache, 1, 1)]))
    assert not torch.equal(second, kept)
    assert torch.equal(first, kept)
