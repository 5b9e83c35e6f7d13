"""A prompt's beginning is computed once, and its hash reveals nothing of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.prefix_hashes import BLOCK_TOKENS, prefix_hashes
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.prefix_cache import PrefixCache
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import Pipeline, load_span

KEY = b"k" * 32
CUTS = [0, 2, 4, 6]
SYSTEM = list(range(100, 200))

tokens = st.lists(st.integers(0, 2**20), max_size=200)


def hashes_of(token_ids: list[int], user: str = "0xa") -> list[bytes]:
    return prefix_hashes(token_ids, key=KEY, user=user)


@given(tokens, tokens, tokens)
def test_prompts_share_hashes_as_far_as_they_begin_alike(
    start: list[int], one: list[int], other: list[int]
) -> None:
    first, second = hashes_of([*start, 1, *one]), hashes_of([*start, 2, *other])
    shared = sum(a == b for a, b in zip(first, second, strict=False))
    assert shared == min(len(start) // BLOCK_TOKENS, len(first), len(second))
    assert first[:shared] == second[:shared]


def test_the_last_token_is_in_no_hash() -> None:
    assert hashes_of(list(range(BLOCK_TOKENS))) == []
    assert len(hashes_of(list(range(BLOCK_TOKENS + 1)))) == 1


def test_another_user_or_key_has_other_hashes() -> None:
    hashes = hashes_of(SYSTEM)
    assert set(hashes).isdisjoint(hashes_of(SYSTEM, user="0xb"))
    assert set(hashes).isdisjoint(prefix_hashes(SYSTEM, key=b"x" * 32, user="0xa"))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    made = Pipeline.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    made.engines[0].span.end_tokens = frozenset()
    return made


def generate(pipeline: Pipeline, request_id: str, prompt: list[int], hashed: bool) -> list[int]:
    """Its tokens; the pipeline's ``positions`` are those computed for it."""
    prefix = hashes_of(prompt) if hashed else []
    pipeline.open(request_id, prompt, max_tokens=8, prefix=prefix)
    pipeline.positions = [0, 0, 0]
    while request_id not in pipeline.ended:
        pipeline.step_all()
    pipeline.close(request_id)
    pipeline.run()
    return pipeline.tokens(request_id)


def test_a_second_prompt_begins_where_the_first_is_left(pipeline: Pipeline) -> None:
    first, second = [*SYSTEM, 7, 8, 9], [*SYSTEM, 50, 51]
    fresh = generate(pipeline, "fresh", second, hashed=False)
    generate(pipeline, "first", first, hashed=True)
    again = generate(pipeline, "second", second, hashed=True)
    assert again == fresh
    shared = len(SYSTEM) // BLOCK_TOKENS * BLOCK_TOKENS
    assert pipeline.positions == [len(second) - shared + 7] * 3
    assert pipeline.reused == {"second": shared}


def test_it_begins_where_the_node_with_least_of_it_ends(pipeline: Pipeline) -> None:
    prompt = [*SYSTEM, 7, 8, 9]
    fresh = generate(pipeline, "first", prompt, hashed=True)
    middle = pipeline.engines[1]
    middle.prefix_cache.evict_all()
    assert middle.prefix_cache.evictable_bytes == 0
    again = generate(pipeline, "second", prompt, hashed=True)
    assert again == fresh
    assert pipeline.positions == [len(prompt) + 7] * 3
    assert pipeline.reused == {}


def test_an_edge_that_serves_all_layers_says_what_it_copied(tmp_path: Path) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, [0, 6], tmp_path, speculate=False)
    for name in ("first", "second"):
        pipeline.open(name, SYSTEM, max_tokens=2, prefix=hashes_of(SYSTEM))
        pipeline.run()
    assert pipeline.reused == {"second": len(SYSTEM) // BLOCK_TOKENS * BLOCK_TOKENS}


def test_kept_blocks_are_evicted_for_what_runs(tmp_path: Path) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, [0, 6], tmp_path)
    engine = pipeline.engines[0]
    for number in range(4):
        prompt = [number, *SYSTEM]
        pipeline.open(f"{number}", prompt, max_tokens=2, prefix=hashes_of(prompt))
        pipeline.run()
    kept = engine.prefix_cache.evictable_bytes
    assert kept == engine.pool.used_bytes > 0
    whole = engine.pool.budget_bytes // engine.pool.shape.bytes_per_position
    assert engine.prefix_cache.reserve(whole, []) is not None
    assert engine.prefix_cache.evictable_bytes == 0
    assert engine.prefix_cache.reserve(1, []) is None


def test_no_block_is_lost_whatever_the_hashes_are(tmp_path: Path) -> None:
    """Also if two caches are kept by the same one, or a prefix is longer than what is reserved."""
    shape = load_span(DEMO_MODEL, (0, 1), tmp_path).kv_shape
    pool = KVBlockPool(shape, 64 * shape.bytes_per_block)
    cache = PrefixCache(pool)
    first, shared, other = (bytes([letter]) * 16 for letter in range(3))
    for prefix in ([first, shared], [shared, other], [other, shared]):
        kept = cache.reserve(2 * BLOCK_TOKENS, [])
        assert kept is not None
        kept.length = 2 * BLOCK_TOKENS
        cache.release(kept, prefix)
    short = cache.reserve(BLOCK_TOKENS, [first, shared])
    assert short is not None
    assert short.length <= BLOCK_TOKENS
    cache.release(short, [])
    cache.evict_all()
    assert pool.used_bytes == 0
