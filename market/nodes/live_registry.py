"""Who is alive: each node's last heartbeat, in Redis, gone after its time to live.

Rebuilt by the next heartbeats if Redis is lost; what must not be lost (wallets, spans) is in
Postgres.

A node has one record, whoever says to be it. Each registration of a node counts up, and whoever
registered last is the node: a record is never overwritten, kept alive or removed in the name of an
earlier registration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from typing import Any, Literal, get_type_hints

from redis.asyncio import Redis

from market.geo.distance import Coordinates
from mesh import redis_keys

Located = Literal["geoip", "declared", "unknown"]
"""How it is known where a node is: by the address that it registered from, by its own word, or not
at all."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the routes see it. Latency in milliseconds a step, throughput in tokens/s, and the
    positions that its whole KV cache has room for (0: it does not say).

    ``hop_ms``: milliseconds that a message takes to it and back, beside its step (0: not measured).
    ``latitude``, ``longitude``: degrees north and east; none where they are not known.
    ``registration``: how often it has registered; see the module. ``memory_bytes``: room for
    weights and KV (0: it does not say). ``load_bytes_per_second``: weights, as it loaded its span
    (0: not measured). ``min_price``: FAR a token of the model, for less than which it does not
    serve. ``max_sessions``: generations that it takes at once (0: no limit but its memory).
    ``placeable``: whether the platform chooses its span.
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
    located: Located = "unknown"
    registration: int = 0
    quantization: str = "none"
    memory_bytes: int = 0
    load_bytes_per_second: float = 0.0
    gpu_utilization_percent: float = 0.0
    vram_used_gb: float = 0.0
    min_price: Decimal | None = None
    max_sessions: int = 0
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


_FIELDS = fields(Node)
_NAMES = [field.name for field in _FIELDS]


@dataclass(frozen=True, slots=True)
class Registration:
    """A node, and which of its registrations speaks: only the last one counts."""

    node_id: str
    number: int


_TYPES = get_type_hints(Node)

PULSE_INTERVAL = 0.15
"""Seconds between two pulses of a node."""

PULSE_TTL = 0.5
"""Seconds of silence after which a node counts as dead: three pulses."""

UNSAVED_TTL = 7 * 24 * 3600
"""Seconds for which the uptime of a node that died is kept, until it comes back."""


_ANNOUNCE = """
local known = redis.call('HGET', KEYS[1], 'registration')
if known and tonumber(known) > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""


async def announce(redis: Redis, node: Node, *, ttl: float) -> bool:
    """Put a node on the routes, where it is for ``ttl`` seconds after this or its last beat.

    False, and nothing is done: it has registered again since.
    """
    record = [part for name in _NAMES for part in (name, _to_text(getattr(node, name)))]
    milliseconds = round(ttl * 1000)
    written: int = await redis.eval(  # type: ignore[misc]
        _ANNOUNCE,
        1,
        redis_keys.node(node.node_id),
        str(node.registration),
        str(milliseconds),
        *record,
    )
    if written:
        await redis.sadd(redis_keys.model_nodes(node.model_id), node.node_id)  # type: ignore[misc]
    return bool(written)


@dataclass(frozen=True, slots=True)
class Beat:
    """What the registry says to a heartbeat.

    ``state``: ``kept``; ``unknown``, if there is no record to keep alive; ``superseded``, if the
    node has registered again since. ``uptime``: seconds heard that are not in Postgres yet.
    """

    state: Literal["kept", "unknown", "superseded"]
    uptime: float = 0.0
    wallet_address: str = ""
    model_id: str = ""
    trusted: bool = False


# Whole milliseconds, for INCRBY: in Redis 6.2, INCRBYFLOAT in a script corrupts its memory, as it
# shrinks the arguments' array that scripts share.
_BEAT = """
local known = redis.call(
    'HMGET', KEYS[1], 'registration', 'last_seen', 'wallet_address', 'model_id', 'trusted')
local mine = tonumber(ARGV[1])
if not known[1] or tonumber(known[1]) < mine then return {'unknown', '0', '', '', '0'} end
if tonumber(known[1]) > mine then return {'superseded', '0', '', '', '0'} end
local heard = math.max(0, tonumber(ARGV[2]) - tonumber(known[2]))
redis.call('HSET', KEYS[1], 'last_seen', ARGV[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local uptime = redis.call('INCRBY', KEYS[2], math.floor(1000 * heard + 0.5))
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'kept', uptime, known[3], known[4], known[5]}
"""


async def beat(
    redis: Redis,
    node_id: str,
    registration: int,
    measured: Mapping[str, Any],
    *,
    now: float,
    ttl: float,
) -> Beat:
    """Keep a node on the routes with what it has measured: one round trip.

    Its record is there only if the last beat is no longer than the TTL ago, so the time since then
    counts as uptime.

    Args:
        measured: Fields of :class:`Node`.
        now: Seconds since 1970.
    """
    changes = [part for name, value in measured.items() for part in (name, _to_text(value))]
    milliseconds = round(ttl * 1000)
    state, uptime, wallet, model_id, trusted = await redis.eval(  # type: ignore[misc]
        _BEAT,
        2,
        redis_keys.node(node_id),
        redis_keys.unsaved_uptime(node_id),
        str(registration),
        str(now),
        str(milliseconds),
        str(UNSAVED_TTL),
        *changes,
    )
    return Beat(
        state=state.decode(),
        uptime=int(uptime) / 1000,
        wallet_address=wallet.decode(),
        model_id=model_id.decode(),
        trusted=trusted == b"1",
    )


async def unsaved_uptime(redis: Redis, node_id: str) -> float:
    """Seconds that a node was heard and that are not in Postgres yet."""
    return int(await redis.get(redis_keys.unsaved_uptime(node_id)) or 0) / 1000


async def uptime_saved(redis: Redis, node_id: str, seconds: float) -> None:
    """So many of them are in Postgres now."""
    await redis.decrby(redis_keys.unsaved_uptime(node_id), round(1000 * seconds))


_FORGET = """
local known = redis.call('HGET', KEYS[1], 'registration')
if known and tonumber(known) > tonumber(ARGV[1]) then return 0 end
return redis.call('DEL', KEYS[1])
"""


async def forget(redis: Redis, node_id: str, model_id: str, registration: int = 2**31) -> None:
    """Take a node off the routes now; its next heartbeat, if there is one, puts it back.

    Args:
        registration: Only if it has not registered again since.
    """
    removed = await redis.eval(_FORGET, 1, redis_keys.node(node_id), str(registration))  # type: ignore[misc]
    if removed:
        await redis.srem(redis_keys.model_nodes(model_id), node_id)  # type: ignore[misc]


_MOVE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'start_layer', ARGV[1], 'end_layer', ARGV[2], 'edge', ARGV[3],
           'latency_ms', '0.0')
return 1
"""


async def move(redis: Redis, node_id: str, span: tuple[int, int], *, edge: bool) -> None:
    """Let routes count on another span of a node from now on, if it is on them at all. The latency
    that was measured is that of the span before: it is forgotten."""
    start, end = span
    await redis.eval(  # type: ignore[misc]
        _MOVE, 1, redis_keys.node(node_id), str(start), str(end), str(int(edge))
    )


async def cool_down(redis: Redis, node_id: str, *, seconds: float) -> None:
    """Give a node that failed no new generation for a while."""
    await redis.set(redis_keys.cooldown(node_id), 1, px=max(1, round(seconds * 1000)))


async def rooms(redis: Redis, node_ids: Sequence[str]) -> dict[str, int]:
    """Positions that each node has KV room for; nodes whose process does not run are missing.
    Unlike a heartbeat, a pulse tells of a death within a second."""
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.get(redis_keys.pulse(node_id))
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
            pipe.eval(_RESERVE, 1, redis_keys.pulse(node_id), str(positions))
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


async def sight(redis: Redis, node_id: str) -> Sighting | None:
    """One node, if it was heard of within its time to live."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(redis_keys.node(node_id), _NAMES)
        pipe.exists(redis_keys.cooldown(node_id))
        record, cools = await pipe.execute()
    node = _from_record(record)
    return None if node is None else Sighting(node, bool(cools))


async def sighted(redis: Redis, model_id: str) -> list[Sighting]:
    """All nodes of a model that were heard of. Two round trips, however many."""
    ids = sorted(m.decode() for m in await redis.smembers(redis_keys.model_nodes(model_id)))  # type: ignore[misc]
    if not ids:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in ids:
            pipe.hmget(redis_keys.node(node_id), _NAMES)
        for node_id in ids:
            pipe.exists(redis_keys.cooldown(node_id))
        answers = await pipe.execute()
    found, gone = [], []
    for node_id, record, cools in zip(ids, answers, answers[len(ids) :], strict=False):
        node = _from_record(record)
        if not any(record) or (node is not None and node.model_id != model_id):
            gone.append(node_id)
        elif node is not None:
            found.append(Sighting(node, bool(cools)))
    if gone:
        await _drop(redis, model_id, gone)
    return found


async def _drop(redis: Redis, model_id: str, node_ids: Sequence[str]) -> None:
    """Take nodes out of a model's index; but not one that comes back at this very moment."""
    index = redis_keys.model_nodes(model_id)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.srem(index, *node_ids)
        for node_id in node_ids:
            pipe.hget(redis_keys.node(node_id), "model_id")
        _, *models = await pipe.execute()
    back = [
        node_id
        for node_id, model in zip(node_ids, models, strict=True)
        if model == model_id.encode()
    ]
    if back:
        await redis.sadd(index, *back)  # type: ignore[misc]


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


_READERS: dict[Any, Callable[[bytes], Any]] = {
    str: bytes.decode,
    int: int,
    float: float,
    bool: lambda text: text == b"1",
    float | None: lambda text: float(text) if text else None,
    Decimal | None: lambda text: Decimal(text.decode()) if text else None,
    Located: bytes.decode,
}
_READ = [_READERS[_TYPES[field.name]] for field in _FIELDS]
_DEFAULTS = [field.default for field in _FIELDS]


def _from_record(record: Sequence[bytes | None]) -> Node | None:
    """The node; none if another version of the mesh wrote the record, and left out what there is
    no default for."""
    values: list[Any] = [
        default if written is None else read(written)
        for written, read, default in zip(record, _READ, _DEFAULTS, strict=True)
    ]
    return None if MISSING in values else Node(*values)
