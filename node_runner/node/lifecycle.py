"""A node's life: register, load the span, pull work, drain."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import structlog
import torch

from mesh.dht.signing_keys import SigningKey
from mesh.node_api import Heartbeat, HeartbeatReply, NodeRegistration, RegistrationReply
from node_runner.machine import device_claim, devices, directories
from node_runner.machine.gpu_usage import GpuMonitor
from node_runner.node.engine_loader import EngineLoader, LoadedSpan
from node_runner.node.engine_set import EngineSet
from node_runner.node.loop import ServingLoop
from node_runner.node.options import CannotServe, NodeOptions, TemporaryFailure
from node_runner.node.rebalance import Rebalancer
from node_runner.node.startup import (
    claim_device,
    find_platform,
    load_span,
    make_announcer,
    memory_bytes_of,
    open_platform,
    open_transport,
    pick_device,
    registration_of,
    serve_metrics,
)
from node_runner.node.step_meter import StepMeter
from node_runner.platform_client import registration
from node_runner.platform_client.errors import NodeNotRegistered, NodeSuperseded, PlatformError
from node_runner.platform_client.heartbeats import Heartbeats
from node_runner.service.control_socket import ControlSocket
from node_runner.weights.progress import fetched_bytes

log = structlog.get_logger()


def serve(options: NodeOptions) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, or the platform refuses the node or does not know it any
            more.
    """
    identity = {
        "kind": "node",
        "model_id": options.model,
        "device": options.device,
        "wallet_address": options.wallet,
        "discovery": options.discovery,
    }
    # SIGINT reaches the main thread whatever it does: it ends a start, and drains what serves.
    with ControlSocket(identity, drain=lambda: os.kill(os.getpid(), signal.SIGINT)) as control:
        device = pick_device(options.device)
        claim = claim_device(options.wallet, device)
        gpu = GpuMonitor(device)
        try:
            with closing(Node(options, control, device, claim, gpu)) as node:
                node.run()
        finally:
            gpu.close()
            claim.release()


class Node:
    """A running node: its engines, transport, heartbeats and rebalancer, and the callbacks between
    them.

    Raises:
        CannotServe: an option is wrong, or the platform refuses the node.
    """

    def __init__(
        self,
        options: NodeOptions,
        control: ControlSocket,
        device: torch.device,
        claim: device_claim.DeviceClaim,
        gpu: GpuMonitor,
    ) -> None:
        self._options = options
        self._control = control
        self._device = device
        self._gpu = gpu
        self._heartbeat = Heartbeat()
        self._failure: CannotServe | None = None
        self._deregistration: threading.Thread | None = None
        self._url, dht_endpoint = find_platform(options)
        dht_key = SigningKey.generate()
        memory_bytes = memory_bytes_of(options, device)
        self._http = open_platform(self._url)
        loader = EngineLoader(options, device, self._url)
        self._registered, loaded = self._register_and_load(
            registration_of(options, device, claim, memory_bytes, dht_key), loader
        )
        self._first = loaded.info  # the model itself goes when another span is loaded
        serve_metrics(options.metrics_port)
        self._meter = StepMeter()
        node_id = self._registered.node_id
        self.engines = EngineSet(node_id, self._first.span, loader.make_engine(loaded, node_id))
        self._transport = open_transport(
            options.redis, self._url, self._registered, self.engines.free_kv
        )
        self._loop = ServingLoop(self.engines, self._transport, self._meter)
        self._heartbeats = Heartbeats(
            self._http,
            self._registered,
            measure=self._measure,
            on_reply=self._on_heartbeat_reply,
            on_end=self._on_heartbeats_end,
        )
        self.rebalancer = Rebalancer(
            self.engines,
            loader,
            node_id=node_id,
            first=self._first,
            memory_bytes=memory_bytes,
            request_heartbeat=self._heartbeats.send_soon,
            on_span_change=self._meter.reset,
            on_span_lost=self._on_span_lost,
        )
        self._announcer = make_announcer(options, self._registered, dht_key, dht_endpoint)

    def run(self) -> None:
        """Serve until drained.

        Raises:
            CannotServe: the platform or the disk leaves nothing to serve.
        """
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, self._drain)
        self._heartbeats.start()
        if self._announcer is not None:
            self._announcer.start()
        self._control.describe = self.describe
        log.info(
            "node_started",
            node_id=self._registered.node_id,
            model_id=self._options.model,
            layers=self._first.span,
            placed=self._options.span is None,
            edge=self._first.spec.edge,
            device=str(self._device),
            quantization=self._options.quantization,
            weight_bytes=self._first.weight_bytes,
        )
        self._loop.run()
        if self._announcer is not None:
            self._announcer.close()
        if self._deregistration is not None:
            self._deregistration.join()
        self._heartbeats.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Close the connections to the platform."""
        self._transport.close()
        self._http.close()

    def describe(self) -> dict[str, Any]:
        """The part of the status that changes, for `far-node status`."""
        spans = self.engines.spans
        return {
            "phase": "draining" if self._loop.draining else "serving",
            "discovery": self._url,
            "node_id": self._registered.node_id,
            "layers": list(spans[0]) if spans else [],
            "edge": bool(spans) and self.rebalancer.has_edge(spans[0]),
            "device": str(self._device),
            "gpu_model": devices.device_name(self._device),
            "sessions": self.engines.generations,
            "max_sessions": self._options.max_sessions,
            "tokens_per_second": self._heartbeat.throughput_tokens_per_sec,
            "step_ms": self._heartbeat.latency_ms,
            "platform": registration.describe(self._http, self._registered),
        }

    def _register_and_load(
        self, facts: NodeRegistration, loader: EngineLoader
    ) -> tuple[RegistrationReply, LoadedSpan]:
        """A span that is given is loaded first: what cannot be is not registered. Where the
        platform chooses the span, the node registers first."""
        options = self._options
        log.info("node_starting", model_id=options.model)
        if options.span is not None:
            self._set_phase("loading")
            loaded = load_span(loader, loader.prepare(options.span, edge=options.edge))
            return self._register(facts), loaded
        loader.check_config()
        node = self._register(facts)
        self._set_phase("loading")
        with self._reporting_progress(node):
            return node, load_span(loader, loader.prepare(node.span, edge=node.edge))

    @contextlib.contextmanager
    def _reporting_progress(self, node: RegistrationReply) -> Iterator[None]:
        """Tell the platform while the first span loads that it does: it counts on the node for as
        long as bytes come."""
        heartbeats = Heartbeats(
            self._http,
            node,
            measure=lambda: Heartbeat(
                is_healthy=False, is_loading=True, fetched_bytes=fetched_bytes()
            ),
            on_reply=lambda _: None,
            on_end=lambda _: None,  # those of a node that serves will meet it again
        )
        heartbeats.start()
        try:
            yield
        finally:
            heartbeats.stop()

    def _set_phase(self, phase: str) -> None:
        self._control.describe = lambda: {"phase": phase, "discovery": self._url}

    def _register(self, facts: NodeRegistration) -> RegistrationReply:
        self._set_phase("registering")
        try:
            node = registration.register(self._http, facts, self._options.credential)
        except PlatformError as error:
            raise CannotServe(f"The platform did not register this node: {error}") from None
        log.info("node_registered", node_id=node.node_id, layers=node.span)
        return node

    def _drain(self, *_: object) -> None:
        self._loop.drain()
        if self._deregistration is None:  # a signal handler must not wait for HTTP
            self._deregistration = threading.Thread(target=self._heartbeats.deregister)
            self._deregistration.start()

    def _measure(self) -> Heartbeat:
        latency_ms, rate = self._meter.read()
        usage = self._gpu.read()
        self._heartbeat = Heartbeat(
            is_healthy=self.engines.serves_routed_span,
            latency_ms=latency_ms,
            throughput_tokens_per_sec=rate,
            current_requests=self.engines.generations,
            kv_positions=self.engines.kv_capacity(),
            hop_ms=self._transport.hop_ms,
            batch_invariant=self.engines.batch_invariant,
            load_bytes_per_second=self.rebalancer.load_bytes_per_second,
            gpu_utilization_percent=usage.utilization_percent,
            vram_used_gb=usage.vram_used_gb,
            serves=self.engines.spans,
            cannot_serve=self.rebalancer.cannot_serve,
            fetched_bytes=fetched_bytes(),
        )
        if self._announcer is not None:
            self._announcer.heartbeat = self._heartbeat
        return self._heartbeat

    def _on_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        if reply.span is None:
            return
        self.rebalancer.assign(reply.span, should_rebalance=reply.should_rebalance)
        if self._announcer is not None and not reply.should_rebalance:
            self._announcer.span = reply.span

    def _on_heartbeats_end(self, error: NodeNotRegistered | NodeSuperseded) -> None:
        if isinstance(error, NodeSuperseded):
            self._fail(
                CannotServe(
                    f"{error} If that was a copy of this machine's disk, delete device_id in "
                    f"{directories.state()} on one of them."
                )
            )
        else:
            self._fail(
                TemporaryFailure(
                    "The platform does not know this node any more. Start it again to register."
                )
            )

    def _on_span_lost(self) -> None:
        self._fail(TemporaryFailure("Neither the new span nor the old one can be loaded any more."))

    def _fail(self, failure: CannotServe) -> None:
        self._failure = failure
        self._loop.drain()
