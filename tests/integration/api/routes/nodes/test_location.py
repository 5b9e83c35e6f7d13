"""Where a node is, and its user."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from redis.asyncio import Redis

from market.geo.geoip import GeoIp
from market.nodes import live_lookup
from market.settings import Settings
from tests.conftest import MODEL_ID
from tests.support.api import (
    GENERATE,
    PROVIDER,
    Gateway,
    Job,
    open_gateway,
    request_body,
)
from tests.support.node_api import REGISTRATION_PATH, heartbeat, registered, registration


@pytest.fixture(scope="module")
def city_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that knows where 203.0.113.0/24 is, and nothing else."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-City")
    berlin = {
        "city": {"names": {"en": "Berlin"}},
        "country": {"iso_code": "DE", "names": {"en": "Germany"}},
        "location": {"latitude": 52.52, "longitude": 13.405},
    }
    writer.insert_network(IPSet(["203.0.113.0/24"]), berlin)
    file = tmp_path_factory.mktemp("places") / "cities.mmdb"
    writer.to_db_file(str(file))
    return file


@pytest.fixture
async def located(
    make_settings: Callable[..., Settings], redis: Redis, city_database: Path
) -> AsyncIterator[Gateway]:
    settings = make_settings(
        discovery={"geoip_database": str(city_database), "trusted_wallets": [PROVIDER.address]},
        limits={"trust_forwarded_for": True},
    )
    async with open_gateway(settings) as opened:
        yield opened


BERLIN = {"X-Forwarded-For": "203.0.113.9"}


UNKNOWN_PLACE = {"X-Forwarded-For": "198.51.100.1"}


@pytest.mark.parametrize(
    ("calls", "says", "expected"),
    [
        (BERLIN, {"latitude": 1.0, "longitude": 2.0}, ("Berlin, DE", "geoip", (52.52, 13.405))),
        (UNKNOWN_PLACE, {"latitude": 1.0, "longitude": 2.0}, ("US-East", "declared", (1, 2))),
        (UNKNOWN_PLACE, {"latitude": 1.0}, ("US-East", "declared", None)),
        (UNKNOWN_PLACE, {"location": "unknown"}, ("unknown", "unknown", None)),
    ],
    ids=["by its address", "by its word", "half a word", "not at all"],
)
async def test_where_a_node_is(
    located: Gateway,
    calls: dict[str, str],
    says: dict[str, Any],
    expected: tuple[str, str, tuple[float, float] | None],
) -> None:
    body = await registration(located, **says)
    answer = (await located.client.post(REGISTRATION_PATH, json=body, headers=calls)).json()
    token = {"Authorization": f"Bearer {answer['node_token']}"}
    await heartbeat(located, answer["node_id"], token)
    [node] = await live_lookup.available_nodes(located.redis, MODEL_ID)
    assert (node.location, node.located, node.coordinates) == expected


async def test_a_generation_knows_about_where_its_user_is(located: Gateway) -> None:
    """In whole degrees; nothing where the address tells nothing."""
    node_id, token = await registered(located)
    await heartbeat(located, node_id, token)
    await located.deposit("1")
    found = []
    for calls in (BERLIN, UNKNOWN_PLACE):
        headers = calls | {"Prefer": "respond-async"}
        answer = await located.client.post(GENERATE, json=request_body(), headers=headers)
        row = await Job(located, answer.json()["request_id"]).row()
        found.append((row.near_latitude, row.near_longitude))
    assert found == [(53, 13), (None, None)]


async def test_a_database_that_tells_no_cities(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    country = tmp_path / "countries.mmdb"
    writer = MMDBWriter(database_type="GeoLite2-Country")
    writer.insert_network(IPSet(["203.0.113.0/24"]), {"country": {"iso_code": "DE"}})
    writer.to_db_file(str(country))
    text = tmp_path / "text.mmdb"
    text.write_text("no database")
    for file in (country, text, tmp_path / "missing.mmdb"):
        with pytest.raises(ValueError, match="GEOIP_DATABASE"):
            GeoIp(file)
