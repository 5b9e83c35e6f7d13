"""What a span does otherwise on a GPU: attention in place, and decode steps as graphs.

Both depend on a driver, a compiler and kernels that no test on a CPU has seen. So a node tries each
once, when it starts, and takes it only if it works and gives what the plain way gives.
"""

from collections.abc import Callable
from dataclasses import replace

import structlog
import torch

from node_runner.engine.attention.interface import FEW_ROWS, Segment
from node_runner.engine.attention.kv_cache import PAGED_BLOCK, KVBlockPool, KVCache, KVShape
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.cuda_graphs import Capture, Compute
from node_runner.engine.model.span_model import SpanModel

log = structlog.get_logger()

WARM_UPS = 3
"""Runs before a capture, in which libraries allocate what a capture may not."""

TRIED = 2 * PAGED_BLOCK
"""Room of a generation that tries things out."""

MAX_DEVIATION = 0.25
"""Of what another history changes in the outputs, so much may differ from the plain way. Rounding
in bfloat16 is some hundredths of it (decision 0020); attending to wrong positions is about one."""


def accelerate(span: SpanModel) -> bool:
    """Attend in place from now on, if that works: pools of ``span.kv_shape`` made later are paged.
    False, and a line in the log, if not."""
    paged = replace(span.kv_shape, paged=True)
    if not _agrees(span, "paged_attention", lambda: _small_pool(paged)):
        return False
    span.kv_shape = paged
    return True


def capture_decoding(span: SpanModel, pool: KVBlockPool, capture: Capture | None = None) -> bool:
    """Compute decode steps of a paged pool by graphs from now on, if that works. False, and a line
    in the log, if not; false also where layers are not known to be fit for graphs.

    Args:
        span: What computes.
        pool: Whose generations; none of which has begun.
        capture: How; as CUDA graphs if not given.
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
    """Captures on the device. All its graphs share one memory pool: one runs at a time, and what it
    gives is copied before the next does."""
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
    """Whether generations of the pool get what those of a plain pool get."""
    plain = replace(span.kv_shape, paged=False)
    try:
        expected, other = (_outputs(span, _small_pool(plain), history) for history in (1, 2))
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
    return KVBlockPool(shape, TRIED * 4 * shape.bytes_per_position)


def _outputs(span: SpanModel, pool: KVBlockPool, history: int) -> torch.Tensor:
    """What two generations get, float32 ``[rows, hidden]``, in packs of all kinds (each of which
    may have a kernel to compile) that follow one of many histories; only these differ.

    Raises:
        RuntimeError: the pool is too small.
    """
    caches = [pool.reserve(TRIED), pool.reserve(TRIED)]
    if None in caches:
        raise RuntimeError(f"There is no KV room for two generations of {TRIED} positions.")
    first, second = (cache for cache in caches if cache is not None)

    def step(seed: int, rows: int, *of: KVCache) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(len(of) * rows, span.hidden_size, generator=generator)
        pack = RaggedBatch([Segment(cache, rows, cache.length) for cache in of])
        return span.forward(hidden.to(span.device, span.dtype), pack).float()

    try:
        step(history, PAGED_BLOCK + 7, first)
        step(history, FEW_ROWS + 9, second)
        outputs = [step(3, FEW_ROWS + 1, first), step(4, FEW_ROWS + 2, second)]
        outputs += [step(5, 3, first, second), step(6, 1, first, second), step(7, 1, second)]
        return torch.cat(outputs)
    finally:
        for cache in (first, second):
            pool.scrub(cache)
            pool.free(cache)
