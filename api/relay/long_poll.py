"""One request of a node that polls, since WebSockets do not get through to it."""

from collections.abc import Awaitable, Callable, Sequence

from api.relay.hub import RelayHub, message_count, next_count
from market.nodes.node import NodeIncarnation
from mesh import relay
from mesh.errors import WireError
from mesh.keepalive import POLLING_KEEPALIVE_TTL
from mesh.relay import (
    Frame,
    Hello,
    InboxDelivery,
    KeepAlive,
    KeepAliveAck,
    Poll,
    Push,
    Superseded,
)


async def exchange(
    hub: RelayHub, node: NodeIncarnation, body: bytearray, admit: Callable[[], Awaitable[object]]
) -> bytes:
    """The body that answers a node's body, each a bundle of frames.

    ``admit`` is called when the node says hello, and raises if its token is not good any more.

    Raises:
        WireError: the body is not such a bundle.
    """
    frames = [relay.decode(frame) for frame in relay.unbundle(body)]
    if not frames:
        raise WireError("A body has a frame at least.")
    node_id = node.node_id
    first, *others = frames
    await hub.throttle.acquire(node_id, sum(map(message_count, frames)), len(body))
    if isinstance(first, Hello) and not others:
        await admit()
        return _bundled([await hub.hello(node, first) or Superseded()])
    if not isinstance(first, Poll):
        raise WireError("The first frame of a body is a poll, or says hello.")
    answers: list[Frame] = []
    if not await hub.owns(node_id, first.connection):
        return _bundled([Superseded()])
    for frame in others:
        if isinstance(frame, Push):
            answers.append(await hub.forward(node_id, first.session, frame))
        elif isinstance(frame, KeepAlive):
            if not await hub.keep_alive(node_id, first.connection, frame, POLLING_KEEPALIVE_TTL):
                return _bundled([Superseded()])
            answers.append(KeepAliveAck(frame.number))
        else:
            raise WireError(f"A node does not send {type(frame).__name__}.")
    wait = min(first.wait / 1000, relay.POLL_WAIT)
    if wait > 0:
        answers += await _read_inbox(hub, node_id, first.after or "0-0", wait)
        if not await hub.owns(node_id, first.connection):  # any more
            return _bundled([Superseded()])
    return _bundled(answers)


async def _read_inbox(
    hub: RelayHub, node_id: str, after: str, wait: float
) -> Sequence[InboxDelivery]:
    """One delivery, if there is any: the next poll's cursor brings the rest."""
    async with hub.blocking_connection() as redis:
        found = await hub.read_inbox(redis, node_id, after, wait, count=1)
        count = next_count(found)
        if not found or count == 1:
            return found
        return (await hub.read_inbox(redis, node_id, after, wait, count=count))[:1]


def _bundled(frames: Sequence[Frame]) -> bytes:
    return relay.bundle(map(relay.encode, frames))
