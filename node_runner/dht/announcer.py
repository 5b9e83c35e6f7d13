"""Keeps the node's announcement in the DHT fresh, in a thread beside the serving."""

import threading
import time
from dataclasses import asdict, dataclass

import structlog

from mesh.dht.records import Announcement
from mesh.dht.signing_keys import SigningKey
from mesh.node_api import Heartbeat, Span
from node_runner import metrics
from node_runner.dht.peer_client import DhtEndpoint, DhtUnavailable, PeerClient

TTL = 120.0
"""Seconds for which an announcement counts: as long as a heartbeat, four intervals."""

INTERVAL = 30.0
"""Seconds between two announcements."""

RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before another try while the DHT cannot be reached; the last repeats."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeCredential:
    """Which node announces, with which key, and the platform's credential (hex) for that key."""

    node_id: str
    registration: int
    model_id: str
    key: SigningKey
    credential: str


class Announcer:
    """Announces the node in the DHT until closed. A failure is logged and tried again: nothing
    waits for it."""

    def __init__(
        self,
        endpoint: DhtEndpoint,
        credential: NodeCredential,
        span: Span,
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._credential = credential
        self._interval = interval
        self._peer = PeerClient(endpoint)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self.span = span
        """The span that routes use, for the next announcement."""
        self.heartbeat = Heartbeat()
        """The last heartbeat, for the next announcement."""

    @property
    def peer_pid(self) -> int | None:
        """The process that holds the DHT's peer, while there is one."""
        return self._peer.pid

    def start(self) -> None:
        """Announce now, and then at the interval."""
        self._thread.start()

    def close(self) -> None:
        """Stop announcing: the announcement expires."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                stored = self._announce()
            except DhtUnavailable as error:
                stored, reason = 0, str(error)
            else:
                reason = "No peer took the announcement."
            if stored:
                failures, delay = 0, self._interval
                log.debug("announced", peers=stored)
            else:
                delay = RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)]
                failures += 1
                log.warning("announcing_failed", reason=reason, retry_in=delay)
            metrics.announcements.labels("stored" if stored else "failed").inc()
            self._stop.wait(delay)
        self._peer.close()

    def _announce(self) -> int:
        node, heartbeat = self._credential, self.heartbeat
        start, end = self.span
        announcement = Announcement(
            node_id=node.node_id,
            registration=node.registration,
            model_id=node.model_id,
            start_layer=start,
            end_layer=end,
            latency_ms=float(heartbeat.latency_ms),
            throughput_tokens_per_sec=float(heartbeat.throughput_tokens_per_sec),
            current_requests=heartbeat.current_requests,
            kv_positions=heartbeat.kv_positions,
            expires=time.time() + TTL,
        )
        command = {
            "do": "announce",
            "key": node.key.seed,
            "credential": node.credential,
            "announcement": asdict(announcement),
        }
        return int(self._peer.ask(command)["stored"])
