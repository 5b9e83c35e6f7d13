"""A stranger's node does not load the span that a rebalance gives it, so that the honest nodes that
were to change with it keep theirs for long."""

from collections.abc import AsyncIterator, Callable

import pytest
from eth_account import Account
from redis.asyncio import Redis
from sqlalchemy import select

from market.placement import rebalances
from market.placement.tables import Rebalance
from market.resources import Resources, open_resources
from market.settings import Settings
from tests.conftest import MODEL_ID
from tests.support.gateway.api import PROVIDER, STRANGER, Gateway, open_gateway
from tests.support.market.provider import Provider
from workers.crons.rebalance import rebalance_model

RETRY = 3600.0

NEWCOMER = Account.from_key(b"\x04" * 32)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(
        discovery={"trusted_wallets": [PROVIDER.address]},
        placement={"half_life": 1e-3, "pause": 0, "positions": 1024, "threshold": 0.1},
    )


@pytest.fixture
async def gateway(settings: Settings, redis: Redis) -> AsyncIterator[Gateway]:
    async with open_gateway(settings) as opened:
        yield opened


@pytest.fixture
async def resources(settings: Settings, redis: Redis) -> AsyncIterator[Resources]:
    async with open_resources(settings) as opened:
        yield opened


async def newest(resources: Resources) -> Rebalance:
    await rebalance_model(resources, resources.catalog.get(MODEL_ID))
    async with resources.sessions() as db:
        found = await db.scalars(select(Rebalance).order_by(Rebalance.id.desc()).limit(1))
        return found.one()


async def fixed(resources: Resources) -> set[str]:
    async with resources.sessions() as db:
        return await rebalances.failed_within(db, MODEL_ID, RETRY)


async def begun(gateway: Gateway, resources: Resources) -> tuple[Provider, Provider]:
    """An honest node for all layers, and a stranger's, which a rebalance is to change."""
    honest, evil = Provider(gateway, "a"), Provider(gateway, "b", STRANGER)
    await honest.join()
    await honest.heartbeat(ms=10)
    await evil.join()
    await evil.heartbeat()
    assert set(rebalances.nodes_of(await newest(resources))) == {honest.id, evil.id}
    return honest, evil


async def test_who_cannot_serve_keeps_no_other_from_the_next_rebalance(
    gateway: Gateway, resources: Resources
) -> None:
    honest, evil = await begun(gateway, resources)
    reply = await evil.heartbeat()
    await evil.heartbeat(cannot_serve=[reply["start_layer"], reply["end_layer"]])
    await evil.heartbeat(is_healthy=False)
    newcomer = Provider(gateway, "c", NEWCOMER)
    await newcomer.join()
    await newcomer.heartbeat(ms=10)
    await honest.heartbeat(ms=10)
    found = await newest(resources)
    assert found.state == "proposed"
    assert set(rebalances.nodes_of(found)) == {honest.id, newcomer.id}


async def test_other_nodes_of_its_wallet_do_not_take_its_turn(
    gateway: Gateway, resources: Resources
) -> None:
    _, evil = await begun(gateway, resources)
    another = Provider(gateway, "c", STRANGER)
    await another.join()
    reply = await evil.heartbeat()
    await evil.heartbeat(cannot_serve=[reply["start_layer"], reply["end_layer"]])
    assert await fixed(resources) == {evil.id, another.id}


async def test_who_lets_the_time_pass_is_kept_from_the_next_alone(
    gateway: Gateway, resources: Resources
) -> None:
    honest, evil = await begun(gateway, resources)
    await honest.load(await honest.heartbeat(ms=10))
    resources.settings.placement.move_limit = 1e-3
    assert (await newest(resources)).state == "expired"
    assert await fixed(resources) == {evil.id}


async def test_who_takes_a_span_of_its_own_is_kept_from_the_next_alone(
    gateway: Gateway, resources: Resources
) -> None:
    _, evil = await begun(gateway, resources)
    await evil.heartbeat()
    await evil.join(pinned=(2, 3))
    assert await fixed(resources) == {evil.id}


async def test_what_older_versions_recorded_fixes_all(
    gateway: Gateway, resources: Resources
) -> None:
    honest, evil = await begun(gateway, resources)
    async with resources.sessions.begin() as db:
        found = await rebalances.under_way(db, MODEL_ID)
        assert found is not None
        await rebalances.fail(db, found, "gone", at=[evil.id])
        found.changes = [
            {name: value for name, value in change.items() if name != "failed"}
            for change in found.changes
        ]
    assert await fixed(resources) == {honest.id, evil.id}
