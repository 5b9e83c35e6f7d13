"""Every rate limit: a window in Redis, shared by all replicas."""

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from limits import RateLimitItem, RateLimitItemPerMinute, parse
from limits.aio.strategies import RateLimiter
from starlette.requests import HTTPConnection

from api.http import caller_address
from api.http.caller_address import NETWORK_BITS, SITE_BITS, UNKNOWN, network_of
from api.http.services import Services, WithServices
from market.errors import RateLimited
from market.identity.principal import Principal


@dataclass(frozen=True, slots=True)
class Window:
    """A limit that a request was counted by: ``limit`` requests of one caller within ``seconds``,
    of which ``remaining`` are left, and some more in ``reset`` seconds."""

    policy: str
    limit: int
    seconds: int
    remaining: int
    reset: int


windows: ContextVar[list[Window] | None] = ContextVar("windows", default=None)
"""What the request of this context was counted by, for the headers of its answer; none where
nobody asks."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """
    Attributes:
        policy: The limit's name, in headers and errors; part of the window's key in Redis.
        setting: The rule's name in :class:`market.settings.limits.LimitSettings`.
        exact: Count by a moving window, which keeps an entry of each request, rather than by two
            counters.
        told: Say in each answer what is left, which takes a look into Redis; else only in one that
            refuses.
    """

    policy: str
    setting: str
    exact: bool = True
    told: bool = True

    async def count(
        self, services: Services, who: str, rule: RateLimitItem | None = None, *, requests: int = 1
    ) -> None:
        """Count requests of a wallet, a key or a node, all or none.

        Args:
            rule: Its own instead of the setting's.

        Raises:
            RateLimited: the rule is exhausted; says when to come back.
        """
        await self._hit(services, rule or self.rule(services), who, requests)

    async def count_address(self, services: Services, connection: HTTPConnection) -> None:
        """Count one request of the caller's address; of an IPv6 address, one of its household, and
        one of its site, which may ask more.

        Raises:
            RateLimited: as :meth:`count`.
        """
        *wider, (rule, who) = self._of_address(services, connection)
        for each in wider:
            # What one of the windows refuses takes nothing from the other.
            await self._check(services, rule, who)
            await self._hit(services, *each)
        await self._hit(services, rule, who)

    async def check_address(self, services: Services, connection: HTTPConnection) -> None:
        """Count nothing, but refuse what :meth:`count_address` would refuse.

        Raises:
            RateLimited: as :meth:`count`.
        """
        for rule, who in self._of_address(services, connection):
            await self._check(services, rule, who)

    def by_address(self) -> Dependency:
        """A dependency of a route, which counts its requests by the caller's address."""

        async def count(request: Request, services: WithServices) -> None:
            await self.count_address(services, request)

        dependency: Dependency = Depends(count)
        return dependency

    def _of_address(
        self, services: Services, connection: HTTPConnection
    ) -> list[tuple[RateLimitItem, str]]:
        """The caller's windows, the widest first."""
        limits, rule = services.settings.limits, self.rule(services)
        address = caller_address.address_of(connection, limits)
        if address is None:
            return [(rule, UNKNOWN)]
        household = (rule, network_of(address, NETWORK_BITS))
        if not isinstance(address, IPv6Address):
            return [household]
        of_site = type(rule)(rule.amount * limits.ipv6_site_factor, rule.multiples)
        return [(of_site, network_of(address, SITE_BITS)), household]

    def rule(self, services: Services) -> RateLimitItem:
        """The setting's."""
        return parse(getattr(services.settings.limits, self.setting))

    async def _hit(
        self, services: Services, rule: RateLimitItem, who: str, requests: int = 1
    ) -> None:
        if not await self._limiter(services).hit(rule, self.policy, who, cost=requests):
            raise await self._exceeded(services, rule, who)
        if self.told and windows.get() is not None:
            await self._window(services, rule, who)

    async def _check(self, services: Services, rule: RateLimitItem, who: str) -> None:
        if not await self._limiter(services).test(rule, self.policy, who):
            raise await self._exceeded(services, rule, who)

    async def _window(self, services: Services, rule: RateLimitItem, who: str) -> Window:
        """The window as it is now, which is noted for the answer's headers."""
        stats = await self._limiter(services).get_window_stats(rule, self.policy, who)
        window = Window(
            policy=self.policy,
            limit=rule.amount,
            seconds=rule.get_expiry(),
            remaining=max(0, stats.remaining),
            reset=max(1, math.ceil(stats.reset_time - time.time())),
        )
        met = windows.get()
        if met is not None:
            met[:] = [each for each in met if each.policy != self.policy]
            met.append(window)
        return window

    def _limiter(self, services: Services) -> RateLimiter:
        return services.limiter if self.exact else services.counting_limiter

    async def _exceeded(self, services: Services, rule: RateLimitItem, who: str) -> RateLimited:
        wait = (await self._window(services, rule, who)).reset
        return RateLimited(
            f"At most {rule} ({self.policy}). Try again in {wait} seconds.",
            retry_after=wait,
            limit=self.policy,
        )


GENERATIONS_OF_ADDRESS = RateLimit("generations-per-address", "generations_per_ip")
GENERATIONS_OF_WALLET = RateLimit("generations-per-wallet", "generations_per_wallet")
GENERATIONS_OF_KEY = RateLimit("generations-per-key", "generations_per_key")
NEW_KEYS = RateLimit("new-keys-per-wallet", "new_keys_per_wallet")
UNKNOWN_KEYS = RateLimit("unknown-keys-per-address", "unknown_keys_per_ip", exact=False)
RECEIPTS = RateLimit("receipts-per-wallet", "receipts_per_wallet")
TABLES = RateLimit("tables-per-wallet", "tables_per_wallet")
NONCES = RateLimit("nonces-per-address", "logins_per_ip")
LOGINS = RateLimit("logins-per-address", "logins_per_ip")
DEVICE_CODES = RateLimit("device-codes-per-address", "device_codes_per_ip")
DEVICE_POLLS = RateLimit("device-polls-per-address", "device_polls_per_ip")
USER_CODES = RateLimit("user-codes-per-address", "user_codes_per_ip")
REGISTRATIONS = RateLimit("registrations-per-address", "registrations_per_ip")
HEARTBEATS = RateLimit("heartbeats-per-node", "heartbeats_per_node")
RELAY_CONNECTIONS = RateLimit("relay-connections-per-node", "relay_connections_per_node")
WEIGHTS = RateLimit("weights-per-wallet", "weights_per_wallet")
WEIGHT_FILES = RateLimit("weight-files-per-wallet", "weight_files_per_wallet", exact=False)
PROBES = RateLimit("probes-per-address", "probes_per_ip")
BODIES = RateLimit("bodies-per-address", "bodies_per_ip", exact=False)
READS = RateLimit("reads-per-address", "reads_per_ip", exact=False)
REQUESTS_OF_ADDRESS = RateLimit("requests-per-address", "requests_per_ip", exact=False, told=False)
REQUESTS_OF_WALLET = RateLimit("requests-per-wallet", "requests_per_wallet", exact=False)


async def count_generations(services: Services, caller: Principal, number: int = 1) -> None:
    """Count generations that are asked for: of the API key, if one asks, and of the wallet.

    Raises:
        RateLimited: as :meth:`RateLimit.count`.
    """
    if caller.key_id is not None:
        rule = generations_of_key(services, caller)
        await GENERATIONS_OF_KEY.count(services, caller.key_id, rule, requests=number)
    await GENERATIONS_OF_WALLET.count(services, caller.wallet, requests=number)


def generations_of_key(services: Services, caller: Principal) -> RateLimitItem:
    """How many generations an API key may ask for: its own limit, or the one of all keys."""
    if caller.generations_per_minute is not None:
        return RateLimitItemPerMinute(caller.generations_per_minute)
    return GENERATIONS_OF_KEY.rule(services)


def address_of(request: Request, services: Services) -> str:
    """The caller's address in its one spelling, or :data:`UNKNOWN`."""
    return str(caller_address.address_of(request, services.settings.limits) or UNKNOWN)
