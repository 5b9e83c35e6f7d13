"""A node as its row has it: what it registered with, nothing that it measures."""

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.identity.tables import Machine
from market.nodes.errors import WalletNotAdmitted
from market.nodes.node import Node, NodeIncarnation
from market.nodes.tables import RegisteredNode
from market.settings.discovery import DiscoverySettings


def node_of(row: RegisteredNode, discovery: DiscoverySettings) -> Node:
    """The node of a row, healthy, without measurements and without a heartbeat."""
    return Node(
        node_id=row.node_id,
        wallet_address=row.wallet_address,
        model_id=row.model_id,
        start_layer=row.start_layer,
        end_layer=row.end_layer,
        edge=row.edge,
        trusted=may_hold_edge(discovery, row.wallet_address, by_machine=row.machine_id is not None),
        by_machine=row.machine_id is not None,
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
        latitude=row.latitude,
        longitude=row.longitude,
        located=row.located,  # type: ignore[arg-type]
        registration=row.registration,
        quantization=row.quantization,
        memory_bytes=row.memory_bytes,
        min_price=row.min_price,
        max_sessions=row.max_sessions,
        placeable=row.placeable,
    )


def trusts(discovery: DiscoverySettings, wallet: str) -> bool:
    """Whether the operator trusts a wallet."""
    return wallet.lower() in {each.lower() for each in discovery.trusted_wallets}


def may_hold_edge(discovery: DiscoverySettings, wallet: str, *, by_machine: bool) -> bool:
    """Whether the operator trusts a node with the edge.

    Args:
        by_machine: Whether a machine's token registered it, and not the wallet's own signature: the
            token lies on the machine's disk, and who copies it would see prompts.
    """
    return trusts(discovery, wallet) and (discovery.edge_by_machine_token or not by_machine)


def admits(discovery: DiscoverySettings, wallet: str) -> bool:
    """Whether the operator lets a wallet's nodes serve at all."""
    return (
        discovery.admission == "anyone"
        or trusts(discovery, wallet)
        or wallet.lower() in {each.lower() for each in discovery.allowed_wallets}
    )


def check_admission(discovery: DiscoverySettings, wallet: str) -> None:
    """
    Raises:
        WalletNotAdmitted: the operator does not let this wallet's nodes serve.
    """
    if not admits(discovery, wallet):
        raise WalletNotAdmitted(
            f"This mesh admits only nodes of wallets that its operator has listed, and {wallet} is "
            "not among them. Ask the operator to add it to discovery.allowed_wallets."
        )


def not_revoked() -> ColumnElement[bool]:
    """SQL: the node's wallet itself signed, or has not revoked the machine that registered."""
    revoked = select(Machine.machine_id).where(Machine.revoked_at.is_not(None))
    return or_(RegisteredNode.machine_id.is_(None), RegisteredNode.machine_id.not_in(revoked))


async def is_current(db: AsyncSession, registration: NodeIncarnation) -> bool:
    """Whether the node has not registered again since, and its machine is not revoked."""
    found = await db.scalar(
        select(RegisteredNode.node_id).where(
            RegisteredNode.node_id == registration.node_id,
            RegisteredNode.registration == registration.number,
            not_revoked(),
        )
    )
    return found is not None


async def wallet_of(db: AsyncSession, node_id: str) -> str | None:
    """The wallet of a node, in lower case; none if there is no such node."""
    wallet: str | None = await db.scalar(
        select(RegisteredNode.wallet_address).where(RegisteredNode.node_id == node_id)
    )
    return wallet
