"""A provider's machines: let in by a wallet (RFC 8628), listed, and revoked."""

import datetime as dt
import secrets

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, Field
from sqlalchemy import func, select, update

from api.http.authentication import Bearer, LoggedIn, issue_machine_token, owner_of_machine
from api.http.rate_limits import address_of, limit
from api.http.services import Services, WithServices
from api.schemas.base import MachineName, RequestBody, WalletAddress
from market.identity import device_authorization
from market.identity.errors import MachineNotFound
from market.identity.tables import Machine
from market.nodes import live_registry
from market.nodes.tables import RegisteredNode

router = APIRouter(prefix="/api/machines", tags=["machines"])

MAX_LISTED = 1000


class DeviceRequest(RequestBody):
    machine: MachineName


class DeviceCodes(BaseModel):
    """RFC 8628, 3.2."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: float


class TokenRequest(RequestBody):
    device_code: str = Field(max_length=100)


class MachineToken(BaseModel):
    access_token: str
    token_type: str = "Bearer"
    expires_in: int
    machine_id: str
    wallet_address: str


class CodeTyped(RequestBody):
    user_code: str = Field(max_length=20)


class MessageRequest(CodeTyped):
    wallet_address: WalletAddress


class MessageToSign(BaseModel):
    message: str
    domain: str
    uri: str
    machine: str
    nonce: str
    issued_at: str
    expires_at: str


class Approval(MessageRequest):
    signature: str = Field(max_length=1024)


class Decided(BaseModel):
    status: str
    machine: str


class MachineOfWallet(BaseModel):
    machine_id: str
    name: str
    created_at: dt.datetime
    last_used_at: dt.datetime | None


class Machines(BaseModel):
    machines: list[MachineOfWallet]


@router.post("/device")
async def begin(body: DeviceRequest, request: Request, services: WithServices) -> DeviceCodes:
    """Codes for a machine that wants to be let in: one to ask with, one to show its owner."""
    address = address_of(request, services)
    await limit(services, services.settings.limits.device_codes_per_ip, "device", address)
    codes = await device_authorization.issue_codes(services, body.machine, address)
    auth, uri = services.settings.auth, f"{services.settings.public_url}/link"
    return DeviceCodes(
        device_code=codes.device_code,
        user_code=codes.user_code,
        verification_uri=uri,
        verification_uri_complete=f"{uri}?code={codes.user_code}",
        expires_in=auth.device_code_ttl,
        interval=auth.device_poll_interval,
    )


@router.post("/token")
async def token(body: TokenRequest, request: Request, services: WithServices) -> MachineToken:
    """The machine's token, once its owner has let it in. Until then an error says how to go on
    (RFC 8628, 3.5): `authorization_pending`, `slow_down`, `access_denied`, `expired_token`."""
    rule = services.settings.limits.device_polls_per_ip
    await limit(services, rule, "device_poll", address_of(request, services))
    wallet, machine_id = await device_authorization.redeem(services, body.device_code)
    return MachineToken(
        access_token=issue_machine_token(services, wallet, machine_id),
        expires_in=services.settings.auth.machine_token_ttl,
        machine_id=machine_id,
        wallet_address=wallet,
    )


@router.post("/message")
async def message(body: MessageRequest, request: Request, services: WithServices) -> MessageToSign:
    """What the wallet has to sign to let in the machine that shows this code."""
    waiting = await find(request, services, body.user_code)
    made = await device_authorization.message_for(services, waiting, body.wallet_address)
    return MessageToSign(
        message=made.text,
        domain=made.domain,
        uri=made.uri,
        machine=waiting.machine,
        nonce=made.nonce,
        issued_at=made.issued_at,
        expires_at=made.expires_at,
    )


@router.post("/approve")
async def approve(body: Approval, request: Request, services: WithServices) -> Decided:
    """Let the machine in, by the wallet's signature over the message from `/message`."""
    waiting = await find(request, services, body.user_code)
    wallet = body.wallet_address
    nonce = await device_authorization.check_signature(services, waiting, wallet, body.signature)
    machine_id = f"machine_{secrets.token_hex(8)}"
    async with services.sessions.begin() as db:
        db.add(Machine(machine_id=machine_id, wallet_address=wallet, name=waiting.machine))
        await device_authorization.approve(services, waiting, wallet, nonce, machine_id)
    return Decided(status="approved", machine=waiting.machine)


@router.post("/deny")
async def deny(body: CodeTyped, request: Request, services: WithServices) -> Decided:
    """Send the machine away. Needs no wallet: it gives nobody anything."""
    waiting = await find(request, services, body.user_code)
    await device_authorization.deny(services, waiting)
    return Decided(status="denied", machine=waiting.machine)


@router.get("")
async def machines(caller: LoggedIn, services: WithServices) -> Machines:
    """The machines that may register nodes for the caller's wallet, the newest first."""
    async with services.sessions() as db:
        rows = await db.scalars(
            select(Machine)
            .where(Machine.wallet_address == caller.wallet, Machine.revoked_at.is_(None))
            .order_by(Machine.created_at.desc())
            .limit(MAX_LISTED)
        )
        return Machines(
            machines=[
                MachineOfWallet(
                    machine_id=row.machine_id,
                    name=row.name,
                    created_at=row.created_at,
                    last_used_at=row.last_used_at,
                )
                for row in rows
            ]
        )


@router.delete("/{machine_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke(machine_id: str, bearer: Bearer, services: WithServices) -> None:
    """Take a machine's token back: by its wallet, or by the machine itself. Its nodes leave the
    routes at once, and their next heartbeat is refused."""
    wallet = owner_of_machine(bearer, services, machine_id)
    async with services.sessions.begin() as db:
        revoked = await db.scalar(
            update(Machine)
            .where(
                Machine.machine_id == machine_id,
                Machine.wallet_address == wallet,
                Machine.revoked_at.is_(None),
            )
            .values(revoked_at=func.now())
            .returning(Machine.machine_id)
        )
        if revoked is None:
            raise MachineNotFound("Your wallet has no machine of this id.")
        nodes = (
            await db.execute(
                update(RegisteredNode)
                .where(RegisteredNode.machine_id == machine_id, RegisteredNode.is_active)
                .values(is_active=False)
                .returning(RegisteredNode.node_id, RegisteredNode.model_id)
            )
        ).all()
    for node_id, model_id in nodes:
        await live_registry.evict(services.redis, node_id, model_id)


async def find(
    request: Request, services: Services, user_code: str
) -> device_authorization.PendingDevice:
    """The machine that shows this code, for a caller who has tries left.

    Raises:
        RateLimited: too many codes from this address.
        UserCodeUnknown: no machine waits with it.
    """
    rule = services.settings.limits.user_codes_per_ip
    await limit(services, rule, "user_code", address_of(request, services))
    return await device_authorization.find(services, user_code)
