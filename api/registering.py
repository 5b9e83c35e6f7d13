"""Taking a node in: who it is, which span it serves, where it is. One row a node, however often it
registers."""

import secrets
from typing import Any

from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api import placement
from api.credentials import DhtAccess, dht_access
from api.http.authentication import consume_nonce, issue_token, machine_of
from api.http.services import Services
from api.schemas.nodes import RegistrationBody
from market.errors import InvalidRequest
from market.identity.errors import SignatureMismatch
from market.nodes import live_registry, node
from market.nodes.errors import NodeIdTaken
from market.nodes.tables import RegisteredNode
from market.placement import rebalances
from mesh import signed_texts

Span = tuple[int, int]

UNSAID = ("", "unknown")
"""Locations that tell nothing."""


class Registered(BaseModel):
    node_id: str
    status: str
    discovery_url: str
    heartbeat_interval_sec: float
    node_token: str
    """Bearer token of this node, for heartbeats; worth nothing elsewhere, and nothing any more once
    the node registers again."""
    layers_served: list[int]
    edge: bool
    """Whether it serves the edge, too."""
    dht: DhtAccess | None
    """Only for the node that sent a `dht_key`, and where there is a DHT."""


async def register(
    services: Services,
    body: RegistrationBody,
    bearer: HTTPAuthorizationCredentials | None,
    address: str,
) -> Registered:
    """Take a node in. If it is one that we know, its earlier process is off the routes.

    Args:
        address: From which it calls.

    Raises:
        MeshError: the span is not the model's, the wallet is not proved, or the name is taken.
    """
    model = services.catalog.get(body.model_id)
    span = None if body.placeable else _span(body, model.layers)
    machine_id = await _prove_wallet(body, span, bearer, services)
    facts = _facts(body) | _location(services, body, address)
    facts |= {"machine_id": machine_id, "is_active": True}
    if span is not None:
        facts |= {"start_layer": span[0], "end_layer": span[1]}
    try:
        async with services.sessions.begin() as db:
            known = await _known(db, body)
            earlier_model = None if known is None else known.model_id
            if span is None:
                await rebalances.lock(db, model.id)
            given_up = None if known is None else await placement.begin_again(db, known, body)
            if span is None:
                facts |= await placement.place(services, db, model, body, known)
            row = _enter(db, body, known, facts)
    except IntegrityError:
        raise _taken(body) from None
    if given_up is not None:
        await rebalances.withdraw_assignments(services.redis, given_up)
    if earlier_model is not None:
        await live_registry.evict(services.redis, row.node_id, earlier_model, row.registration - 1)
    return Registered(
        node_id=row.node_id,
        status="registered",
        discovery_url=services.settings.public_url,
        heartbeat_interval_sec=services.settings.discovery.health_check_interval,
        node_token=issue_token(services, row.node_id, "node", registration=row.registration),
        layers_served=list(range(row.start_layer, row.end_layer)),
        edge=row.edge,
        dht=await dht_access(
            services,
            node_id=row.node_id,
            registration=row.registration,
            model_id=row.model_id,
            dht_key=body.dht_key,
        ),
    )


def _span(body: RegistrationBody, layers: int) -> Span:
    start = body.start_layer
    end = layers if body.end_layer is None else body.end_layer
    field = "end_layer"
    if body.layers_served:
        field = "layers_served"
        listed = body.layers_served[0], body.layers_served[-1] + 1
        given = {"start_layer": start, "end_layer": end}
        for (name, value), layer in zip(given.items(), listed, strict=True):
            if name in body.model_fields_set and value != layer:
                raise InvalidRequest(
                    f"{name} is {value}, and layers_served are those from {listed[0]} to "
                    f"{listed[1]}. One of them is enough.",
                    code="layers_served_mismatch",
                )
        start, end = listed
    if not 0 <= start < end <= layers:
        raise InvalidRequest(
            f"Layers {start} to {end} are not within the model's 0 to {layers}.",
            code=f"{field}_out_of_range",
        )
    return start, end


async def _prove_wallet(
    body: RegistrationBody,
    span: Span | None,
    bearer: HTTPAuthorizationCredentials | None,
    services: Services,
) -> str | None:
    """The machine that speaks for the wallet; none where the wallet itself has signed.

    Raises:
        SignatureMismatch: neither the wallet's signature nor a token of its machine.
        NonceUnknown: the signature was used before, or is too old.
    """
    if body.signature is None and bearer is not None:
        machine = await machine_of(bearer, services)
        if machine.wallet != body.wallet_address:
            raise SignatureMismatch(
                f"This machine was let in by {machine.wallet}: register for that."
            )
        return machine.machine_id
    if body.signature is None or body.nonce is None:
        raise SignatureMismatch("Sign the registration, with a nonce from /api/auth/nonce.")
    message = signed_texts.registration_message(
        wallet_address=body.wallet_address,
        model_id=body.model_id,
        start_layer=None if span is None else span[0],
        end_layer=None if span is None else span[1],
        edge=body.edge,
        nonce=body.nonce,
    )
    if not signed_texts.signed_by(message, body.signature, body.wallet_address):
        raise SignatureMismatch("The signature is not this wallet's over this registration.")
    await consume_nonce(services.redis, body.nonce)
    return None


def _facts(body: RegistrationBody) -> dict[str, Any]:
    device = {} if body.device_id is None else {"device_id": body.device_id}
    return device | {
        "model_id": body.model_id,
        "gpu_model": body.gpu_model,
        "vram_gb": body.vram_gb,
        "public_addr": body.public_addr,
        "edge": body.edge,
        "placeable": body.placeable,
        "gpu_index": body.gpu_index,
        "quantization": body.quantization,
        "memory_bytes": body.memory_bytes,
        "max_sessions": body.max_sessions,
        "min_price": body.min_price,
    }


def _location(services: Services, body: RegistrationBody, address: str) -> dict[str, Any]:
    """By its address, which it cannot make up; else by its own word."""
    name, latitude, longitude = body.location, body.latitude, body.longitude
    if latitude is None or longitude is None:
        latitude = longitude = None
    said = name.lower() not in UNSAID or latitude is not None
    located: node.LocationSource = "declared" if said else "unknown"
    found = services.places.find(address)
    if found is not None:
        name, located = found.name or name, "geoip"
        latitude, longitude = found.coordinates
    return {"location": name, "latitude": latitude, "longitude": longitude, "located": located}


async def _known(db: AsyncSession, body: RegistrationBody) -> RegisteredNode | None:
    """The row of a node that comes back. Nobody else registers a node of the wallet until the
    transaction ends.

    Raises:
        NodeIdTaken: the name is that of another wallet's node.
    """
    wallet = body.wallet_address
    # Two processes of one machine, at the same moment: one comes after the other.
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(wallet, 0))))
    row = None
    if body.device_id is not None:
        row = await db.scalar(
            select(RegisteredNode).where(
                RegisteredNode.wallet_address == wallet,
                RegisteredNode.device_id == body.device_id,
                RegisteredNode.gpu_index == body.gpu_index,
            )
        )
    if row is None and body.node_id is not None:
        row = await db.get(RegisteredNode, body.node_id)
    if row is not None and row.wallet_address != wallet:
        raise _taken(body)
    return row


def _enter(
    db: AsyncSession, body: RegistrationBody, known: RegisteredNode | None, facts: dict[str, Any]
) -> RegisteredNode:
    """The node's row, new or as it was with one registration more."""
    if known is None:
        name = body.node_id or f"node_{secrets.token_hex(8)}"
        row = RegisteredNode(
            node_id=name, wallet_address=body.wallet_address, registration=1, **facts
        )
        db.add(row)
        return row
    for name, value in facts.items():
        setattr(known, name, value)
    known.registration += 1
    return known


def _taken(body: RegistrationBody) -> NodeIdTaken:
    return NodeIdTaken(
        f"{body.node_id} is a node of another wallet. Choose another node_id, or none."
    )
