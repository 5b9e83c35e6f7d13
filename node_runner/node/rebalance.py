"""Loads another span while the present one serves."""

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence

import structlog
import torch

from mesh.node_api import Span
from node_runner.node.engine_loader import EngineLoader, PreparedSpan, SpanInfo
from node_runner.node.engine_set import EngineSet
from node_runner.weights.checkpoint_cache import release

log = structlog.get_logger()

LOADING_NICE = 10
"""Niceness of a thread that loads: those that serve go first (Linux)."""

POLL_SECONDS = 0.1
"""Seconds between two checks whether the serving loop has taken an engine in, or let one go."""


class Rebalancer:
    """Loads and drops spans as the heartbeats' replies say. All methods may be called from any
    thread.

    Args:
        engines: What serves.
        loader: Makes engines.
        node_id: This node.
        first: What it serves first.
        memory_bytes: All that it may take.
        request_heartbeat: Called when the platform should hear soon what is served now.
        on_span_change: Called when routes use another span than before.
        on_span_lost: Called if neither the new span nor the old one can be loaded any more.
    """

    def __init__(
        self,
        engines: EngineSet,
        loader: EngineLoader,
        *,
        node_id: str,
        first: SpanInfo,
        memory_bytes: int,
        request_heartbeat: Callable[[], None],
        on_span_change: Callable[[], None],
        on_span_lost: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._loader = loader
        self._node_id = node_id
        self._memory_bytes = memory_bytes
        self._request_heartbeat = request_heartbeat
        self._on_span_change = on_span_change
        self._on_span_lost = on_span_lost
        self._routed_span = first.span
        self._last_loaded = first
        self._known = {first.span: first}
        self._loading: threading.Thread | None = None
        self.cannot_serve: Span | None = None
        """The span that the node was told to load last, if it could not."""

    def assign(self, span: Span, *, should_rebalance: bool) -> None:
        """Take a heartbeat's reply: the span to load, or the one that routes use."""
        if not should_rebalance:
            self.cannot_serve = None
            self._engines.set_routed_span(span)
            if span != self._routed_span:
                self._routed_span = span
                self._on_span_change()
            self._release_checkpoints()
        # Routes may use what an earlier process of this node had loaded.
        if not (self._busy or span in self._engines.loaded or span == self.cannot_serve):
            self._loading = threading.Thread(target=self._rebalance, args=(span,), daemon=True)
            self._loading.start()

    def has_edge(self, span: Span) -> bool:
        """Whether a span that is served holds the edge."""
        known = self._known.get(span)
        return known is not None and known.spec.edge

    @property
    def load_bytes_per_second(self) -> float:
        """Bytes of weights a second, as the last span was loaded."""
        return self._last_loaded.weight_bytes / max(self._last_loaded.seconds, 1e-9)

    @property
    def _busy(self) -> bool:
        return self._loading is not None and self._loading.is_alive()

    def _rebalance(self, span: Span) -> None:
        _lower_priority()
        log.info("span_loading", layers=span)
        old = self._engines.loaded
        if not self._replace(old, span):
            self._restore(old)
        self._request_heartbeat()

    def _replace(self, old: Sequence[Span], span: Span) -> bool:
        """Whether the span is served now. If not, nothing of it is left in memory: an error keeps
        what its traceback leads to, and that ends with this call."""
        try:
            prepared = self._loader.prepare(span, edge=span[0] == 0)
            if not self._fits_beside(prepared):
                self._unload(old)
            self._load(prepared)
        except Exception as error:  # whatever torch, the disk or the hub may raise
            log.warning("span_not_loaded", layers=span, error=f"{type(error).__name__}: {error}")
            self.cannot_serve = span
            return False
        return True

    def _release_checkpoints(self) -> None:
        """Checkpoints of spans that are not served any more need not stay in the cache."""
        if self._busy:
            return
        used = {*self._engines.loaded, self._routed_span, self._last_loaded.span}
        for span in self._known.keys() - used:
            release(self._known.pop(span).folder)

    def _load(self, prepared: PreparedSpan) -> None:
        loaded = self._loader.load(prepared)
        self._last_loaded = info = loaded.info
        self._known[info.span] = info
        self._engines.add(info.span, self._loader.make_engine(loaded, self._node_id))
        while info.span not in self._engines.loaded:  # until the serving loop steps
            time.sleep(POLL_SECONDS)
        log.info("span_loaded", layers=info.span, seconds=round(info.seconds, 3))

    def _fits_beside(self, prepared: PreparedSpan) -> bool:
        taken = sum(self._known[span].memory_bytes for span in self._engines.loaded)
        return taken + prepared.memory_bytes <= self._memory_bytes

    def _unload(self, spans: Sequence[Span]) -> None:
        """Take no new generations, wait until those that run have ended or were abandoned, and give
        the memory back."""
        log.info("span_draining", layers=spans)
        for span in spans:
            self._engines.drain_span(span)
        self._request_heartbeat()
        while self._engines.loaded:
            time.sleep(POLL_SECONDS)
        _free_memory()

    def _restore(self, old: Sequence[Span]) -> None:
        if self._engines.loaded or not old:
            return
        _free_memory()
        try:
            self._load(self._loader.prepare(old[0], edge=old[0][0] == 0))
        except Exception as error:
            log.error("span_lost", layers=old, error=f"{type(error).__name__}: {error}")
            self._on_span_lost()


def _free_memory() -> None:
    """Give back what nobody refers to any more. Stops all threads for the better part of a second:
    for when nothing is served."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing to do where no GPU is in use


def _lower_priority() -> None:
    """Let the threads that serve go first."""
    if hasattr(os, "sched_getscheduler"):  # elsewhere, priorities are the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADING_NICE)
