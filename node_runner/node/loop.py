"""The serving loop: exchange with the platform, step the engines, until drained."""

import threading
import time
from itertools import chain, repeat

import structlog

from mesh.wire import Message
from node_runner import metrics
from node_runner.node.engine_set import EngineSet
from node_runner.node.step_meter import StepMeter
from node_runner.outputs import EngineOutput
from node_runner.transport.interface import Transport, TransportUnreachable

IDLE_WAIT = 1.0
"""Seconds that one pull waits for work; also how soon a drain or an expiry is noticed."""

EXPIRE_INTERVAL = 1.0
"""Seconds between two searches for generations that nobody has closed in time."""

RETRY_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between tries while the platform does not answer; the last repeats."""

DRAIN_TIMEOUT = 60.0
"""Seconds that running generations get to end after SIGTERM."""

log = structlog.get_logger()


class ServingLoop:
    """Steps a node's engines with what its transport brings. Closes the transport at the end."""

    def __init__(self, engines: EngineSet, transport: Transport, meter: StepMeter) -> None:
        self._engines = engines
        self._transport = transport
        self._meter = meter
        self._draining = threading.Event()
        metrics.kv_budget_bytes.set_function(lambda: engines.kv_budget_bytes)
        metrics.kv_used_bytes.set_function(lambda: engines.kv_used_bytes)
        metrics.generations_active.set_function(lambda: engines.generations)

    @property
    def generations(self) -> int:
        """How many generations hold KV now."""
        return self._engines.generations

    @property
    def draining(self) -> bool:
        """Whether it takes no new generations, and ends when it has none."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Finish what runs, then return from `run`. Safe to call from a signal handler."""
        self._draining.set()

    def run(self) -> None:
        """Serve; returns when drained."""
        outputs: list[EngineOutput] = []
        deadline = None
        expire_at = time.perf_counter() + EXPIRE_INTERVAL
        while True:
            messages = self._exchange(outputs, wait=0 if self._engines.busy else IDLE_WAIT)
            if messages is None:
                break
            began = time.perf_counter()
            outputs = self._engines.step(messages)
            self._measure(time.perf_counter() - began)
            if began > expire_at:
                self._engines.expire()
                expire_at = began + EXPIRE_INTERVAL
            if self._draining.is_set():
                deadline = deadline or time.monotonic() + DRAIN_TIMEOUT
                if not self._engines.generations or time.monotonic() > deadline:
                    self._exchange(outputs, wait=0)
                    break
        self._transport.close()
        log.info("node_drained", abandoned=self.generations)

    def _exchange(self, outputs: list[EngineOutput], *, wait: float) -> list[Message] | None:
        """The transport's exchange, repeated until the platform answers; none if the node is to
        drain before it does, since there is nobody then to finish anything for."""
        delays = chain(RETRY_DELAYS, repeat(RETRY_DELAYS[-1]))
        while True:
            try:
                return self._transport.exchange(outputs, wait=wait)
            except TransportUnreachable as error:
                delay = next(delays)
                log.warning("platform_unreachable", reason=str(error), retry_in=delay)
                if self._draining.wait(delay):
                    return None

    def _measure(self, seconds: float) -> None:
        for generations, positions in self._engines.pop_forwards():
            metrics.forward_batch_size.observe(generations)
            metrics.forward_seconds.observe(seconds)
            metrics.positions_total.inc(positions)
            self._meter.observe(seconds, positions)
        drafted, accepted = self._engines.pop_draft_counts()
        metrics.draft_tokens_total.inc(drafted)
        metrics.accepted_tokens_total.inc(accepted)
