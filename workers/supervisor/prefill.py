"""How much of a prompt the nodes have computed, when a generation ends before its first token."""

import time
from contextlib import suppress

from market.jobs import messaging
from mesh.wire import Close, Ping
from workers.supervisor.errors import GenerationOver
from workers.supervisor.supervision import Supervision


async def stop(supervision: Supervision) -> None:
    """Let the nodes of the route end the generation, and say first how many positions they have:
    ``supervision.positions``. Those that do not answer in time are missing there."""
    settings = supervision.generation_settings
    for node_id in supervision.node_ids:
        await messaging.send_to_inbox(
            supervision.redis,
            node_id,
            [Ping(supervision.id, supervision.epoch), Close(supervision.id, supervision.epoch)],
            ttl=settings.stream_ttl,
        )
    before, supervision.positions = supervision.positions, {}
    give_up = time.monotonic() + settings.ping
    while not supervision.positions.keys() >= set(supervision.node_ids):
        wait = give_up - time.monotonic()
        if wait <= 0:
            break
        with suppress(GenerationOver):  # cancelled once more
            await supervision.read_events(min(wait, settings.ping / 4))
    for node_id, positions in before.items():
        supervision.positions[node_id] = max(supervision.positions.get(node_id, 0), positions)
