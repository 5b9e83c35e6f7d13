"""What a node of the demo model is started with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from node_runner.node.options import NodeOptions
from tests.conftest import DEMO_MODEL, MODEL_ID


def node_options(cache: Path, **changes: Any) -> NodeOptions:
    """On a CPU, and otherwise as `far-node start` has them."""
    options = NodeOptions(
        model=MODEL_ID,
        wallet="0x" + "ab" * 20,
        discovery=None,
        dht_peers=(),
        operator_key=None,
        announce=False,
        credential="a token",
        redis=None,
        path=str(DEMO_MODEL),
        span=None,
        edge=False,
        device="cpu",
        dtype="float32",
        batch_invariant=True,
        quantization="none",
        memory_gb=None,
        kv_gb=0.01,
        threads=1,
        wire="auto",
        speculate=True,
        draft=None,
        paged=True,
        public_addr="0.0.0.0:31330",
        location="unknown",
        cache=cache,
        cache_gb=None,
        verify=False,
        metrics_port=0,
        max_sessions=None,
        min_price=None,
    )
    return replace(options, **changes)
