"""A node in this process, against a gateway behind a real server."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis

from market.settings import Settings
from mesh.node_api import Span
from node_runner.engine.model.span_model import SpanModel
from node_runner.machine import device_claim
from node_runner.machine.gpu_usage import GpuMonitor
from node_runner.node import startup
from node_runner.node.lifecycle import Node
from node_runner.node.options import NodeOptions
from node_runner.service.control_socket import ControlSocket
from tests.support.gateway.api import PROVIDER, PROVIDER_WALLET
from tests.support.node.machine import PATIENCE, machine_at
from tests.support.node.options import node_options

OLD: Span = (0, 4)
NEW: Span = (2, 6)
CPU = torch.device("cpu")


async def test_who_has_moved_keeps_nothing_of_the_old_span_and_tells_of_the_new_one(
    make_settings: Callable[..., Settings],
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And of the platform that it found, where its options name none."""
    monkeypatch.setenv("FAR_NODE_STATE", str(tmp_path / "state"))
    options = node_options(
        tmp_path / "spans",
        wallet=PROVIDER_WALLET,
        credential=bytes(PROVIDER.key),
        redis=redis_url,
        span=OLD,
        edge=True,
        memory_gb=1.0,
    )
    async with machine_at(make_settings, redis_url, tmp_path) as machine:
        monkeypatch.setattr(startup, "platform_url", lambda given, endpoint: machine.url)
        told = await asyncio.to_thread(move, options, tmp_path)
    assert (told["layers"], told["edge"]) == (list(NEW), False)
    assert told["discovery"] == machine.url


def move(options: NodeOptions, folder: Path) -> dict[str, object]:
    """What the node describes itself as when it has moved."""
    claim = device_claim.claim(folder, wallet=options.wallet, gpu_index=0)
    others = set(map(id, models()))
    with (
        closing(claim.lock),
        ControlSocket({}, drain=lambda: None) as control,
        closing(Node(options, control, CPU, claim, GpuMonitor(CPU))) as node,
    ):
        [old] = [weakref.ref(model) for model in models() if id(model) not in others]
        assert node.describe()["edge"]
        deadline = time.monotonic() + PATIENCE
        while node.engines.loaded != [NEW]:
            assert time.monotonic() < deadline
            node.rebalancer.assign(NEW, should_rebalance=NEW not in node.engines.loaded)
            node.engines.step([])
            time.sleep(0.01)
        assert old() is None
        return node.describe()


def models() -> list[SpanModel]:
    """All that are in memory."""
    return [each for each in gc.get_objects() if issubclass(type(each), SpanModel)]
