"""What a span does otherwise on a GPU: attention in place, and decode steps as graphs.

Both depend on a driver, a compiler and kernels that no test on a CPU has seen. So a node tries each
once, when it starts, and takes it only if it works and gives what the plain way gives.
"""

from collections.abc import Callable
from dataclasses import replace

import structlog
import torch

from node_runner.engine.attention import Pack, Segment
from node_runner.engine.graphs import Capture, Compute
from node_runner.engine.kv import PAGED_BLOCK, KVPool
from node_runner.engine.span import Span

log = structlog.get_logger()

WARM_UPS = 3
"""Runs before a capture, in which libraries allocate what a capture may not."""

MAX_DEVIATION = 0.25
"""Of what another history changes in the outputs, so much may differ from the plain way. Rounding
in 16 bits is some hundredths of it; attending to wrong positions is about one."""


def accelerate(span: Span) -> bool:
    """Attend in place from now on, if that works: pools of ``span.kv_shape`` made later are paged.
    False, and a line in the log, if not."""
    plain = span.kv_shape
    paged = replace(plain, paged=True)
    try:
        expected, other = _outputs(span, history=1), _outputs(span, history=2)
        span.kv_shape = paged
        attended = _outputs(span, history=1)
    except Exception as error:  # compilers and drivers fail in ways of their own
        span.kv_shape = plain
        log.warning("paged_attention_failed", error=f"{type(error).__name__}: {error}")
        return False
    deviation = float((attended - expected).norm() / (other - expected).norm())
    if not deviation < MAX_DEVIATION:
        span.kv_shape = plain
        log.warning("paged_attention_deviates", deviation=deviation)
        return False
    log.info("paged_attention", deviation=deviation)
    return True


def capture_decoding(span: Span, pool: KVPool, capture: Capture | None = None) -> bool:
    """Compute decode steps of a paged pool by graphs from now on, if that works.

    Args:
        span: What computes.
        pool: Whose generations.
        capture: How; as CUDA graphs if not given.
    """
    try:
        captured = span.capture(pool, capture or cuda_graph)
    except Exception as error:
        log.warning("graphs_failed", error=f"{type(error).__name__}: {error}")
        return False
    if captured:
        log.info("graphs_captured")
    return captured


def cuda_graph(compute: Compute) -> Compute:
    """A CUDA graph of what ``compute`` does."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay
