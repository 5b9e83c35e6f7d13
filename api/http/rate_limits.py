"""Every rate limit: a moving window in Redis, shared by all replicas."""

import math
import time
from dataclasses import dataclass

from fastapi import Request
from limits import parse

from api.http.services import Services
from market.errors import RateLimited


@dataclass(frozen=True, slots=True)
class RateLimit:
    """
    Attributes:
        name: Part of the window's key in Redis.
        setting: The rule's name in :class:`market.settings.limits.LimitSettings`.
    """

    name: str
    setting: str

    async def count(self, services: Services, who: str) -> None:
        """Count one request of an address, a wallet or a node.

        Raises:
            RateLimited: the rule is exhausted; says when to come back.
        """
        rule: str = getattr(services.settings.limits, self.setting)
        item = parse(rule)
        if await services.limiter.hit(item, self.name, who):
            return
        window = await services.limiter.get_window_stats(item, self.name, who)
        wait = max(1, math.ceil(window.reset_time - time.time()))
        raise RateLimited(f"At most {rule}. Try again in {wait} seconds.", retry_after=wait)

    async def count_address(self, services: Services, request: Request) -> None:
        """Count one request of the caller's address.

        Raises:
            RateLimited: as :meth:`count`.
        """
        await self.count(services, address_of(request, services))


GENERATIONS_OF_ADDRESS = RateLimit("generate", "generations_per_ip")
GENERATIONS_OF_WALLET = RateLimit("generate-wallet", "generations_per_wallet")
RECEIPTS = RateLimit("receipt", "receipts_per_wallet")
TABLES = RateLimit("table", "tables_per_wallet")
NONCES = RateLimit("nonce", "logins_per_ip")
LOGINS = RateLimit("login", "logins_per_ip")
DEVICE_CODES = RateLimit("device", "device_codes_per_ip")
DEVICE_POLLS = RateLimit("device_poll", "device_polls_per_ip")
USER_CODES = RateLimit("user_code", "user_codes_per_ip")
REGISTRATIONS = RateLimit("register", "registrations_per_ip")
HEARTBEATS = RateLimit("heartbeat", "heartbeats_per_node")
RELAY_CONNECTIONS = RateLimit("relay", "relay_connections_per_node")
WEIGHTS = RateLimit("weights", "weights_per_wallet")
PROBES = RateLimit("probe", "probes_per_ip")


def address_of(request: Request, services: Services) -> str:
    """The caller's IP address; behind a trusted proxy, the one that the proxy saw."""
    if services.settings.limits.trust_forwarded_for:
        # A proxy may add a header of its own after one that the client made up: the last counts.
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        nearest = forwarded.rpartition(",")[2].strip()
        if nearest:
            return nearest
    return request.client.host if request.client else "unknown"
