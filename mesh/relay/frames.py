"""What a node and the relay say to each other, over a WebSocket or in the bodies of long polls.

A frame is one msgpack array: its kind's number, then its fields. The messages in it stay as
:mod:`mesh.wire` encodes them, so that the relay hands hidden states on without reading them.

Delivery contract. *Down*: the node reads its inbox by cursor and says, in each keep-alive, up to
where it has read; nothing is trimmed before that, so a lost connection loses nothing. *Up*: pushes
are numbered within a session (one process of a node). The relay remembers in Redis the last one
that it has forwarded, and says so in :class:`Welcome`; the node sends again only what came after.
Only if the relay dies between forwarding and remembering does a push arrive twice, which positions
make harmless.
"""

from dataclasses import dataclass
from typing import NamedTuple

from mesh.wire.limits import MAX_NODE_HEADER_BYTES, MAX_TENSOR_BYTES

VERSION = 1

WEBSOCKET_PATH = "/api/relay"


EXCHANGE_PATH = "/api/relay/exchange"

MAX_FRAME_BYTES = MAX_TENSOR_BYTES + 2 * MAX_NODE_HEADER_BYTES
"""The largest message of hidden states and its header, with room for the frame's own fields."""

CHUNK_BYTES = 2**17
"""Longer frames travel in pieces on a WebSocket, between which keep-alives and their answers
get through, and each of which shows that the other side lives."""

MAX_MESSAGE_BYTES = CHUNK_BYTES + 64
"""Of one WebSocket message: a piece and its header."""

WINDOW_BYTES = 2**26
"""What a node has been sent and has not taken in yet; then the relay waits. Its connection is
always read, so that keep-alives and answers never wait behind work."""

MAX_ITEMS = 1024
"""Messages of one frame, and frames of one body."""

MAX_TEXT = 128
"""Characters of an id, a cursor, a code: none of :mod:`mesh.wire.limits` is longer."""

POLL_WAIT = 1.0
"""Seconds that a long poll waits for work at most."""

GOODBYE = 1000
"""WebSocket close code, registered: the node ends in order."""

GOING_AWAY = 1001
"""WebSocket close code, registered: the node comes back, to this replica or another."""

SUPERSEDED = 4001
"""WebSocket close code: another process has connected as this node, or its machine's token was
taken back. It should not come back at once."""

PROTOCOL_ERROR = 4002
"""WebSocket close code: a frame breaks the protocol."""

TRY_AGAIN_LATER = 1013
"""WebSocket close code, registered: the relay cannot serve now."""


class OutgoingMessage(NamedTuple):
    """A message on its way up. ``to``: the node whose inbox it is for; empty for tokens and events,
    whose stream follows from the message. ``header`` and ``tensor`` as in :mod:`mesh.wire`."""

    to: str
    header: bytes
    tensor: bytes


class InboxEntry(NamedTuple):
    """A message on its way down."""

    header: bytes
    tensor: bytes


class Refusal(NamedTuple):
    """What the relay did not forward, and why; ``request_id`` is empty if it could not be read."""

    request_id: str
    epoch: int
    code: str


@dataclass(frozen=True, slots=True)
class Hello:
    """Node: first frame. ``session`` is a random name for the process; ``after`` the cursor to read
    on from, or empty for what comes from now on."""

    version: int
    session: str
    after: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """Relay: this connection's name, the last push of the session that was forwarded (0: none),
    and the cursor that the inbox is read from."""

    connection: str
    number: int
    after: str


@dataclass(frozen=True, slots=True)
class Push:
    """Node: messages, to be forwarded together. Numbers grow by one, from 1."""

    number: int
    messages: list[OutgoingMessage]


@dataclass(frozen=True, slots=True)
class PushAck:
    """Relay: the push of that number has been forwarded, but for what was refused."""

    number: int
    refused: list[Refusal]


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Node: its process runs, its KV cache has ``free_kv`` free positions, and it has read its
    inbox up to ``after``."""

    number: int
    free_kv: int
    after: str


@dataclass(frozen=True, slots=True)
class KeepAliveAck:
    """Relay: the keep-alive of that number is recorded. The time between the two is what a message
    takes to the relay and back."""

    number: int


@dataclass(frozen=True, slots=True)
class InboxDelivery:
    """Relay: what came for the node; it reads on after ``after``."""

    after: str
    entries: list[InboxEntry]


@dataclass(frozen=True, slots=True)
class Poll:
    """Node, over HTTP: first frame of each body but the one that says hello. The relay waits up to
    ``wait`` milliseconds for what comes after the cursor; with 0 it does not read the inbox."""

    connection: str
    session: str
    after: str
    wait: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """Relay, over HTTP: what :data:`SUPERSEDED` is on a WebSocket."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Either, on a WebSocket: a piece of a frame, of which ``rest`` bytes are still to come."""

    rest: int
    data: bytes


Frame = (
    Hello
    | Welcome
    | Push
    | PushAck
    | KeepAlive
    | KeepAliveAck
    | InboxDelivery
    | Poll
    | Superseded
    | Chunk
)
