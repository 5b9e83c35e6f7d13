"""Strangers' nodes on a mesh whose operator has not let them in."""

from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from discovery.restore import restore
from market.nodes import live_lookup
from market.nodes.tables import RegisteredNode
from market.resources import Resources
from market.settings import Settings
from market.settings.discovery import DiscoverySettings
from mesh import redis_keys
from tests.conftest import MODEL_ID
from tests.support.gateway.api import PROVIDER, Gateway, open_gateway, problem
from tests.support.gateway.dht import announcement
from tests.support.gateway.node_api import heartbeat, register, registered


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """A gateway with no other setting than an operator's first: nobody is listed."""
    async with open_gateway(make_settings(discovery={"admission": "allow_list"})) as opened:
        yield opened


def test_only_listed_wallets_are_admitted_unless_the_operator_says_otherwise() -> None:
    assert DiscoverySettings().admission == "allow_list"


async def test_a_strangers_node_is_not_registered(gateway: Gateway) -> None:
    answer = await register(gateway)
    document = problem(answer, 403, "wallet_not_admitted")
    assert PROVIDER.address.lower() in document["detail"]


@pytest.mark.parametrize("setting", ["allowed_wallets", "trusted_wallets"])
async def test_a_listed_wallets_node_is_admitted_until_it_is_struck_off(
    gateway: Gateway, setting: str
) -> None:
    """Its next heartbeat takes it off the routes, and one after that brings it back if it may."""
    discovery = gateway.services.settings.discovery
    setattr(discovery, setting, [PROVIDER.address])
    node_id, token = await registered(gateway)
    assert (await heartbeat(gateway, node_id, token)).status_code == 200
    assert len(await live_lookup.available_nodes(gateway.redis, MODEL_ID)) == 1
    setattr(discovery, setting, [])
    for _ in range(2):
        problem(await heartbeat(gateway, node_id, token), 403, "wallet_not_admitted")
        assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    setattr(discovery, setting, [PROVIDER.address])
    assert (await heartbeat(gateway, node_id, token)).status_code == 200
    assert len(await live_lookup.available_nodes(gateway.redis, MODEL_ID)) == 1


async def test_the_dht_brings_no_stranger_back(resources: Resources) -> None:
    """A node that was admitted once, runs and announces itself, after Redis has lost its record."""
    announced = announcement()
    async with resources.sessions.begin() as db:
        db.add(
            RegisteredNode(
                node_id=announced.node_id,
                wallet_address=PROVIDER.address.lower(),
                model_id=announced.model_id,
                start_layer=announced.start_layer,
                end_layer=announced.end_layer,
                registration=announced.registration,
            )
        )
    await resources.redis.set(redis_keys.keepalive(announced.node_id), 1)
    for admission, restored in (("allow_list", []), ("anyone", [announced.node_id])):
        discovery = DiscoverySettings(admission=admission)
        assert (
            await restore(resources.redis, resources.sessions, discovery, [announced]) == restored
        )
