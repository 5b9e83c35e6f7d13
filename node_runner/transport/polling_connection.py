"""The relay connection over HTTP long polls."""

import threading
from collections.abc import Callable

import httpx

from mesh import relay
from mesh.errors import WireError
from mesh.relay import Frame, Hello, Poll, Superseded, Welcome
from node_runner.http_client import open_client
from node_runner.transport.relay_connection import (
    ANSWER_TIMEOUT,
    EXCHANGE_TIMEOUT,
    ConnectionLost,
    ConnectionSuperseded,
    OnFrame,
)
from node_runner.transport.websocket_connection import OPEN_TIMEOUT


class PollingConnection:
    """The relay connection over HTTP long polls: one request waits for work, others beside it carry
    outputs.

    Args:
        url: Of the platform.
        token: The node's.
        hello: What to begin with.
        on_frame: Called with each frame, by whoever listens or sends.
        cursor: Gives the inbox entry to read on from, once more may be taken in.

    Raises:
        ConnectionLost: the relay cannot be reached, or refuses.
    """

    kind = "long poll"

    def __init__(
        self, url: str, token: str, hello: Hello, on_frame: OnFrame, cursor: Callable[[], str]
    ) -> None:
        self._on_frame = on_frame
        self._cursor = cursor
        self._session = hello.session
        self._closed = threading.Event()
        self._http = open_client(
            url,
            silence=ANSWER_TIMEOUT,
            total=EXCHANGE_TIMEOUT,
            connect=OPEN_TIMEOUT,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/msgpack"},
        )
        try:
            [frame] = self._post(relay.encode(hello))
            if not isinstance(frame, Welcome):
                raise ConnectionLost("No welcome.")
        except (ConnectionLost, ValueError) as error:
            self._http.close()
            raise ConnectionLost(str(error)) from error
        self.welcome = frame

    def send(self, frame: bytes) -> None:
        for answer in self._post(self._poll("", 0), frame):
            self._on_frame(answer)

    def listen(self) -> None:
        try:
            while not self._closed.is_set():
                wait = round(1000 * relay.POLL_WAIT)
                for answer in self._post(self._poll(self._cursor(), wait)):
                    self._on_frame(answer)
        finally:
            self._http.close()
        raise ConnectionLost("The polling was ended.")

    def abort(self) -> None:
        self._closed.set()

    def say_goodbye(self) -> None:
        self._closed.set()

    def _poll(self, after: str, wait: int) -> bytes:
        return relay.encode(Poll(self.welcome.connection, self._session, after, wait))

    def _post(self, *frames: bytes) -> list[Frame]:
        try:
            answer = self._http.post(relay.EXCHANGE_PATH, content=relay.bundle(frames))
            if answer.is_error:
                raise ConnectionLost(f"The relay answers with HTTP {answer.status_code}.")
            found = [relay.decode(frame) for frame in relay.unbundle(answer.content)]
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            raise ConnectionLost(
                f"The relay does not answer: {str(error) or type(error).__name__}"
            ) from error
        except WireError as error:
            raise ConnectionLost(error.detail) from error
        if any(isinstance(frame, Superseded) for frame in found):
            raise ConnectionSuperseded()
        return found
