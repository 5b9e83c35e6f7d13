"""A provider's machines: let in by a wallet (RFC 8628), listed, and revoked."""

import secrets

from fastapi import APIRouter, Request, status

from api.http import rate_limits
from api.http.authentication import AnyCaller, MachinesCaller
from api.http.rate_limits import address_of
from api.http.services import Services, WithServices
from api.schemas.base import PathId
from api.schemas.machines import (
    ApprovalBody,
    Decision,
    DeviceBody,
    DeviceCodes,
    Machines,
    MachineToken,
    MessageBody,
    MessageToSign,
    TokenBody,
    UserCodeBody,
)
from market.errors import Forbidden
from market.identity.device_authorization import DeviceAuthorization, PendingDevice
from market.identity.machines import machines_of
from market.identity.tables import Machine
from market.identity.tokens import issue_machine_token
from market.membership.revocation import revoke_machine

router = APIRouter(prefix="/api/machines", tags=["machines"])


@router.post("/device")
async def begin(body: DeviceBody, request: Request, services: WithServices) -> DeviceCodes:
    """Codes for a machine that wants to be let in: one to ask with, one to show its owner."""
    await rate_limits.DEVICE_CODES.count_address(services, request)
    address = address_of(request, services)
    codes = await _authorization(services).issue_codes(body.machine, address)
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
async def token(body: TokenBody, request: Request, services: WithServices) -> MachineToken:
    """The machine's token, once its owner has let it in. Until then an error says how to go on
    (RFC 8628, 3.5): `authorization_pending`, `slow_down`, `access_denied`, `expired_token`."""
    await rate_limits.DEVICE_POLLS.count_address(services, request)
    wallet, machine_id = await _authorization(services).redeem(body.device_code)
    return MachineToken(
        access_token=issue_machine_token(services.settings.auth, wallet, machine_id),
        expires_in=services.settings.auth.machine_token_ttl,
        machine_id=machine_id,
        wallet_address=wallet,
    )


@router.post("/message")
async def message(body: MessageBody, request: Request, services: WithServices) -> MessageToSign:
    """What the wallet has to sign to let in the machine that shows this code."""
    pending = await find_pending(request, services, body.user_code)
    message = await _authorization(services).issue_message(pending, body.wallet_address)
    return MessageToSign(
        message=message.text,
        domain=message.domain,
        uri=message.uri,
        machine=pending.machine,
        nonce=message.nonce,
        issued_at=message.issued_at,
        expires_at=message.expires_at,
    )


@router.post("/approve")
async def approve(body: ApprovalBody, request: Request, services: WithServices) -> Decision:
    """Let the machine in, by the wallet's signature over the message from `/message`."""
    pending = await find_pending(request, services, body.user_code)
    wallet = body.wallet_address
    nonce = await _authorization(services).check_signature(pending, wallet, body.signature)
    machine_id = f"machine_{secrets.token_hex(8)}"
    async with services.sessions.begin() as db:
        db.add(Machine(machine_id=machine_id, wallet_address=wallet, name=pending.machine))
        await _authorization(services).approve(pending, wallet, nonce, machine_id)
    return Decision(status="approved", machine=pending.machine)


@router.post("/deny")
async def deny(body: UserCodeBody, request: Request, services: WithServices) -> Decision:
    """Send the machine away. Needs no wallet: it gives nobody anything."""
    pending = await find_pending(request, services, body.user_code)
    await _authorization(services).deny(pending)
    return Decision(status="denied", machine=pending.machine)


@router.get("")
async def machines(caller: MachinesCaller, services: WithServices) -> Machines:
    """The machines that may register nodes for the caller's wallet, the newest first."""
    async with services.own_reads() as db:
        return Machines.of(await machines_of(db, caller.wallet))


@router.delete("/{machine_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke(machine_id: PathId, caller: AnyCaller, services: WithServices) -> None:
    """Take a machine's token back: by its wallet, or by the machine itself. Its nodes leave the
    routes at once, and their next heartbeat is refused."""
    if not caller.may_revoke(machine_id):
        raise Forbidden("Only its wallet, or the machine itself, may do this.")
    await revoke_machine(services, caller.wallet, machine_id)


async def find_pending(request: Request, services: Services, user_code: str) -> PendingDevice:
    """The machine that shows this code, for a caller who has tries left.

    Raises:
        RateLimited: too many codes from this address.
        UserCodeUnknown: no machine waits with it.
    """
    await rate_limits.USER_CODES.count_address(services, request)
    return await _authorization(services).find(user_code)


def _authorization(services: Services) -> DeviceAuthorization:
    return DeviceAuthorization(services.redis, services.settings)
