"""Machines and their nodes: listed, seen and revoked."""

from market.nodes import live_lookup
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    OTHER_WALLET,
    PROVIDER_WALLET,
    Gateway,
    problem,
)
from tests.support.gateway.machine_api import bearer, heartbeat, let_in, register


async def test_a_wallet_lists_its_machines_and_nobody_elses(gateway: Gateway) -> None:
    token = await let_in(gateway, "lister")
    mine = await gateway.client.get("/api/machines", headers=gateway.login(PROVIDER_WALLET))
    newest = mine.json()["machines"][0]
    assert (newest["machine_id"], newest["name"]) == (token["machine_id"], "lister")
    assert (newest["last_used_at"], "access_token" in newest) == (None, False)
    others = await gateway.client.get("/api/machines", headers=gateway.login(OTHER_WALLET))
    assert others.json() == {"machines": []}
    problem(await gateway.client.get("/api/machines", headers=bearer(token)), 403, "scope_missing")


async def test_a_node_is_seen_by_itself_its_wallet_and_its_wallets_machines(
    gateway: Gateway,
) -> None:
    token = await let_in(gateway)
    node = (await register(gateway, token, node_id="node_Attic")).json()
    namesake = (await register(gateway, await let_in(gateway), node_id="node_attic")).json()
    path = f"/api/nodes/{node['node_id']}"

    async def seen(headers: dict[str, str]) -> int:
        return (await gateway.client.get(path, headers=headers)).status_code

    as_node = {"Authorization": f"Bearer {node['node_token']}"}
    for headers in (as_node, bearer(token), gateway.login(PROVIDER_WALLET)):
        assert await seen(headers) == 200
    as_namesake = {"Authorization": f"Bearer {namesake['node_token']}"}
    for headers in (as_namesake, gateway.login(OTHER_WALLET)):
        assert await seen(headers) == 404
    machine = f"/api/machines/{token['machine_id']}"
    await gateway.client.delete(machine, headers=gateway.login(PROVIDER_WALLET))
    for headers in (as_node, bearer(token)):
        assert await seen(headers) == 401


async def test_a_revoked_machine_can_neither_register_nor_go_on(gateway: Gateway) -> None:
    token = await let_in(gateway)
    node = (await register(gateway, token)).json()
    assert (await heartbeat(gateway, node)).status_code == 200
    path = f"/api/machines/{token['machine_id']}"
    foreign = await gateway.client.delete(path, headers=gateway.login(OTHER_WALLET))
    problem(foreign, 404, "machine_not_found")
    as_node = {"Authorization": f"Bearer {node['node_token']}"}
    problem(await gateway.client.delete(path, headers=as_node), 403, "forbidden")
    revoked = await gateway.client.delete(path, headers=gateway.login(PROVIDER_WALLET))
    assert revoked.status_code == 204
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    problem(await heartbeat(gateway, node), 404, "node_not_found")
    problem(await register(gateway, token), 401, "machine_revoked")
    listed = await gateway.client.get("/api/machines", headers=gateway.login(PROVIDER_WALLET))
    ids = [machine["machine_id"] for machine in listed.json()["machines"]]
    assert token["machine_id"] not in ids


async def test_a_machine_revokes_itself_and_no_other(gateway: Gateway) -> None:
    token, other = await let_in(gateway), await let_in(gateway)
    foreign = await gateway.client.delete(
        f"/api/machines/{other['machine_id']}", headers=bearer(token)
    )
    problem(foreign, 403, "forbidden")
    own = f"/api/machines/{token['machine_id']}"
    assert (await gateway.client.delete(own, headers=bearer(token))).status_code == 204
    problem(await gateway.client.delete(own, headers=bearer(token)), 404, "machine_not_found")
    assert (await register(gateway, other)).status_code == 200
