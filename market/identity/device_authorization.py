"""Device authorization (RFC 8628): machines that ask to be let in, in Redis until they are.

Codes are kept as keyed hashes: whoever reads Redis can neither fetch a machine's token nor let one
in. Each code works once.
"""

import datetime as dt
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from market.identity.errors import (
    AccessDenied,
    AuthorizationPending,
    CodeExpired,
    SignatureMismatch,
    SlowDown,
    UserCodeUnknown,
)
from market.key_derivation import derive_key
from market.settings import Settings
from mesh import redis_keys, signed_texts
from mesh.clock_skew import CLOCK_SKEW

USER_CODE_ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
"""Of user codes, as RFC 8628 recommends: no vowels, so no words, and nothing that looks like a
digit. Eight of them are one of 2.6e10."""

USER_CODE_LENGTH = 8

SLOW_DOWN_SECONDS = 5
"""Seconds that a machine which asks too often has to wait longer from then on (RFC 8628, 3.5)."""

_IF_PENDING = """
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[1], 'decision') == 1 then
    return 'over'
end
"""

_SET_MESSAGE = f"""{_IF_PENDING}
redis.call('HSET', KEYS[1], unpack(ARGV))
return 'asked'
"""

_APPROVE = f"""{_IF_PENDING}
local asked = redis.call('HMGET', KEYS[1], 'wallet', 'nonce')
if asked[1] ~= ARGV[1] or asked[2] ~= ARGV[2] then
    return 'replaced'
end
redis.call('HSET', KEYS[1], 'decision', 'approved', 'machine_id', ARGV[3])
return 'decided'
"""
"""By the wallet whose signature was checked, over the message that was checked: another one may
have been asked for meanwhile."""

_DENY = f"""{_IF_PENDING}
redis.call('HSET', KEYS[1], 'decision', 'denied')
return 'decided'
"""

_POLL = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local fields = {'interval', 'next_at', 'decision', 'wallet', 'machine_id'}
local found = redis.call('HMGET', KEYS[1], unpack(fields))
if not found[1] then
    return {'expired'}
end
local interval = tonumber(found[1])
if now < tonumber(found[2]) then
    interval = interval + tonumber(ARGV[1])
    redis.call('HSET', KEYS[1], 'interval', interval, 'next_at', tostring(now + interval))
    return {'slow_down', tostring(interval)}
end
if found[3] then
    redis.call('DEL', KEYS[1])
    return {found[3], found[4] or '', found[5] or ''}
end
redis.call('HSET', KEYS[1], 'next_at', tostring(now + interval))
return {'pending'}
"""


@dataclass(frozen=True, slots=True)
class DeviceCodes:
    """What a machine gets: ``device_code`` to ask with, ``user_code`` to show."""

    device_code: str
    user_code: str


@dataclass(frozen=True, slots=True)
class PendingDevice:
    """A machine that nobody has decided about yet."""

    key: str
    machine: str
    address: str
    """Where it asked from."""
    user_code: str


@dataclass(frozen=True, slots=True)
class ApprovalMessage:
    """The text that a wallet is to sign, and what of it is not known beforehand."""

    text: str
    domain: str
    uri: str
    nonce: str
    issued_at: str
    expires_at: str


class DeviceAuthorization:
    """The codes in Redis, from the machine's question to the owner's decision."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings

    async def issue_codes(self, machine: str, address: str) -> DeviceCodes:
        """Codes for a machine of this name that asks from this address."""
        auth = self._settings.auth
        codes = DeviceCodes(
            device_code=secrets.token_urlsafe(32),
            user_code="".join(secrets.choice(USER_CODE_ALPHABET) for _ in range(USER_CODE_LENGTH)),
        )
        digest = self._digest(codes.device_code)
        record = {
            "machine": machine,
            "address": address,
            "interval": auth.device_poll_interval,
            "next_at": 0,
        }
        async with self._redis.pipeline() as pipe:
            pipe.hset(redis_keys.device_code(digest), mapping=record)
            pipe.expire(redis_keys.device_code(digest), auth.device_code_ttl)
            await pipe.execute()
        user_key = redis_keys.user_code(self._digest(codes.user_code))
        await self._redis.set(user_key, digest, ex=auth.device_code_ttl)
        return DeviceCodes(codes.device_code, hyphenated(codes.user_code))

    async def find(self, user_code: str) -> PendingDevice:
        """
        Raises:
            UserCodeUnknown: mistyped, expired, or decided about already.
        """
        letters = "".join(letter for letter in user_code.upper() if letter in USER_CODE_ALPHABET)
        digest = await self._redis.get(redis_keys.user_code(self._digest(letters)))
        if digest is not None:
            key = redis_keys.device_code(digest.decode())
            found = await self._redis.hmget(key, ["machine", "address", "decision"])  # type: ignore[misc]
            if found[0] is not None and found[2] is None:
                return PendingDevice(key, found[0].decode(), found[1].decode(), hyphenated(letters))
        raise UserCodeUnknown(
            "No machine waits with this code. Compare it, or start the login again."
        )

    async def issue_message(self, pending: PendingDevice, wallet_address: str) -> ApprovalMessage:
        """What the wallet is to sign. A newer one replaces it.

        Raises:
            UserCodeUnknown: it was decided meanwhile, or the time is up.
        """
        issued = dt.datetime.now(dt.UTC)
        fields = {
            "wallet": wallet_address,
            "nonce": secrets.token_hex(16),
            "issued_at": signed_texts.format_instant(issued),
            "expires_at": signed_texts.format_instant(
                issued + dt.timedelta(seconds=self._settings.auth.nonce_ttl)
            ),
        }
        pairs = [part for pair in fields.items() for part in pair]
        await self._run(_SET_MESSAGE, pending, *pairs)
        return self._message(pending, fields)

    async def check_signature(
        self, pending: PendingDevice, wallet_address: str, signature: str
    ) -> str:
        """The nonce of the message that was signed.

        Raises:
            SignatureMismatch: it is not this wallet's over the message it was given, or that is too
                old.
        """
        fields = {
            name.decode(): value.decode()
            for name, value in (await self._redis.hgetall(pending.key)).items()  # type: ignore[misc]
        }
        if fields.get("wallet") != wallet_address:
            raise SignatureMismatch("Ask for the message to sign first, with the same wallet.")
        expired = dt.datetime.now(dt.UTC) - signed_texts.instant(fields["expires_at"])
        if expired.total_seconds() >= CLOCK_SKEW:
            raise SignatureMismatch("The message has expired. Ask for a new one, and sign that.")
        if not signed_texts.signed_by(
            self._message(pending, fields).text, signature, wallet_address
        ):
            raise SignatureMismatch(
                "The signature is not this wallet's over the message it was given."
            )
        nonce: str = fields["nonce"]
        return nonce

    async def approve(
        self, pending: PendingDevice, wallet_address: str, nonce: str, machine_id: str
    ) -> None:
        """Let the machine in, under this id, by the wallet that signed the message of this nonce.

        Raises:
            UserCodeUnknown: somebody was faster, or the time is up.
            SignatureMismatch: another message has been asked for since.
        """
        await self._run(_APPROVE, pending, wallet_address, nonce, machine_id)

    async def deny(self, pending: PendingDevice) -> None:
        """Send the machine away.

        Raises:
            UserCodeUnknown: somebody was faster, or the time is up.
        """
        await self._run(_DENY, pending)

    async def _run(self, script: str, pending: PendingDevice, *arguments: str) -> None:
        answer: Any = self._redis.eval(script, 1, pending.key, *arguments)
        match (await answer).decode():
            case "over":
                raise UserCodeUnknown("This code has been used, or its time is up.")
            case "replaced":
                raise SignatureMismatch("A newer message has been asked for. Sign that.")

    async def redeem(self, device_code: str) -> tuple[str, str]:
        """The wallet that let the machine in, and the machine's id. Only once.

        Raises:
            AuthorizationPending: nobody has decided yet.
            SlowDown: the machine asks too often.
            AccessDenied: the owner said no.
            CodeExpired: the time is up, or the code was redeemed.
        """
        key = redis_keys.device_code(self._digest(device_code))
        script: Any = self._redis.eval(_POLL, 1, key, str(SLOW_DOWN_SECONDS))
        state, *values = [part.decode() for part in await script]
        match state:
            case "approved":
                wallet, machine_id = values
                return wallet, machine_id
            case "denied":
                raise AccessDenied("The owner did not let this machine in.")
            case "slow_down":
                raise SlowDown(f"Ask every {float(values[0]):g} seconds.")
            case "pending":
                raise AuthorizationPending("Nobody has let this machine in yet.")
            case _:
                raise CodeExpired("This code's time is up, or it was used. Start the login again.")

    def _message(self, pending: PendingDevice, fields: dict[str, str]) -> ApprovalMessage:
        uri = f"{self._settings.public_url}/link"
        text = signed_texts.machine_message(
            domain=self._settings.auth.domain,
            uri=uri,
            wallet_address=fields["wallet"],
            machine=pending.machine,
            user_code=pending.user_code,
            nonce=fields["nonce"],
            issued_at=fields["issued_at"],
            expires_at=fields["expires_at"],
        )
        return ApprovalMessage(
            text=text,
            domain=self._settings.auth.domain,
            uri=uri,
            nonce=fields["nonce"],
            issued_at=fields["issued_at"],
            expires_at=fields["expires_at"],
        )

    def _digest(self, code: str) -> str:
        """Keyed, since a user code is short enough to be found by trying."""
        secret = self._settings.auth.jwt_secret.get_secret_value().encode()
        key = derive_key(secret, "far-mesh device codes")
        return hmac.new(key, code.encode(), hashlib.sha256).hexdigest()


def hyphenated(user_code: str) -> str:
    """The code as people read it: BCDF-GHJK."""
    half = USER_CODE_LENGTH // 2
    return f"{user_code[:half]}-{user_code[half:]}"
