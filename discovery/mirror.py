"""The registry follows the DHT: one pass reads what the DHT says of every model."""

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
    SIGNPOST_KEY,
    SIGNPOST_SUBKEY,
    Announcement,
    PlatformEndpoints,
    read_announcement,
    sign_endpoints,
    spans_key,
)
from mesh.dht.signing_keys import SigningKey
from mesh.errors import RecordRefused

SIGNPOST_TTL = 300.0
"""Seconds for which the platform's URL stands in the DHT after the last pass of any mirror."""

PEERS_TTL = 60.0
"""Seconds for which our own addresses are handed out after the last pass."""

log = structlog.get_logger()


class DhtPeer(Protocol):
    """What is needed of `mesh.dht.peer.Peer`."""

    @property
    def known(self) -> int: ...

    async def addresses(self) -> list[str]: ...

    async def store(self, key: str, subkey: str, record: bytes, expires: float) -> int: ...

    async def read(self, key: str) -> dict[str, bytes]: ...


@dataclass(frozen=True, slots=True)
class Mirror:
    """From one peer into one Redis. Several may run: they write the same."""

    peer: DhtPeer
    operator: SigningKey
    redis: Redis
    sessions: db.Sessions
    discovery: DiscoverySettings
    model_ids: Sequence[str]
    url: str
    """Of the platform."""

    async def once(self) -> None:
        """One pass. An error of Redis, Postgres or the DHT ends it; the next does it all again."""
        await directory.note_peers(self.redis, await self.peer.addresses(), ttl=PEERS_TTL)
        await self._put_up_signpost()
        for model_id in self.model_ids:
            told = self._read(model_id, await self.peer.read(spans_key(model_id)))
            await directory.write(self.redis, model_id, told)
            metrics.dht_records.labels(model_id).set(len(told))
            back = await restore(self.redis, self.sessions, self.discovery, told)
            if back:
                metrics.dht_restored.labels(model_id).inc(len(back))
                log.info("nodes_restored", model_id=model_id, node_ids=back)
        metrics.dht_peers.set(self.peer.known)
        metrics.dht_mirrored.set_to_current_time()

    async def _put_up_signpost(self) -> None:
        expires = time.time() + SIGNPOST_TTL
        record = sign_endpoints(self.operator, PlatformEndpoints([self.url], expires))
        await self.peer.store(SIGNPOST_KEY, SIGNPOST_SUBKEY, record, expires)

    def _read(self, model_id: str, records: dict[str, bytes]) -> list[Announcement]:
        told = []
        for node_id, record in records.items():
            try:
                told.append(read_announcement(record, self.operator.public))
            except RecordRefused as error:
                # The peer checks what it stores and finds; only a fault of ours comes this far.
                metrics.dht_refused.labels(error.reason).inc()
                log.error("record_refused", model_id=model_id, node_id=node_id, reason=error.reason)
        return told
