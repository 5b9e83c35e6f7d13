"""Keeps the node's announcement in the DHT, in a thread beside the serving."""

import threading
import time
from dataclasses import asdict, dataclass

import structlog

from mesh.dht.records import Announcement
from mesh.dht.signing_keys import SigningKey
from mesh.node_api import Heartbeat
from node_runner import metrics
from node_runner.dht.peer_client import DhtEndpoint, DhtUnavailable, PeerClient

TTL = 120.0
"""Seconds for which an announcement counts: as long as a heartbeat, and four of them."""

INTERVAL = 30.0
"""Seconds between two announcements."""

RETRIES = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before another try while the DHT cannot be reached; the last repeats."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeCredential:
    """Who announces, and by which right: the key, and the platform's credential (hex) for it."""

    node_id: str
    registration: int
    model_id: str
    key: SigningKey
    credential: str


class Announcer:
    """Announces until closed. What it cannot do it logs: nothing waits for it."""

    def __init__(
        self,
        place: DhtEndpoint,
        subject: NodeCredential,
        layers: tuple[int, int],
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._subject = subject
        self._interval = interval
        self._helper = PeerClient(place)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self.layers = layers
        """The span that routes count on, for the next announcement to tell."""
        self.vitals = Heartbeat()
        """What the last heartbeat told, for the next announcement to tell."""

    @property
    def helper_pid(self) -> int | None:
        """The process that holds the DHT's peer, while there is one."""
        return self._helper.pid

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
                delay = RETRIES[min(failures, len(RETRIES) - 1)]
                failures += 1
                log.warning("announcing_failed", reason=reason, retry_in=delay)
            metrics.announcements.labels("stored" if stored else "failed").inc()
            self._stop.wait(delay)
        self._helper.close()

    def _announce(self) -> int:
        subject, vitals = self._subject, self.vitals
        start, end = self.layers
        announcement = Announcement(
            node_id=subject.node_id,
            registration=subject.registration,
            model_id=subject.model_id,
            start_layer=start,
            end_layer=end,
            latency_ms=float(vitals.latency_ms),
            throughput_tokens_per_sec=float(vitals.throughput_tokens_per_sec),
            current_requests=vitals.current_requests,
            kv_positions=vitals.kv_positions,
            expires=time.time() + TTL,
        )
        order = {
            "do": "announce",
            "key": subject.key.seed,
            "credential": subject.credential,
            "announcement": asdict(announcement),
        }
        return int(self._helper.ask(order)["stored"])
