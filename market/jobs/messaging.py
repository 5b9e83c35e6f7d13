"""Session events and node inboxes."""

from collections.abc import Sequence

import structlog
from redis.asyncio import Redis

from market.jobs.live_session import block_ms
from mesh import redis_keys, wire
from mesh.errors import WireError

log = structlog.get_logger()


async def publish_event(redis: Redis, message: wire.ControlMessage, *, ttl: int = 3600) -> None:
    """Put a message among the events of its generation, which its supervisor reads."""
    key = redis_keys.events(message.request_id)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xadd(key, wire.encode(message))  # type: ignore[arg-type]
        pipe.expire(key, ttl)
        await pipe.execute()


async def read_events(
    redis: Redis, request_id: str, after: str, *, wait: float
) -> tuple[str, Sequence[wire.ControlMessage]]:
    """Events after an ID, waiting up to ``wait`` seconds; and the ID to go on from."""
    answer = await redis.xread({redis_keys.events(request_id): after}, block=block_ms(wait))
    if not answer:
        return after, []
    entries = answer[0][1]
    return entries[-1][0].decode(), [note for _, fields in entries for note in _note(fields)]


def _note(fields: dict[bytes, bytes]) -> list[wire.ControlMessage]:
    """The entry's message, or nothing: what another version or a stranger wrote stops nobody."""
    try:
        message = wire.decode(fields)
    except WireError as error:
        log.warning("message_refused", code=error.code, reason=error.detail)
        return []
    return [] if isinstance(message, wire.Steps) else [message]


async def send_to_inbox(
    redis: Redis, node_id: str, messages: Sequence[wire.Message], *, ttl: int
) -> None:
    """Put messages into a node's inbox. ``ttl``: seconds after which an unread inbox is gone."""
    key = redis_keys.inbox(node_id)
    async with redis.pipeline(transaction=True) as pipe:
        for message in messages:
            pipe.xadd(key, wire.encode(message))  # type: ignore[arg-type]
        pipe.expire(key, ttl)
        await pipe.execute()
