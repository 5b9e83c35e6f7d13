"""From the DHT into Redis: one pass reads the announcements of every model's nodes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from redis.asyncio import Redis

from discovery import metrics
from discovery.restore import restore
from market import db
from market.dht import directory
from market.settings.discovery import DiscoverySettings
from mesh.dht.records import (
    ENDPOINTS_KEY,
    ENDPOINTS_SUBKEY,
    Announcement,
    PlatformEndpoints,
    announcements_key,
    read_announcement,
    sign_endpoints,
)
from mesh.dht.signing_keys import SigningKey
from mesh.errors import RecordRefused

ENDPOINTS_TTL = 300.0
"""Seconds for which the platform's URL stands in the DHT after the last pass of any mirror."""

PEERS_TTL = 60.0
"""Seconds for which our own addresses are handed out after the last pass."""

log = structlog.get_logger()


class DhtPeer(Protocol):
    """What is needed of `mesh.dht.peer.Peer`."""

    @property
    def known_peers(self) -> int: ...

    async def addresses(self) -> list[str]: ...

    async def store(self, key: str, subkey: str, record: bytes, expires: float) -> int: ...

    async def read(self, key: str) -> dict[str, bytes]: ...


@dataclass(frozen=True, slots=True)
class Mirror:
    """Copies from one peer into one Redis. Several may run: each writes what all would."""

    peer: DhtPeer
    operator: SigningKey
    redis: Redis
    sessions: db.Sessions
    discovery: DiscoverySettings
    model_ids: Sequence[str]
    url: str
    """Of the platform."""

    async def run_once(self) -> None:
        """One pass. An error of Redis, Postgres or the DHT ends it; the next does it all again."""
        await directory.record_peers(self.redis, await self.peer.addresses(), ttl=PEERS_TTL)
        await self._publish_endpoints()
        for model_id in self.model_ids:
            announcements = self._read(model_id, await self.peer.read(announcements_key(model_id)))
            await directory.write_announcements(self.redis, model_id, announcements)
            metrics.dht_records.labels(model_id).set(len(announcements))
            restored = await restore(self.redis, self.sessions, self.discovery, announcements)
            if restored:
                metrics.dht_restored.labels(model_id).inc(len(restored))
                log.info("nodes_restored", model_id=model_id, node_ids=restored)
        metrics.dht_peers.set(self.peer.known_peers)
        metrics.dht_mirrored.set_to_current_time()

    async def _publish_endpoints(self) -> None:
        expires = time.time() + ENDPOINTS_TTL
        record = sign_endpoints(self.operator, PlatformEndpoints([self.url], expires))
        await self.peer.store(ENDPOINTS_KEY, ENDPOINTS_SUBKEY, record, expires)

    def _read(self, model_id: str, records: dict[str, bytes]) -> list[Announcement]:
        announcements = []
        for node_id, record in records.items():
            try:
                announcements.append(read_announcement(record, self.operator.public))
            except RecordRefused as error:
                # The peer checks what it stores and finds; only a fault of ours comes this far.
                metrics.dht_refused.labels(error.reason).inc()
                log.error("record_refused", model_id=model_id, node_id=node_id, reason=error.reason)
        return announcements
