"""What a span does differently on a GPU: paged attention, and decode steps as CUDA graphs.

Both depend on a driver, a compiler and kernels that no test on a CPU has run. So a node tries each
once, when it starts, and uses it only if it works and agrees with gathered attention without
graphs.
"""

from collections.abc import Callable
from dataclasses import replace

import structlog
import torch

from node_runner.engine.attention.interface import MAX_GROUPED_ROWS, Segment
from node_runner.engine.attention.kv_cache import PAGED_BLOCK_SIZE, KVBlockPool, KVCache, KVShape
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.cuda_graphs import Capture, Compute
from node_runner.engine.model.span_model import SpanModel

log = structlog.get_logger()

WARM_UPS = 3
"""Runs before a capture: libraries allocate in them what they may not allocate in a capture."""

TRIAL_CAPACITY = 2 * PAGED_BLOCK_SIZE
"""Positions of a KV cache that is used to try things."""

MAX_DEVIATION = 0.25
"""How far outputs may be off, as a part of what another history changes in them. Rounding in
bfloat16 is some hundredths (decision 0020); attending to wrong positions is about one."""


def enable_paged_attention(span: SpanModel) -> bool:
    """Use paged attention from now on, if that works: pools of ``span.kv_shape`` made later are
    paged.

    Returns:
        Whether it works; if not, the log says why.
    """
    paged = replace(span.kv_shape, paged=True)
    if not _agrees(span, "paged_attention", lambda: _small_pool(paged)):
        return False
    span.kv_shape = paged
    return True


def capture_decoding(span: SpanModel, pool: KVBlockPool, capture: Capture | None = None) -> bool:
    """Compute decode steps of a paged pool by graphs from now on, if that works.

    Args:
        span: The layers that compute them.
        pool: Whose generations; none of which has begun.
        capture: How to capture a computation; as CUDA graphs if not given.

    Returns:
        Whether it works; if not, the log says why, unless it is that the layers are not
        :attr:`SpanModel.capturable`.
    """
    if not span.capturable:
        return False

    def captured() -> KVBlockPool:
        span.capture(pool, capture or cuda_graphs(span.device))
        return pool

    if _agrees(span, "graphs", captured):
        return True
    span.drop_graphs()
    return False


def cuda_graphs(device: torch.device) -> Capture:
    """Capture as CUDA graphs of a device. All of them share one memory pool: one runs at a time,
    and its output is copied before the next one runs."""
    memory = torch.cuda.graph_pool_handle()

    def capture(compute: Compute) -> Compute:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may serve another span meanwhile, and allocate.
            with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
                output = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    return capture


def _agrees(span: SpanModel, what: str, faster: Callable[[], KVBlockPool]) -> bool:
    """Whether outputs on the faster pool are those on a pool of gathered blocks."""
    gathered = replace(span.kv_shape, paged=False)
    try:
        expected, other = (_outputs(span, _small_pool(gathered), history) for history in (1, 2))
        outputs = _outputs(span, faster(), 1)
    except Exception as error:
        log.warning(f"{what}_failed", error=f"{type(error).__name__}: {error}")
        return False
    deviation = float((outputs - expected).norm() / (other - expected).norm())
    if not deviation < MAX_DEVIATION:
        log.warning(f"{what}_deviates", deviation=deviation)
        return False
    log.info(f"{what}_used", deviation=deviation)
    return True


def _small_pool(shape: KVShape) -> KVBlockPool:
    return KVBlockPool(shape, TRIAL_CAPACITY * 4 * shape.bytes_per_position)


def _outputs(span: SpanModel, pool: KVBlockPool, history: int) -> torch.Tensor:
    """Outputs of two generations, float32 ``[rows, hidden]``, in batches of all kinds, since each
    may need a kernel of its own.

    Args:
        span: What computes.
        pool: Where the generations' KV is.
        history: Seed of the random positions that come first; all else is the same for each.

    Raises:
        RuntimeError: the pool is too small.
    """
    caches = [pool.reserve(TRIAL_CAPACITY), pool.reserve(TRIAL_CAPACITY)]
    if None in caches:
        raise RuntimeError(
            f"There is no free KV for two generations of {TRIAL_CAPACITY} positions."
        )
    first, second = (cache for cache in caches if cache is not None)

    def step(seed: int, rows: int, *of: KVCache) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(len(of) * rows, span.hidden_size, generator=generator)
        batch = RaggedBatch([Segment(cache, rows, cache.length) for cache in of])
        return span.forward(hidden.to(span.device, span.dtype), batch).float()

    try:
        step(history, PAGED_BLOCK_SIZE + 7, first)
        step(history, MAX_GROUPED_ROWS + 9, second)
        outputs = [step(3, MAX_GROUPED_ROWS + 1, first), step(4, MAX_GROUPED_ROWS + 2, second)]
        outputs += [step(5, 3, first, second), step(6, 1, first, second), step(7, 1, second)]
        return torch.cat(outputs)
    finally:
        for cache in (first, second):
            pool.zero(cache)
            pool.free(cache)
