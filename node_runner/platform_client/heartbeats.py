"""Heartbeats in a thread, the last of which deregisters the node."""

import threading
from collections.abc import Callable
from dataclasses import asdict

import httpx
import structlog

from mesh.node_api import HEARTBEAT_PATH, Heartbeat, HeartbeatReply, RegistrationReply
from node_runner.platform_client.errors import (
    NodeNotRegistered,
    NodeSuperseded,
    PlatformError,
    PlatformRefused,
    PlatformUnreachable,
)
from node_runner.platform_client.http import request

log = structlog.get_logger()

TIMEOUT = 10.0
"""Seconds without a byte of an answer to a heartbeat."""

REPLY_FIELDS = ("should_rebalance", "start_layer", "end_layer")
"""Fields of every answer to a heartbeat."""


class Heartbeats:
    """Tells the platform how a node is: now, then at the platform's interval, until
    :meth:`deregister`.

    Args:
        http: A client of the platform.
        node: What the node's registration was answered.
        measure: Gives the figures of each heartbeat.
        on_reply: Gets each answer.
        on_end: Gets the reason if the platform does not know the node any more, or takes another
            process for it. No other failure ends the heartbeats.

    The three callbacks run in the thread of the heartbeats.
    """

    def __init__(
        self,
        http: httpx.Client,
        node: RegistrationReply,
        *,
        measure: Callable[[], Heartbeat],
        on_reply: Callable[[HeartbeatReply], None],
        on_end: Callable[[NodeNotRegistered | NodeSuperseded], None],
    ) -> None:
        self._http = http
        self._node = node
        self._measure = measure
        self._on_reply = on_reply
        self._on_end = on_end
        self._stop = threading.Event()
        self._due = threading.Event()
        self._sending = threading.Lock()  # the deregistration is the last that the platform hears
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeats without a word: others follow."""
        self._stop.set()
        self._due.set()
        with self._sending:  # the last is out, and none comes after what follows
            pass

    def send_soon(self) -> None:
        """Send the next heartbeat now instead of at the interval."""
        self._due.set()

    def deregister(self) -> None:
        """End the heartbeats with an unhealthy one, which takes the node off the routes at once."""
        self._stop.set()
        self._due.set()
        try:
            with self._sending:
                self._send(Heartbeat(is_healthy=False))
        except PlatformError as error:
            log.warning("deregistration_failed", reason=str(error))

    def join(self) -> None:
        """Wait for the end of the thread, at most as long as one answer may take."""
        if self._thread.is_alive():
            self._thread.join(timeout=TIMEOUT)

    def _run(self) -> None:
        wait = 0.0
        while True:
            self._due.wait(wait)
            self._due.clear()
            wait = self._node.heartbeat_interval_sec
            try:
                with self._sending:
                    if self._stop.is_set():
                        return
                    reply = self._send(self._measure())
                self._on_reply(reply)
            except (NodeNotRegistered, NodeSuperseded) as error:
                log.error("node_not_registered", reason=str(error))
                self._on_end(error)
                return
            except PlatformUnreachable as error:
                wait = min(wait, error.retry_delay())
                log.warning("heartbeat_failed", reason=str(error))
            except Exception as error:  # a thread that ended would take the node off for good
                log.error("heartbeat_failed", reason=f"{type(error).__name__}: {error}")

    def _send(self, heartbeat: Heartbeat) -> HeartbeatReply:
        node = self._node
        body = {"node_id": node.node_id, **asdict(heartbeat)}
        try:
            answer = request(
                self._http,
                "POST",
                HEARTBEAT_PATH,
                body,
                token=node.node_token,
                required=REPLY_FIELDS,
            )
        except PlatformRefused as error:
            if error.status in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
                raise NodeNotRegistered(str(error)) from error
            if error.status == httpx.codes.CONFLICT:
                raise NodeSuperseded(str(error)) from error
            raise
        return HeartbeatReply(**{name: answer[name] for name in REPLY_FIELDS})
