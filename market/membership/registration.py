"""Registration of a node: whose it is, which span it serves, where it is. One row a node, however
often it registers."""

import secrets
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from market.dht.credentials import dht_access
from market.errors import InvalidRequest
from market.geo.geoip import GeoLocation
from market.identity.errors import SignatureMismatch
from market.identity.principal import Principal
from market.identity.tokens import issue_node_token
from market.identity.wallet_signature import WalletSignature, check_signature
from market.nodes import live_registry
from market.nodes.errors import NodeIdTaken
from market.nodes.node import LocationSource
from market.nodes.registered_node import check_admission
from market.nodes.tables import RegisteredNode
from market.placement import assignments, newcomers, rebalances
from market.resources import Resources
from mesh import signed_texts
from mesh.node_api import NodeRegistration, RegistrationReply

UNSPECIFIED = ("", "unknown")
"""Locations that tell nothing."""


async def register(
    resources: Resources,
    node: NodeRegistration,
    *,
    proof: Principal | WalletSignature | None,
    name: str | None,
    location: GeoLocation | None,
) -> RegistrationReply:
    """Take a node in. If it is one that we know, its earlier process is off the routes.

    Args:
        proof: The machine that speaks for the wallet, or the wallet's own signature.
        name: The id that the node would like to have.
        location: By the address from which it calls, which it cannot make up.

    Raises:
        MeshError: the span is not the model's, the wallet is not proved or not admitted, or the
            name is taken.
    """
    model = resources.catalog.get(node.model_id)
    span = None if node.placeable else checked_span(node.start_layer, node.end_layer, model.layers)
    machine_id = await _check_proof(resources, node, span, proof)
    check_admission(resources.settings.discovery, node.wallet_address)
    columns = _columns(node) | _location(node, location)
    columns |= {"machine_id": machine_id, "is_active": True}
    if span is not None:
        columns |= {"start_layer": span[0], "end_layer": span[1]}
    try:
        async with resources.sessions.begin() as db:
            known = await _existing_row(db, node, name)
            earlier_model = None if known is None else known.model_id
            if span is None:
                await rebalances.lock(db, model.id)
            ended = None if known is None else await assignments.record_restart(db, known, node)
            if span is None:
                columns |= await newcomers.place(
                    resources, db, model, node, known, by_machine=machine_id is not None
                )
            row = _upsert(db, node, known, name, columns)
    except IntegrityError:
        raise _id_taken_error(name) from None
    if ended is not None:
        await rebalances.withdraw_assignments(resources.redis, ended)
    if earlier_model is not None:
        await live_registry.evict(resources.redis, row.node_id, earlier_model, row.registration - 1)
    settings = resources.settings
    return RegistrationReply(
        node_id=row.node_id,
        node_token=issue_node_token(settings.auth, row.node_id, row.registration),
        heartbeat_interval_sec=settings.discovery.health_check_interval,
        layers_served=list(range(row.start_layer, row.end_layer)),
        edge=row.edge,
        dht=await dht_access(
            resources.redis,
            settings,
            node_id=row.node_id,
            registration=row.registration,
            model_id=row.model_id,
            layers=model.layers,
            dht_key=node.dht_key,
        ),
    )


def checked_span(
    start: int, end: int | None, layers: int, *, field: str = "end_layer"
) -> tuple[int, int]:
    """The span, whose end is the model's last layer where none is given.

    Args:
        layers: Of the model.
        field: By which an error calls the span.

    Raises:
        InvalidRequest: the span is not within the model.
    """
    end = layers if end is None else end
    if not 0 <= start < end <= layers:
        raise InvalidRequest(
            f"Layers {start} to {end} are not within the model's 0 to {layers}.",
            code=f"{field}_out_of_range",
        )
    return start, end


async def _check_proof(
    resources: Resources,
    node: NodeRegistration,
    span: tuple[int, int] | None,
    proof: Principal | WalletSignature | None,
) -> str | None:
    """The machine that speaks for the wallet; none where the wallet itself has signed.

    Raises:
        SignatureMismatch: neither the wallet's signature nor a token of its machine.
        SignatureExpired: the signature's time is up, or too far ahead.
        NonceUnknown: the signature was used before, or is too old.
    """
    if isinstance(proof, Principal):
        if proof.wallet != node.wallet_address:
            raise SignatureMismatch(
                f"This machine was let in by {proof.wallet}: register for that."
            )
        return proof.machine_id
    if proof is None:
        raise SignatureMismatch("Sign the registration, with a nonce from /api/auth/nonce.")
    auth = resources.settings.auth
    message = signed_texts.registration_message(
        platform=auth.domain,
        wallet_address=node.wallet_address,
        model_id=node.model_id,
        start_layer=None if span is None else span[0],
        end_layer=None if span is None else span[1],
        edge=node.edge,
        nonce=proof.nonce,
        expires_at=proof.expires_at,
    )
    await check_signature(
        resources.redis, auth, proof, message=message, wallet_address=node.wallet_address
    )
    return None


def _columns(node: NodeRegistration) -> dict[str, Any]:
    device = {} if node.device_id is None else {"device_id": node.device_id}
    return device | {
        "model_id": node.model_id,
        "gpu_model": node.gpu_model,
        "vram_gb": node.vram_gb,
        "public_addr": node.public_addr,
        "edge": node.edge,
        "placeable": node.placeable,
        "gpu_index": node.gpu_index,
        "quantization": node.quantization,
        "memory_bytes": node.memory_bytes,
        "max_sessions": node.max_sessions,
        "min_price": None if node.min_price is None else Decimal(node.min_price),
    }


def _location(node: NodeRegistration, found: GeoLocation | None) -> dict[str, Any]:
    """By the node's address; else by its own word."""
    name, latitude, longitude = node.location, node.latitude, node.longitude
    if latitude is None or longitude is None:
        latitude = longitude = None
    said = name.lower() not in UNSPECIFIED or latitude is not None
    located: LocationSource = "declared" if said else "unknown"
    if found is not None:
        name, located = found.name or name, "geoip"
        latitude, longitude = found.coordinates
    return {"location": name, "latitude": latitude, "longitude": longitude, "located": located}


async def _existing_row(
    db: AsyncSession, node: NodeRegistration, name: str | None
) -> RegisteredNode | None:
    """The row of a node that comes back. Nobody else registers a node of the wallet until the
    transaction ends.

    Raises:
        NodeIdTaken: the name is that of another wallet's node.
    """
    wallet = node.wallet_address
    # Two processes of one machine, at the same moment: one comes after the other.
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(wallet, 0))))
    row = None
    if node.device_id is not None:
        row = await db.scalar(
            select(RegisteredNode).where(
                RegisteredNode.wallet_address == wallet,
                RegisteredNode.device_id == node.device_id,
                RegisteredNode.gpu_index == node.gpu_index,
            )
        )
    if row is None and name is not None:
        row = await db.get(RegisteredNode, name)
    if row is not None and row.wallet_address != wallet:
        raise _id_taken_error(name)
    return row


def _upsert(
    db: AsyncSession,
    node: NodeRegistration,
    known: RegisteredNode | None,
    name: str | None,
    columns: dict[str, Any],
) -> RegisteredNode:
    """The node's row, new or as it was with one registration more."""
    if known is None:
        row = RegisteredNode(
            node_id=name or f"node_{secrets.token_hex(8)}",
            wallet_address=node.wallet_address,
            registration=1,
            **columns,
        )
        db.add(row)
        return row
    for column, value in columns.items():
        setattr(known, column, value)
    known.registration += 1
    return known


def _id_taken_error(name: str | None) -> NodeIdTaken:
    return NodeIdTaken(f"{name} is a node of another wallet. Choose another node_id, or none.")
