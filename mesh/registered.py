"""A node as its row says: what it registered with, and nothing that it measures."""

from collections.abc import Collection

from mesh.db import NodeRegistry
from mesh.registry import Node


def node_of(row: NodeRegistry, trusted_wallets: Collection[str]) -> Node:
    """The node, healthy, and not heard yet. ``trusted_wallets``: in lower case."""
    return Node(
        node_id=row.node_id,
        wallet_address=row.wallet_address,
        model_id=row.model_id,
        start_layer=row.start_layer,
        end_layer=row.end_layer,
        edge=row.edge,
        trusted=row.wallet_address in trusted_wallets,
        gpu_model=row.gpu_model or "",
        vram_gb=row.vram_gb or 0,
        location=row.location or "",
        public_addr=row.public_addr or "",
        is_healthy=True,
        latency_ms=0.0,
        throughput_tokens_per_sec=0.0,
        current_requests=0,
        kv_positions=0,
        last_seen=0.0,
    )
