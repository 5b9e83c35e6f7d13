"""A node's move to another span: loads it while the old one serves."""

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence

import structlog
import torch

from node_runner.node.engine_loader import EngineLoader, PreparedSpan, SpanInfo
from node_runner.node.engine_set import EngineSet, Span
from node_runner.weights.checkpoint_cache import release

log = structlog.get_logger()

LOADING_NICE = 10
"""How much less a thread that loads is wanted than those that serve (Linux)."""

POLL_SECONDS = 0.1
"""Seconds between looks whether the runner has taken an engine in, or let one go."""


class Rebalancer:
    """Does what the heartbeats' answers say. All methods may be called from any thread.

    Args:
        engines: What serves.
        loader: Makes engines.
        node_id: This node.
        first: What it serves first.
        memory_bytes: All that it may take.
        news: Called when the platform should hear soon what is served now.
        switched: Called when routes count on another span than before.
        lost: Called if neither the new span nor the old one can be loaded any more.
    """

    def __init__(
        self,
        engines: EngineSet,
        loader: EngineLoader,
        *,
        node_id: str,
        first: SpanInfo,
        memory_bytes: int,
        news: Callable[[], None],
        switched: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._loader = loader
        self._node_id = node_id
        self._memory_bytes = memory_bytes
        self._news = news
        self._switched = switched
        self._lost = lost
        self._counted_on = first.layers
        self._last = first
        self._facts = {first.layers: first}
        self._loading: threading.Thread | None = None
        self.cannot_serve: Span | None = None
        """The span that it was told to load last, if it could not."""

    def told(self, layers: Span, *, should_rebalance: bool) -> None:
        """What a heartbeat was answered: a span to load, or the one that routes count on."""
        if not should_rebalance:
            self.cannot_serve = None
            self._engines.count_on(layers)
            if layers != self._counted_on:
                self._counted_on = layers
                self._switched()
            self._release()
        # Routes may count on what an earlier process of this node had loaded.
        if not (self._busy or layers in self._engines.loaded or layers == self.cannot_serve):
            self._loading = threading.Thread(target=self._move, args=(layers,), daemon=True)
            self._loading.start()

    def has_edge(self, layers: Span) -> bool:
        """Whether a span that is served holds the edge."""
        facts = self._facts.get(layers)
        return facts is not None and facts.spec.edge

    @property
    def load_bytes_per_second(self) -> float:
        """As the span was loaded that came last."""
        return self._last.weight_bytes / max(self._last.seconds, 1e-9)

    @property
    def _busy(self) -> bool:
        return self._loading is not None and self._loading.is_alive()

    def _move(self, layers: Span) -> None:
        _be_nice()
        log.info("span_loading", layers=layers)
        old = self._engines.loaded
        if not self._change(layers, old):
            self._serve_again(old)
        self._news()

    def _change(self, layers: Span, old: Sequence[Span]) -> bool:
        """Whether the span is served now. If not, nothing of it is left in memory: an error keeps
        what its traceback leads to, and that ends with this call."""
        try:
            prepared = self._loader.prepare(layers, edge=layers[0] == 0)
            if not self._fits_beside(prepared):
                self._make_room(old)
            self._load(prepared)
        except Exception as error:  # whatever torch, the disk or the hub may raise
            log.warning("span_not_loaded", layers=layers, error=f"{type(error).__name__}: {error}")
            self.cannot_serve = layers
            return False
        return True

    def _release(self) -> None:
        """Checkpoints of spans that are not served any more need not stay in the cache."""
        if self._busy:
            return
        used = {*self._engines.loaded, self._counted_on, self._last.layers}
        for layers in self._facts.keys() - used:
            release(self._facts.pop(layers).folder)

    def _load(self, prepared: PreparedSpan) -> None:
        loaded = self._loader.load(prepared)
        self._last = facts = loaded.facts
        self._facts[facts.layers] = facts
        self._engines.add(facts.layers, self._loader.engine(loaded, self._node_id))
        while facts.layers not in self._engines.loaded:  # until the runner steps
            time.sleep(POLL_SECONDS)
        log.info("span_loaded", layers=facts.layers, seconds=round(facts.seconds, 3))

    def _fits_beside(self, prepared: PreparedSpan) -> bool:
        taken = sum(self._facts[layers].memory_bytes for layers in self._engines.loaded)
        return taken + prepared.memory_bytes <= self._memory_bytes

    def _make_room(self, old: Sequence[Span]) -> None:
        """Take no new generations, wait until those that run have ended or been given up, and give
        back the memory."""
        log.info("span_drains", layers=old)
        for layers in old:
            self._engines.give_up(layers)
        self._news()
        while self._engines.loaded:
            time.sleep(POLL_SECONDS)
        _free()

    def _serve_again(self, old: Sequence[Span]) -> None:
        if self._engines.loaded or not old:
            return
        _free()
        try:
            self._load(self._loader.prepare(old[0], edge=old[0][0] == 0))
        except Exception as error:
            log.error("span_lost", layers=old, error=f"{type(error).__name__}: {error}")
            self._lost()


def _free() -> None:
    """Memory of what nobody refers to any more. Stops all threads for the better part of a second:
    for when nothing is served."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing to do where no GPU is in use


def _be_nice() -> None:
    """Let the threads that serve go first."""
    if hasattr(os, "sched_getscheduler"):  # elsewhere, priorities are the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADING_NICE)
