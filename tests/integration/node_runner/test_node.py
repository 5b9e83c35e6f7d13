"""A node in this process, against a gateway behind a real server."""

import asyncio
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis

from market.settings import Settings
from node_runner.machine import device_claim
from node_runner.machine.gpu_usage import GpuMonitor
from node_runner.node import lifecycle, startup
from node_runner.node.engine_set import Span
from node_runner.node.lifecycle import Options
from node_runner.service.control_socket import ControlSocket
from tests.integration.node_runner.test_node_cli import PATIENCE, machine_at
from tests.support.api import PROVIDER, PROVIDER_WALLET
from tests.support.node_options import node_options

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
        monkeypatch.setattr(startup, "platform_url", lambda given, place: machine.url)
        told = await asyncio.to_thread(move, options, tmp_path)
    assert (told["layers"], told["edge"]) == (list(NEW), False)
    assert told["discovery"] == machine.url


def move(options: Options, folder: Path) -> dict[str, object]:
    """What the node describes itself as when it has moved."""
    claim = device_claim.claim(folder, wallet=options.wallet, gpu_index=0)
    with ControlSocket({}, drain=lambda: None) as control:
        moving = lifecycle._Node(options, control, CPU, claim, GpuMonitor(CPU))
        try:
            engines = moving._engines
            old = weakref.ref(engines._engines[OLD].span)
            assert moving._describe()["edge"]
            give_up = time.monotonic() + PATIENCE
            while engines.loaded != [NEW]:
                assert time.monotonic() < give_up
                moving._mover.told(NEW, should_rebalance=NEW not in engines.loaded)
                engines.step([])
                time.sleep(0.01)
            assert old() is None
            return moving._describe()
        finally:
            moving._transport.close()
            moving._platform.close()
            claim.release()
