"""Kernels and captures are used if they work: on a CPU, with some that are broken on purpose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node_runner.engine.attention import paged
from node_runner.engine.attention.interface import ScoreModifier
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.model import cuda_graphs
from node_runner.engine.model.acceleration import capture_decoding, enable_paged_attention
from node_runner.engine.model.span_model import SpanModel
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import load_span
from tests.support.engine.tape import capture

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture
def span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpanModel:
    monkeypatch.setattr(cuda_graphs, "BUCKETS", (1, 2))
    return load_span(DEMO_MODEL, (0, 2), tmp_path)


def pool_of(span: SpanModel, blocks: int = 5) -> KVBlockPool:
    return KVBlockPool(span.kv_shape, blocks * span.kv_shape.bytes_per_block)


def test_paged_attention_is_used_where_it_works(span: SpanModel) -> None:
    assert not span.kv_shape.paged
    assert enable_paged_attention(span)
    assert span.kv_shape.paged


def test_kernels_that_do_not_compile_are_not_used(
    span: SpanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(paged, "flex", lambda device: failing)
    assert not enable_paged_attention(span)
    assert not span.kv_shape.paged


def test_kernels_that_look_at_wrong_positions_are_not_used(
    span: SpanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = paged.PagedGroup.attend

    def windowed(
        self: paged.PagedGroup,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        score: ScoreModifier,
    ) -> torch.Tensor:
        return right(self, query, keys, values, replace(score, window=4))

    monkeypatch.setattr(paged.PagedGroup, "attend", windowed)
    assert not enable_paged_attention(span)
    assert not span.kv_shape.paged


def test_graphs_are_used_where_they_work(span: SpanModel) -> None:
    assert enable_paged_attention(span)
    pool = pool_of(span)
    assert capture_decoding(span, pool, capture)
    assert pool.used_bytes == pool.shape.bytes_per_block


def stale(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    output = compute()
    return lambda: output


def broken(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    raise RuntimeError("no capture")


@pytest.mark.parametrize("how", [stale, broken])
def test_graphs_that_do_not_work_are_not_used(how: cuda_graphs.Capture, span: SpanModel) -> None:
    assert enable_paged_attention(span)
    pool = pool_of(span)
    assert not capture_decoding(span, pool, how)
    assert pool.used_bytes == 0
    assert enable_paged_attention(span), "without graphs the span computes as before"


def test_a_pool_too_small_to_try_gets_no_graphs(span: SpanModel) -> None:
    assert enable_paged_attention(span)
    assert not capture_decoding(span, pool_of(span, blocks=2), capture)
