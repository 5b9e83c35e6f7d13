"""Which node it is that registers again."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from market.nodes import live_lookup
from market.settings import Settings
from tests.conftest import MODEL_ID
from tests.support.api import (
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    eventually,
    open_gateway,
    problem,
)
from tests.support.node_api import (
    REGISTRATION_PATH,
    heartbeat,
    node_count,
    register,
    registered,
    registration,
    row_of,
)


@pytest.fixture
def device() -> dict[str, Any]:
    """One that no other test has registered."""
    return {"device_id": secrets.token_hex(16), "gpu_index": 1}


async def test_a_device_that_registers_again_is_the_same_node(
    gateway: Gateway, device: dict[str, Any]
) -> None:
    """A restart: one row, one entry, with what the new process says; the old process is over."""
    before = await node_count(gateway)
    node_id, old = await registered(gateway, **device)
    await heartbeat(gateway, node_id, old)
    again, new = await registered(gateway, start_layer=2, edge=False, **device)
    assert again == node_id
    assert await node_count(gateway) == before + 1
    assert (
        await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    )  # until the new process's first heartbeat
    await heartbeat(gateway, node_id, new)
    for healthy in (True, False):
        late = await heartbeat(gateway, node_id, old, is_healthy=healthy)
        problem(late, 409, "node_superseded")
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert (node.node_id, node.start_layer, node.registration) == (node_id, 2, 2)
    row = await row_of(gateway, node_id)
    assert (row.start_layer, row.registration, row.is_active) == (2, 2, True)


async def test_a_late_heartbeat_of_an_earlier_process_brings_nothing_back(
    gateway: Gateway, device: dict[str, Any]
) -> None:
    """Also before the new process has beaten for the first time."""
    node_id, old = await registered(gateway, **device)
    _, new = await registered(gateway, **device)
    problem(await heartbeat(gateway, node_id, old), 409, "node_superseded")
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    assert (await heartbeat(gateway, node_id, new)).status_code == 200


async def test_a_device_of_another_wallet_or_gpu_is_another_node(
    gateway: Gateway, device: dict[str, Any]
) -> None:
    names = [
        (await registered(gateway, **device))[0],
        (await registered(gateway, **device | {"gpu_index": 2}))[0],
        (await registered(gateway, wallet_address=STRANGER.address, signer=STRANGER, **device))[0],
    ]
    assert len(set(names)) == 3


async def test_two_processes_that_race_for_a_device_end_in_one_entry(gateway: Gateway) -> None:
    before = await node_count(gateway)
    bodies = [await registration(gateway, device_id="racing") for _ in range(6)]
    answers = await asyncio.gather(
        *(gateway.client.post(REGISTRATION_PATH, json=body) for body in bodies)
    )
    assert {answer.status_code for answer in answers} == {200}
    nodes = [answer.json() for answer in answers]
    [node_id] = {node["node_id"] for node in nodes}
    tokens = [{"Authorization": f"Bearer {node['node_token']}"} for node in nodes]
    answers = await asyncio.gather(
        *(heartbeat(gateway, node_id, token) for _ in range(3) for token in tokens)
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [409] * 15
    assert await node_count(gateway) == before + 1
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert node.registration == 6


async def test_a_node_without_a_device_is_a_new_one_each_time(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    """The specification's body as it stands: the ghost is gone after its time to live."""
    discovery = {"node_ttl": 0.5}
    async with open_gateway(make_settings(discovery=discovery)) as gateway:
        ghost, token = await registered(gateway)
        await heartbeat(gateway, ghost, token)
        node_id, token = await registered(gateway)
        assert node_id != ghost

        async def alone() -> bool:
            await heartbeat(gateway, node_id, token)
            nodes = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
            return [node.node_id for node in nodes] == [node_id]

        await eventually(alone)


async def test_a_node_may_say_what_it_is_called(gateway: Gateway) -> None:
    """The specification's discovery body: who comes again under a name is the same node."""
    name = f"{PROVIDER.address[:8]}-0"
    before = await node_count(gateway)
    assert [(await registered(gateway, node_id=name))[0] for _ in range(2)] == [name, name]
    assert await node_count(gateway) == before + 1
    stolen = await register(gateway, node_id=name, wallet_address=STRANGER.address, signer=STRANGER)
    problem(stolen, 409, "node_id_taken")
    assert (await row_of(gateway, name)).wallet_address == PROVIDER_WALLET


async def test_a_device_keeps_its_name_whatever_it_would_like(gateway: Gateway) -> None:
    node_id, _ = await registered(gateway, device_id="named")
    again, _ = await registered(gateway, device_id="named", node_id="fancy")
    assert again == node_id
