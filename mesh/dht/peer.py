"""A peer of the DHT, by hivemind. Importing this imports torch.

Strangers may join as full peers: keep records, and answer for them. So a record is checked wherever
it is stored or read (`_RecordValidator`), reads ask several peers and add up what each of them has,
and the peers that we were given to start with (the operator's) are always among those that are
asked and stored at. A stranger can then leave records out of its own answers, and nothing else.

hivemind's own reads stop at the first answer that claims to be new enough, and cache it. A stranger
could answer with nothing, good for ever: `read` and `store` are therefore ours, over its calls.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import PeerID
from hivemind.utils import get_logger
from hivemind.utils.multiaddr import Multiaddr

from mesh.dht.records import (
    ENDPOINTS_KEY,
    ENDPOINTS_SUBKEY,
    MAX_RECORD_BYTES,
    announcements_key,
    read_announcement,
    read_endpoints,
)
from mesh.errors import RecordRefused

SEARCH_TIMEOUT = 5.0
"""Seconds that looking for the peers nearest to a key may take; what is found until then counts."""

CALL_TIMEOUT = 3.0
"""Seconds that one peer gets to answer."""

OPEN_TIMEOUT = 60.0
"""Seconds for hivemind's daemon to start, and for the first peers to answer."""

CLOSE_TIMEOUT = 10.0
"""Seconds for the daemon to stop."""

REPLICAS = 5
"""Nearest peers that get a record, beside those that we started with."""

MAX_RECORDS = 10_000
"""Records that are taken of one key: what an answer of hivemind's 4 MiB has room for."""

_NODE_OPTIONS = {
    # Every port that is open is one that somebody decided to open.
    "auto_nat": False,
    "nat_port_map": False,
    "use_relay": False,
    # See above: a cached answer would be believed over newer ones.
    "cache_locally": False,
    "cache_nearest": 0,
    "cache_on_store": False,
    # A clock that is off is only warned of: a record's expiry shows whether it is too far off.
    "strict": False,
    "wait_timeout": CALL_TIMEOUT,
}

T = TypeVar("T")


class Peer:
    """An open peer; `close` it."""

    def __init__(self, node: Any, first: Sequence[str], *, keeps: bool) -> None:
        self._node = node
        self._first = [PeerID.from_base58(Multiaddr(address)["p2p"]) for address in first]
        self._keeps = keeps

    @classmethod
    async def serve(
        cls,
        operator: bytes,
        *,
        port: int,
        identity: Path,
        host: str = "0.0.0.0",
        announced: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
        ask: Sequence[str] = (),
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> "Peer":
        """A full peer of the operator's: listens, keeps records and answers.

        ``announced``: multiaddresses to be known by, where ``host`` is not what others see.
        ``bootstrap``: peers of which at least one has to answer now. ``ask``: peers that are asked
        and stored at always, whether they answer yet or not; those of ``bootstrap`` if none are
        given. ``on_refused`` is called with the reason of each record that is refused.

        Raises:
            Exception: the port is in use, or an address is none (whatever hivemind raises).
        """
        kind = "ip6" if ":" in host else "ip4"
        node = await _open(
            operator,
            on_refused,
            bootstrap,
            host_maddrs=[f"/{kind}/{host}/tcp/{port}"],
            announce_maddrs=list(announced) or None,
            identity_path=str(identity),
            check_if_identity_free=False,
            ensure_bootstrap_success=False,
        )
        return cls(node, ask or bootstrap, keeps=True)

    @classmethod
    async def join(cls, operator: bytes, peers: Sequence[str]) -> "Peer":
        """A client: opens no port, keeps nothing, and is asked nothing.

        Raises:
            Exception: none of the peers answers, or an address is none (whatever hivemind raises).
        """
        node = await _open(operator, lambda _: None, peers, client_mode=True, no_listen=True)
        return cls(node, peers, keeps=False)

    @property
    def alive(self) -> bool:
        """Whether its daemon runs; if not, close it and open another."""
        return self._node.p2p._child.returncode is None

    @property
    def known_peers(self) -> int:
        """How many full peers it knows."""
        return len(self._node.protocol.routing_table.peer_id_to_uid)

    async def addresses(self) -> list[str]:
        """Multiaddresses to hand out."""
        async with asyncio.timeout(CALL_TIMEOUT):
            return [str(address) for address in await self._node.get_visible_maddrs()]

    async def store(self, key: str, subkey: str, record: bytes, expires: float) -> int:
        """Give a record to the peers that should keep it; how many have it then."""
        protocol, key_id = self._node.protocol, DHTID.generate(source=key)
        value = protocol.serializer.dumps(record)
        nearest = await self._nearest(key_id, REPLICAS)
        answers = await asyncio.gather(
            *(
                protocol.call_store(peer, [key_id], [value], [expires], subkeys=[subkey])
                for peer in {*self._first, *nearest}
            )
        )
        kept = self._keeps and protocol.storage.store(key_id, value, expires, subkey=subkey)
        return int(kept) + sum(bool(answer and answer[0]) for answer in answers)

    async def read(self, key: str) -> dict[str, bytes]:
        """Subkey to record, the newest of each that any peer has; none that has expired. Whose they
        are has been checked, but not what they are: read them with `mesh.dht.records`."""
        protocol, key_id = self._node.protocol, DHTID.generate(source=key)
        nearest = await self._nearest(key_id, protocol.bucket_size)
        answers = await asyncio.gather(
            *(protocol.call_find(peer, [key_id]) for peer in {*self._first, *nearest})
        )
        found: dict[str, tuple[float, bytes]] = {}
        _merge_newer(found, protocol.storage.get(key_id))
        for answer in answers:
            if answer:
                _merge_newer(found, answer[key_id][0])
        return {subkey: protocol.serializer.loads(value) for subkey, (_, value) in found.items()}

    async def close(self) -> None:
        """Stop the peer and its daemon."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._node.shutdown()
        except TimeoutError:
            daemon = self._node.p2p._child
            if daemon is not None and daemon.returncode is None:
                daemon.kill()

    async def _nearest(self, key_id: Any, count: int) -> list[Any]:
        search = self._node.find_nearest_nodes([key_id], k_nearest=count, exclude_self=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEARCH_TIMEOUT):
                return list((await search)[key_id].values())
        return []


class _RecordValidator(RecordValidatorBase):  # type: ignore[misc]
    """What hivemind asks of every record, before it is kept and after it is found."""

    def __init__(self, operator: bytes, on_refused: Callable[[str], None]) -> None:
        self._operator = operator
        self._on_refused = on_refused
        self._endpoints_id = _id(ENDPOINTS_KEY)

    def validate(self, record: DHTRecord) -> bool:
        try:
            self._check(record)
        except RecordRefused as error:
            self._on_refused(error.reason)
            return False
        return True

    def _check(self, record: DHTRecord) -> None:
        value, subkey = _unpacked(record.value, bytes), _unpacked(record.subkey, str)
        if record.key == self._endpoints_id:
            expires, own_subkey = (
                read_endpoints(value, self._operator).expires,
                ENDPOINTS_SUBKEY,
            )
        else:
            announcement = read_announcement(value, self._operator)
            expires, own_subkey = announcement.expires, announcement.node_id
            if record.key != _id(announcements_key(announcement.model_id)):
                raise RecordRefused("The record is another model's.", reason="key")
        if subkey != own_subkey:
            raise RecordRefused("The record belongs under another subkey.", reason="key")
        if record.expiration_time != expires:
            raise RecordRefused("The record says another end than its owner.", reason="expiry")


async def _open(
    operator: bytes, on_refused: Callable[[str], None], peers: Sequence[str], **options: Any
) -> Any:
    get_logger("hivemind").setLevel(logging.WARNING)
    async with asyncio.timeout(OPEN_TIMEOUT):
        return await DHTNode.create(
            initial_peers=list(peers) or None,
            record_validator=_RecordValidator(operator, on_refused),
            **(_NODE_OPTIONS | options),
        )


def _id(key: str) -> bytes:
    found: bytes = DHTID.generate(source=key).to_bytes()
    return found


def _unpacked(packed: bytes, kind: type[T]) -> T:
    if len(packed) > MAX_RECORD_BYTES + 8:
        raise RecordRefused("The record is too large.", reason="size")
    try:
        value = msgpack.unpackb(packed)
    except Exception:  # msgpack raises whatever its parsers raise on a stranger's bytes
        raise RecordRefused("The record is no msgpack.", reason="format") from None
    if not isinstance(value, kind):
        raise RecordRefused("The record is of another type.", reason="format")
    return value


def _merge_newer(found: dict[str, tuple[float, bytes]], stored: Any) -> None:
    """Take what one peer has, where it is newer."""
    if stored is None or not isinstance(stored.value, DictionaryDHTValue):
        return
    now = time.time()
    for subkey, (value, expires) in stored.value.items():
        newest = found[subkey][0] if subkey in found else now
        if expires > newest and (subkey in found or len(found) < MAX_RECORDS):
            found[subkey] = (expires, value)
