"""Control messages in Redis streams: events of generations, and inboxes of nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from market.clients.redis_client import block_ms
from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.wire.limits import INBOX_TTL

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """What was said of a generation, and who said it. ``sender``: the node, as the relay or its
    own transport has written it; or :data:`mesh.wire.PLATFORM`."""

    message: wire.ControlMessage
    sender: str


async def publish_event(
    redis: Redis, message: wire.ControlMessage, *, sender: str, ttl: int = INBOX_TTL
) -> None:
    """Append a message to the events of its generation, for its supervisor.

    Args:
        redis: Where the events are.
        message: What is said.
        sender: Who says it: see :class:`Event`.
        ttl: Seconds for which events that nobody adds to are kept.
    """
    key = redis_keys.events(message.request_id)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xadd(key, wire.encode(message) | {wire.SENDER: sender})  # type: ignore[arg-type]
        pipe.expire(key, ttl)
        await pipe.execute()


async def read_events(
    redis: Redis, request_id: str, after: str, *, wait: float
) -> tuple[str, Sequence[Event]]:
    """The ID to go on from, and the events after the ID ``after``; waits up to ``wait`` seconds if
    there are none yet."""
    answer = await redis.xread({redis_keys.events(request_id): after}, block=block_ms(wait))
    if not answer:
        return after, []
    entries = answer[0][1]
    return entries[-1][0].decode(), [event for _, fields in entries for event in _decode(fields)]


async def newest_events(redis: Redis, request_ids: Sequence[str]) -> list[str | None]:
    """ID of the newest event of each generation, none where there is none, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for request_id in request_ids:
            pipe.xrevrange(redis_keys.events(request_id), count=1)
        found = await pipe.execute()
    return [entries[0][0].decode() if entries else None for entries in found]


def _decode(fields: dict[bytes, bytes]) -> list[Event]:
    """An entry's event; nothing for what another version or a stranger wrote, which must not stop
    the reader, and nothing that nobody has signed for."""
    try:
        message, sender = wire.decode(fields), fields[wire.SENDER].decode()
    except WireError as error:
        log.warning("message_undecodable", code=error.code, reason=error.detail)
        return []
    except (KeyError, UnicodeDecodeError):
        log.warning("message_without_sender")
        return []
    return [] if isinstance(message, wire.Steps) else [Event(message, sender)]


async def send_to_inbox(
    redis: Redis, node_id: str, messages: Sequence[wire.Message], *, ttl: int
) -> None:
    """Append messages to a node's inbox. ``ttl``: seconds after which an inbox is gone that nobody
    adds to."""
    key = redis_keys.inbox(node_id)
    async with redis.pipeline(transaction=True) as pipe:
        for message in messages:
            pipe.xadd(key, wire.encode(message))  # type: ignore[arg-type]
        pipe.expire(key, ttl)
        await pipe.execute()
