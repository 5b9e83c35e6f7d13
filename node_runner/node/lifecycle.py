"""A node's life: register, load the span, pull work until told to drain."""

import os
import signal
import threading
from typing import Any

import structlog
import torch

from mesh.dht.signing_keys import SigningKey
from mesh.node_api import Heartbeat
from node_runner.machine import device_claim, devices, directories
from node_runner.machine.gpu_usage import GpuMonitor
from node_runner.node import step_meter
from node_runner.node.engine_loader import EngineLoader, LoadedSpan
from node_runner.node.engine_set import EngineSet
from node_runner.node.loop import ServingLoop
from node_runner.node.options import CannotServe, EndedForNow, Options
from node_runner.node.rebalance import Rebalancer
from node_runner.node.startup import (
    claim_device,
    find_platform,
    load_span,
    make_announcer,
    memory_bytes_of,
    open_transport,
    pick_device,
    registration_of,
    serve_metrics,
)
from node_runner.platform_client.registration import (
    HeartbeatReply,
    NodeSuperseded,
    Platform,
    PlatformError,
)
from node_runner.service.control_socket import ControlSocket

__all__ = ["CannotServe", "EndedForNow", "Options", "serve"]

log = structlog.get_logger()


def serve(options: Options) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, the platform refuses the node, or has forgotten it.
    """
    about = {
        "kind": "node",
        "model_id": options.model,
        "device": options.device,
        "wallet_address": options.wallet,
        "discovery": options.discovery,
    }
    # SIGINT reaches the main thread whatever it does: it ends a start, and drains what serves.
    with ControlSocket(about, drain=lambda: os.kill(os.getpid(), signal.SIGINT)) as control:
        device = pick_device(options.device)
        claim = claim_device(options.wallet, device)
        gpu = GpuMonitor(device)
        try:
            _Node(options, control, device, claim, gpu).run()
        finally:
            gpu.close()
            claim.release()


class _Node:
    """What a start puts together, and what goes on between its parts while it serves."""

    def __init__(
        self,
        options: Options,
        control: ControlSocket,
        device: torch.device,
        claim: device_claim.DeviceClaim,
        gpu: GpuMonitor,
    ) -> None:
        self._options = options
        self._control = control
        self._device = device
        self._gpu = gpu
        self._vitals = Heartbeat()
        self._ended: CannotServe | None = None
        self._farewell: threading.Thread | None = None
        self._url, place = find_platform(options)
        dht_key = SigningKey.generate()
        memory_bytes = memory_bytes_of(options, device)
        identity = registration_of(options, device, claim, memory_bytes)
        self._platform = Platform(self._url, identity, options.credential, dht_key.public.hex())
        loader = EngineLoader(options, device, self._url)
        loaded = self._join(loader)
        self._first = loaded.facts  # the span itself goes when it has moved to another
        serve_metrics(options.metrics_port)
        self._meter = step_meter.StepMeter()
        node_id = self._platform.node_id
        self._engines = EngineSet(node_id, self._first.layers, loader.engine(loaded, node_id))
        self._transport = open_transport(
            options.redis, self._url, self._platform, self._engines.room
        )
        self._runner = ServingLoop(self._engines, self._transport, self._meter)
        self._mover = Rebalancer(
            self._engines,
            loader,
            node_id=node_id,
            first=self._first,
            memory_bytes=memory_bytes,
            news=self._platform.beat_soon,
            switched=self._meter.restart,
            lost=self._lost,
        )
        self._announcer = make_announcer(options, self._platform, dht_key, place)

    def run(self) -> None:
        """Serve until drained.

        Raises:
            CannotServe: the platform or the disk leaves nothing to serve.
        """
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, self._drain)
        self._platform.start_heartbeats(self._measure, self._told, self._forgotten)
        if self._announcer is not None:
            self._announcer.start()
        self._control.describe = self._describe
        log.info(
            "node_started",
            node_id=self._platform.node_id,
            model_id=self._options.model,
            layers=self._first.layers,
            placed=self._options.span is None,
            edge=self._first.spec.edge,
            device=str(self._device),
            quantization=self._options.quantization,
            weight_bytes=self._first.weight_bytes,
        )
        self._runner.run()
        if self._announcer is not None:
            self._announcer.close()
        if self._farewell is not None:
            self._farewell.join()
        self._platform.close()
        if self._ended is not None:
            raise self._ended

    def _join(self, loader: EngineLoader) -> LoadedSpan:
        """Register, and load. A span that is given is loaded first: what cannot be is not
        registered. Where the platform chooses, it has to be asked."""
        options, platform = self._options, self._platform
        log.info("node_starting", model_id=options.model)
        if options.span is not None:
            self._enter("loading")
            loaded = load_span(loader, loader.prepare(options.span, edge=options.edge))
            self._register()
            return loaded
        loader.check()
        self._register()
        self._enter("loading")
        return load_span(loader, loader.prepare(platform.span, edge=platform.edge))

    def _enter(self, phase: str) -> None:
        self._control.describe = lambda: {"phase": phase, "discovery": self._url}

    def _register(self) -> None:
        self._enter("registering")
        try:
            self._platform.join()
        except PlatformError as error:
            raise CannotServe(f"The platform did not register this node: {error}") from None
        log.info("node_registered", node_id=self._platform.node_id, layers=self._platform.span)

    def _drain(self, *_: object) -> None:
        self._runner.drain()
        if self._farewell is None:  # HTTP has no place in a handler
            self._farewell = threading.Thread(target=self._platform.leave)
            self._farewell.start()

    def _measure(self) -> Heartbeat:
        latency_ms, rate = self._meter.read()
        use = self._gpu.use()
        self._vitals = Heartbeat(
            is_healthy=self._engines.serves_routes,
            latency_ms=latency_ms,
            throughput_tokens_per_sec=rate,
            current_requests=self._engines.generations,
            kv_positions=self._engines.capacity(),
            hop_ms=self._transport.hop_ms,
            load_bytes_per_second=self._mover.load_bytes_per_second,
            gpu_utilization_percent=use.utilization_percent,
            vram_used_gb=use.vram_used_gb,
            serves=self._engines.spans,
            cannot_serve=self._mover.cannot_serve,
        )
        if self._announcer is not None:
            self._announcer.vitals = self._vitals
        return self._vitals

    def _told(self, answer: HeartbeatReply) -> None:
        if answer.span is None:
            return
        self._mover.told(answer.span, should_rebalance=answer.should_rebalance)
        if self._announcer is not None and not answer.should_rebalance:
            self._announcer.layers = answer.span

    def _forgotten(self, error: PlatformError) -> None:
        if isinstance(error, NodeSuperseded):
            self._end(
                CannotServe(
                    f"{error} If that was a copy of this machine's disk, delete device_id in "
                    f"{directories.state()} on one of them."
                )
            )
        else:
            self._end(
                EndedForNow(
                    "The platform does not know this node any more. Start it again to register."
                )
            )

    def _lost(self) -> None:
        self._end(EndedForNow("Neither the new span nor the old one can be loaded any more."))

    def _end(self, why: CannotServe) -> None:
        self._ended = why
        self._runner.drain()

    def _describe(self) -> dict[str, Any]:
        spans = self._engines.spans
        return {
            "phase": "draining" if self._runner.draining else "serving",
            "discovery": self._url,
            "node_id": self._platform.node_id,
            "layers": list(spans[0]) if spans else [],
            "edge": bool(spans) and self._mover.has_edge(spans[0]),
            "device": str(self._device),
            "gpu_model": devices.name_of(self._device),
            "sessions": self._engines.generations,
            "max_sessions": self._options.max_sessions,
            "tokens_per_second": self._vitals.throughput_tokens_per_sec,
            "step_ms": self._vitals.latency_ms,
            "platform": self._platform.describe(),
        }
