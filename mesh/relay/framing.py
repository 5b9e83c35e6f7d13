"""Frames cut into WebSocket messages, or bundled into HTTP bodies."""

from collections.abc import Iterable, Iterator, Sequence

import msgpack

from mesh.errors import WireError
from mesh.relay.codec import decode, encode, unpack
from mesh.relay.frames import (
    CHUNK_BYTES,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    MAX_TEXT,
    Chunk,
    Frame,
    OutgoingMessage,
)


def chunks(data: bytes) -> Iterator[bytes]:
    """An encoded frame as WebSocket messages."""
    if len(data) <= CHUNK_BYTES:
        yield data
        return
    for end in range(CHUNK_BYTES, len(data) + CHUNK_BYTES, CHUNK_BYTES):
        yield encode(Chunk(max(0, len(data) - end), data[end - CHUNK_BYTES : end]))


class Assembler:
    """WebSocket messages back to frames. Other frames may come between the pieces of one."""

    def __init__(self) -> None:
        self._pieces = bytearray()
        self._rest = 0

    @property
    def size(self) -> int:
        """Bytes that are here of a frame whose end is not."""
        return len(self._pieces)

    def add(self, message: bytes) -> Frame | None:
        """The frame that this message is, or completes; none if there is more to come.

        Raises:
            WireError: not a frame; or one that grows too large, or by less than a whole piece, or
                is not as long as its pieces say.
        """
        frame = decode(message)
        if not isinstance(frame, Chunk):
            return frame
        if frame.rest and len(frame.data) < CHUNK_BYTES:
            raise WireError("Only the last piece of a frame may be short.")
        if len(self._pieces) + len(frame.data) + frame.rest > MAX_FRAME_BYTES:
            raise WireError(f"A frame has {MAX_FRAME_BYTES} bytes at most.")
        if self._pieces and frame.rest != self._rest - len(frame.data):
            raise WireError("The pieces of a frame do not add up.")
        self._rest = frame.rest
        self._pieces += frame.data
        if frame.rest:
            return None
        whole, self._pieces = self._pieces, bytearray()
        frame = decode(whole)
        if isinstance(frame, Chunk):
            raise WireError("A piece of a frame is not a frame.")
        return frame


def bundle(frames: Iterable[bytes]) -> bytes:
    """Encoded frames as one body."""
    packed: bytes = msgpack.packb(list(frames))
    return packed


def unbundle(body: bytes | bytearray) -> list[bytes]:
    """The encoded frames of a body.

    Raises:
        WireError: too large, or not a bundle.
    """
    frames = unpack(body)
    if not all(type(frame) is bytes for frame in frames):
        raise WireError("A body is an array of frames.")
    return frames


def batches(messages: Sequence[OutgoingMessage]) -> list[list[OutgoingMessage]]:
    """The messages in their order, in as few lists as fit a frame each.

    Raises:
        WireError: one of them alone is too large for a frame.
    """
    lists: list[list[OutgoingMessage]] = []
    space = 0
    for message in messages:
        size = len(message.header) + len(message.tensor) + 2 * MAX_TEXT
        if size > MAX_FRAME_BYTES - MAX_TEXT:
            raise WireError(f"A message of {size} bytes is too large for the relay.")
        if not lists or size > space or len(lists[-1]) == MAX_ITEMS:
            lists.append([])
            space = MAX_FRAME_BYTES - MAX_TEXT
        lists[-1].append(message)
        space -= size
    return lists
