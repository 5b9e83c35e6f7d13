"""Every rate limit: a window in Redis, shared by all replicas."""

import math
import time
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import NoReturn

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from limits import RateLimitItem, parse
from limits.aio.strategies import RateLimiter

from api.http import caller_address
from api.http.caller_address import NETWORK_BITS, SITE_BITS, UNKNOWN, network_of
from api.http.services import Services, WithServices
from market.errors import RateLimited


@dataclass(frozen=True, slots=True)
class RateLimit:
    """
    Attributes:
        name: Part of the window's key in Redis.
        setting: The rule's name in :class:`market.settings.limits.LimitSettings`.
        exact: Count by a moving window, which keeps an entry of each request, rather than by two
            counters.
    """

    name: str
    setting: str
    exact: bool = True

    async def count(self, services: Services, who: str) -> None:
        """Count one request of a wallet or a node.

        Raises:
            RateLimited: the rule is exhausted; says when to come back.
        """
        await self._hit(services, self._rule(services), who)

    async def count_address(self, services: Services, request: Request) -> None:
        """Count one request of the caller's address; of an IPv6 address, one of its household, and
        one of its site, which may ask more.

        Raises:
            RateLimited: as :meth:`count`.
        """
        limits, rule = services.settings.limits, self._rule(services)
        address = caller_address.address_of(request, limits)
        if address is None:
            await self._hit(services, rule, UNKNOWN)
            return
        household = network_of(address, NETWORK_BITS)
        if isinstance(address, IPv6Address):
            of_site = type(rule)(rule.amount * limits.ipv6_site_factor, rule.multiples)
            site = network_of(address, SITE_BITS)
            # What one of the windows refuses takes nothing from the other.
            await self._check(services, rule, household)
            await self._hit(services, of_site, site)
        await self._hit(services, rule, household)

    def by_address(self) -> Dependency:
        """A dependency of a route, which counts its requests by the caller's address."""

        async def count(request: Request, services: WithServices) -> None:
            await self.count_address(services, request)

        dependency: Dependency = Depends(count)
        return dependency

    def _rule(self, services: Services) -> RateLimitItem:
        return parse(getattr(services.settings.limits, self.setting))

    async def _hit(self, services: Services, rule: RateLimitItem, who: str) -> None:
        limiter = self._limiter(services)
        if not await limiter.hit(rule, self.name, who):
            await self._refuse(services, rule, who)

    async def _check(self, services: Services, rule: RateLimitItem, who: str) -> None:
        if not await self._limiter(services).test(rule, self.name, who):
            await self._refuse(services, rule, who)

    def _limiter(self, services: Services) -> RateLimiter:
        return services.limiter if self.exact else services.counting_limiter

    async def _refuse(self, services: Services, rule: RateLimitItem, who: str) -> NoReturn:
        limiter = self._limiter(services)
        window = await limiter.get_window_stats(rule, self.name, who)
        wait = max(1, math.ceil(window.reset_time - time.time()))
        raise RateLimited(f"At most {rule}. Try again in {wait} seconds.", retry_after=wait)


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
WEIGHT_FILES = RateLimit("weight-file", "weight_files_per_wallet", exact=False)
PROBES = RateLimit("probe", "probes_per_ip")
BODIES = RateLimit("body", "bodies_per_ip", exact=False)
READS = RateLimit("read", "reads_per_ip", exact=False)
REQUESTS_OF_ADDRESS = RateLimit("request-address", "requests_per_ip", exact=False)
REQUESTS_OF_WALLET = RateLimit("request", "requests_per_wallet", exact=False)


def address_of(request: Request, services: Services) -> str:
    """The caller's address in its one spelling, or :data:`UNKNOWN`."""
    return str(caller_address.address_of(request, services.settings.limits) or UNKNOWN)
