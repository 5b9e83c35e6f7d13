"""Who is alive: each node's last heartbeat, in Redis, gone after its time to live.

Rebuilt by the next heartbeats if Redis is lost; what must not be lost (wallets, spans) is in
Postgres.
"""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_type_hints

from redis.asyncio import Redis

from mesh import names
from mesh.distance import Coordinates


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the routes see it. Latency in milliseconds a step, throughput in tokens/s, and the
    positions that its whole KV cache has room for (0: it does not say).

    ``quantization``: what its layers' weights are kept in. ``memory_bytes``: its room for weights
    and KV (0: unknown). ``load_bytes_per_second``: how fast it loads weights (0: not measured).
    ``placeable``: whether the platform chooses its span.
    ``hop_ms``: milliseconds that a message takes to it and back, beside its step (0: not measured).
    ``latitude``, ``longitude``: degrees north and east; none where they are not known.
    """

    node_id: str
    wallet_address: str
    model_id: str
    start_layer: int
    end_layer: int
    edge: bool
    trusted: bool
    gpu_model: str
    vram_gb: int
    location: str
    public_addr: str
    is_healthy: bool
    latency_ms: float
    throughput_tokens_per_sec: float
    current_requests: int
    kv_positions: int
    last_seen: float
    hop_ms: float = 0.0
    latitude: float | None = None
    longitude: float | None = None
    quantization: str = "none"
    memory_bytes: int = 0
    load_bytes_per_second: float = 0.0
    placeable: bool = False

    @property
    def place(self) -> Coordinates | None:
        """Where it is, if that is known."""
        if self.latitude is None or self.longitude is None:
            return None
        return Coordinates(self.latitude, self.longitude)

    def could_hold(self, positions: int) -> bool:
        """Whether a generation of so many positions fits, once nothing else is there."""
        return not self.kv_positions or self.kv_positions >= positions

    @property
    def layers_served(self) -> list[int]:
        return list(range(self.start_layer, self.end_layer))


_TYPES = get_type_hints(Node)

PULSE_INTERVAL = 0.15
"""Seconds between two pulses of a node."""

PULSE_TTL = 0.5
"""Seconds of silence after which a node counts as dead: three pulses."""


async def announce(redis: Redis, node: Node, *, ttl: float) -> None:
    """Record a heartbeat; the node is off the routes ``ttl`` seconds after its last one."""
    record = {name: _to_text(value) for name, value in asdict(node).items()}
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hset(names.node(node.node_id), mapping=record)
        pipe.pexpire(names.node(node.node_id), round(ttl * 1000))
        pipe.sadd(names.model_nodes(node.model_id), node.node_id)
        await pipe.execute()


async def move(redis: Redis, node_id: str, span: tuple[int, int], *, edge: bool) -> None:
    """Let routes count on another span of a node from now on, if it is on them at all."""
    start, end = span
    await redis.eval(  # type: ignore[misc]
        _MOVE, 1, names.node(node_id), str(start), str(end), str(int(edge))
    )


_MOVE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'start_layer', ARGV[1], 'end_layer', ARGV[2], 'edge', ARGV[3],
           'latency_ms', '0.0')
return 1
"""
"""The latency that was measured is that of the span before."""


async def forget(redis: Redis, node_id: str, model_id: str) -> None:
    """Take a node off the routes now; its next heartbeat, if there is one, puts it back."""
    await redis.delete(names.node(node_id))
    await redis.srem(names.model_nodes(model_id), node_id)  # type: ignore[misc]


async def cool_down(redis: Redis, node_id: str, *, seconds: float) -> None:
    """Give a node that failed no new generation for a while."""
    await redis.set(names.cooldown(node_id), 1, px=max(1, round(seconds * 1000)))


async def rooms(redis: Redis, node_ids: Sequence[str]) -> dict[str, int]:
    """Positions that each node has KV room for; nodes whose process does not run are missing.
    Unlike a heartbeat, a pulse tells of a death within a second."""
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.get(names.pulse(node_id))
        answers = await pipe.execute()
    return {
        node_id: int(room)
        for node_id, room in zip(node_ids, answers, strict=True)
        if room is not None
    }


_RESERVE = """
local room = tonumber(redis.call('GET', KEYS[1]) or '-1')
if room < tonumber(ARGV[1]) then return 0 end
redis.call('DECRBY', KEYS[1], ARGV[1])
return 1
"""


async def reserve(redis: Redis, node_ids: Sequence[str], positions: int) -> bool:
    """Take KV room on each node, so that nobody else counts on it; false if one has none left.

    Holds until the node's next pulse, which mostly knows by then what it was asked to open; what
    slips through, the node refuses. So nobody has anything to give back: not a supervisor that
    dies, nor one that got room on some nodes only.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.eval(_RESERVE, 1, names.pulse(node_id), str(positions))
        return all(await pipe.execute())


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node that was heard of within its time to live. ``cools``: it failed a generation a moment
    ago."""

    node: Node
    cools: bool

    @property
    def serves(self) -> bool:
        """Whether routes may count on it."""
        return self.node.is_healthy and not self.cools


async def active(redis: Redis, model_id: str) -> list[Node]:
    """Healthy nodes of a model, without those that cool down."""
    return [seen.node for seen in await sighted(redis, model_id) if seen.serves]


async def alive(redis: Redis, model_id: str) -> list[Node]:
    """Healthy nodes of a model, also those that cool down."""
    return [seen.node for seen in await sighted(redis, model_id) if seen.node.is_healthy]


async def sighted(redis: Redis, model_id: str) -> list[Sighting]:
    """All nodes of a model that were heard of. Drops the expired from the index."""
    ids = sorted(m.decode() for m in await redis.smembers(names.model_nodes(model_id)))  # type: ignore[misc]
    if not ids:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in ids:
            pipe.hgetall(names.node(node_id))
        for node_id in ids:
            pipe.exists(names.cooldown(node_id))
        answers = await pipe.execute()
    records, cooling = answers[: len(ids)], answers[len(ids) :]
    expired = [node_id for node_id, record in zip(ids, records, strict=True) if not record]
    if expired:
        await redis.srem(names.model_nodes(model_id), *expired)  # type: ignore[misc]
    nodes = [_from_record(record) if record else None for record in records]
    return [
        Sighting(node, bool(cools))
        for node, cools in zip(nodes, cooling, strict=True)
        if node is not None
    ]


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _from_record(record: dict[bytes, bytes]) -> Node | None:
    """The node; none if another version of the mesh wrote the record, and left out what there is
    no default for."""
    values: dict[str, Any] = {}
    for field in fields(Node):
        written = record.get(field.name.encode())
        if written is not None:
            values[field.name] = _from_text(written.decode(), _TYPES[field.name])
        elif field.default is MISSING:
            return None
    return Node(**values)


def _from_text(text: str, kind: Any) -> Any:
    if kind is bool:
        return text == "1"
    if kind == float | None:
        return float(text) if text else None
    return kind(text)
