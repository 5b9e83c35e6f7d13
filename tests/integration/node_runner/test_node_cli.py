"""`far-node` as processes, against a gateway behind a real server."""

import asyncio
import datetime as dt
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from market.nodes import live_lookup
from market.settings import Settings
from mesh import signed_texts
from node_runner.service.exit_codes import CONFIG_ERROR, TEMPORARY_FAILURE
from stack.dev_chain_client import write_keystore
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.gateway.api import PROVIDER, PROVIDER_WALLET
from tests.support.node.machine import PASSWORD, PATIENCE, Machine, machine_at, until


@pytest.fixture
async def machine(
    make_settings: Callable[..., Settings], redis: Redis, redis_url: str, tmp_path: Path
) -> AsyncIterator[Machine]:
    async with machine_at(make_settings, redis_url, tmp_path) as opened:
        yield opened


@pytest.mark.slow
async def test_login_serve_see_drain_and_log_out(machine: Machine) -> None:
    said = await machine.login()
    assert f"attic registers nodes for {PROVIDER_WALLET}" in said
    login = machine.token()
    assert login["wallet_address"] == PROVIDER_WALLET
    node = await machine.serve("--device", "cpu", "--span", "2:4", "--max-sessions", "3")
    (found,) = await machine.nodes(1)
    assert (found.wallet_address, found.layers_served) == (PROVIDER_WALLET, [2, 3])
    status = await machine.status()
    (shown,) = status["running"]
    assert (shown["node_id"], shown["layers"], shown["phase"]) == (found.node_id, [2, 4], "serving")
    assert (shown["sessions"], shown["max_sessions"]) == (0, 3)
    assert login["token"] not in json.dumps(status)
    assert status["wallets"][0]["earnings"]["total_tokens_served"] == 0
    assert found.node_id in await machine.run("status")
    said = await machine.run("drain")
    assert "Asked 1 node to finish and leave." in said
    assert await node.wait() == 0
    assert await live_lookup.available_nodes(machine.gateway.redis, MODEL_ID) == []
    assert "Logged out." in await machine.run("logout")
    assert not (machine.home / ".config" / "far-node" / "login.json").exists()
    headers = {"Authorization": f"Bearer {login['token']}"}
    async with httpx.AsyncClient(base_url=machine.url) as http:
        again = await http.delete(f"/api/machines/{login['machine_id']}", headers=headers)
    assert again.json()["code"] == "machine_not_found"


@pytest.mark.slow
async def test_a_node_needs_no_weights_but_the_platforms(machine: Machine) -> None:
    """Nor a path, nor a span: the platform places it, and gives it its layers out of a folder."""
    await machine.login()
    node = await machine.start(
        *("start", "--model", MODEL_ID, "--device", "cpu", "--kv-gb", "0.05"),
        *("--redis", machine.redis_url, "--cache", str(machine.home / "spans")),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    (found,) = await machine.nodes(1)
    assert (found.placeable, found.by_machine) == (True, True)
    (kept,) = (machine.home / "spans").glob("*/span.json")
    assert json.loads(kept.read_text())["checked"] == "manifest"
    node.send_signal(signal.SIGINT)
    output, _ = await asyncio.wait_for(node.communicate(), PATIENCE)
    assert node.returncode == 0, output.decode()


async def test_a_person_lets_the_machine_in(machine: Machine) -> None:
    waiting = await machine.start("login", "--discovery", machine.url, "--machine", "attic")
    assert waiting.stdout is not None
    shown = await asyncio.wait_for(waiting.stdout.readuntil(b"Waiting"), PATIENCE)
    code = shown.decode().split("?code=")[1].split()[0]
    asked = {"user_code": code, "wallet_address": PROVIDER.address}
    async with httpx.AsyncClient(base_url=machine.url) as http:
        message = (await http.post("/api/machines/message", json=asked)).json()["message"]
        signature = signed_texts.sign(message, PROVIDER.key)
        await http.post("/api/machines/approve", json={**asked, "signature": signature})
    rest, _ = await asyncio.wait_for(waiting.communicate(), PATIENCE)
    assert waiting.returncode == 0
    assert PROVIDER_WALLET in rest.decode()


async def test_a_person_sends_the_machine_away(machine: Machine) -> None:
    waiting = await machine.start("login", "--discovery", machine.url)
    assert waiting.stdout is not None
    shown = await asyncio.wait_for(waiting.stdout.readuntil(b"Waiting"), PATIENCE)
    code = shown.decode().split("?code=")[1].split()[0]
    async with httpx.AsyncClient(base_url=machine.url) as http:
        await http.post("/api/machines/deny", json={"user_code": code})
    rest, _ = await asyncio.wait_for(waiting.communicate(), PATIENCE)
    assert waiting.returncode == CONFIG_ERROR
    assert "did not let this machine in" in " ".join(rest.decode().split())


@pytest.mark.slow
async def test_a_revoked_machine_is_told_to_log_in_again(machine: Machine) -> None:
    await machine.login()
    node = await machine.serve("--device", "cpu", "--span", "2:4")
    await machine.nodes(1)
    headers = machine.gateway.login(PROVIDER_WALLET)
    path = f"/api/machines/{machine.token()['machine_id']}"
    assert (await machine.gateway.client.delete(path, headers=headers)).status_code == 204
    output, _ = await asyncio.wait_for(node.communicate(), PATIENCE)
    assert node.returncode == TEMPORARY_FAILURE
    assert b"does not know this node any more" in b" ".join(output.split())
    refused = await machine.serve("--device", "cpu", "--span", "2:4")
    output, _ = await asyncio.wait_for(refused.communicate(), PATIENCE)
    assert refused.returncode == CONFIG_ERROR
    assert b"Log in again" in b" ".join(output.split())


@pytest.mark.slow
async def test_several_devices_under_one_command(machine: Machine) -> None:
    """Two nodes on the CPU stand for two GPUs: one process each, one of which dies."""
    await machine.login()
    parent = await machine.serve("--device", "cpu", "--device", "cpu", "--span", "2:4")
    before = {node.node_id: node.registration for node in await machine.nodes(2)}
    running = (await machine.status())["running"]
    children = [each for each in running if each["kind"] == "node"]
    (above,) = [each for each in running if each["kind"] == "parent"]
    assert {each["parent"] for each in children} == {above["pid"]} == {parent.pid}
    assert {each["node_id"] for each in children} == before.keys()
    os.kill(children[0]["pid"], 9)

    async def replaced() -> bool:
        now = await live_lookup.available_nodes(machine.gateway.redis, MODEL_ID)
        return any(node.registration > before[node.node_id] for node in now)

    await until(replaced, "the same node, registered again")
    parent.terminate()
    output, _ = await asyncio.wait_for(parent.communicate(), PATIENCE)
    assert parent.returncode == 0
    assert output.count(b"node_started") == 3
    assert b"[cpu]" in output
    for each in children:
        with pytest.raises(ProcessLookupError):
            os.kill(each["pid"], 0)


@pytest.mark.slow
async def test_children_do_not_outlive_their_parent(machine: Machine) -> None:
    await machine.login()
    parent = await machine.serve("--device", "cpu", "--device", "cpu", "--span", "2:4")
    await machine.nodes(2)
    parent.kill()
    await parent.communicate()
    machine.processes.remove(parent)

    async def gone() -> bool:
        ended, text = await machine.end("status")
        return ended == 3 and "No node" in text

    async def unregistered() -> bool:
        return not await live_lookup.available_nodes(machine.gateway.redis, MODEL_ID)

    await until(gone, "no process left")
    await until(unregistered, "no entry left")


@pytest.mark.slow
async def test_of_a_machine_and_its_copy_the_later_one_serves(machine: Machine) -> None:
    await machine.login()
    first = await machine.serve("--device", "cpu", "--span", "2:4")
    [node] = await machine.nodes(1)
    copy = replace(machine, home=machine.home / "copy")
    shutil.copytree(machine.home, copy.home, ignore=shutil.ignore_patterns("copy", "run", "spans"))
    await copy.serve("--device", "cpu", "--span", "2:4")
    async with asyncio.timeout(PATIENCE):
        output, _ = await first.communicate()
    assert first.returncode == CONFIG_ERROR
    assert "delete device_id" in output.decode()
    [left] = await live_lookup.available_nodes(machine.gateway.redis, MODEL_ID)
    assert (left.node_id, left.registration) == (node.node_id, node.registration + 1)


@pytest.mark.slow
async def test_outside_its_hours_a_node_waits(machine: Machine) -> None:
    await machine.login()
    waiting = await machine.serve("--device", "cpu", "--schedule", hours(2, 3))

    async def parent() -> dict[str, Any] | None:
        return next(iter((await machine.status())["running"]), None)

    shown = await until(parent, "a parent that waits")
    assert (shown["phase"], shown["until"]) == ("waiting", hours(2, 3)[:5])
    assert shown["children"] == [{"device": "cpu", "pid": None}]
    await machine.run("drain")
    assert await asyncio.wait_for(waiting.wait(), PATIENCE) == 0


@pytest.mark.slow
async def test_within_its_hours_a_node_serves(machine: Machine) -> None:
    await machine.login()
    serving = await machine.serve("--device", "cpu", "--span", "2:4", "--schedule", hours(-2, 2))
    await machine.nodes(1)
    assert "serving until" in await machine.run("status")
    serving.send_signal(signal.SIGINT)
    output, _ = await asyncio.wait_for(serving.communicate(), PATIENCE)
    assert serving.returncode == 0, output.decode()
    assert b"node_drained" in output, output.decode()
    await machine.nodes(0)


def hours(start: int, end: int) -> str:
    """A window, in hours from now."""
    now = dt.datetime.now()
    times = [(now + dt.timedelta(hours=each)).strftime("%H:%M") for each in (start, end)]
    return "-".join(times)


async def test_mistakes_that_the_platform_tells(machine: Machine) -> None:
    refused = await machine.run("login", "--discovery", "mesh.example", status=CONFIG_ERROR)
    assert "begins with https://" in refused
    away = await machine.run("login", "--discovery", "http://127.0.0.1:9", status=CONFIG_ERROR)
    assert "does not answer" in away
    keyfile = machine.home / "wallet.json"
    write_keystore(PROVIDER, keyfile, PASSWORD)
    elsewhere = machine.url.replace("127.0.0.1", "localhost")
    foreign = await machine.run(
        *("login", "--discovery", elsewhere, "--keyfile", str(keyfile)),
        status=CONFIG_ERROR,
        FAR_NODE_PASSWORD=PASSWORD,
    )
    assert "wants a signature for '127.0.0.1" in foreign


@pytest.mark.slow
async def test_doctor_finds_what_keeps_a_machine_from_serving(machine: Machine) -> None:
    await machine.login()
    found = json.loads(await machine.run("doctor", "--device", "cpu", "--json"))
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert found["healthy"]
    assert (states["platform"], states["clock"], states["login"]) == ("ok", "ok", "ok")
    (model,) = found["models"]
    assert (model["model_id"], model["layers"], model["fits"]["none"]) == (MODEL_ID, 6, 6)
    assert model["decode"] > 0
    # price * layers/s * 3600, over six layers and the edge's 0.941
    expected = 0.0001 * model["decode"] * 3600 / 6.941
    assert float(model["per_hour"]) == pytest.approx(expected)
    away = await machine.run("doctor", "--quick", "--discovery", "http://127.0.0.1:9", status=1)
    assert "does not answer" in away
    assert "FAIL" in away


@pytest.mark.slow
async def test_bench_with_random_weights_and_with_the_models_own(machine: Machine) -> None:
    options = ["bench", "--model", MODEL_ID, "--device", "cpu", "--seconds", "0.3", "--json"]
    shaped = json.loads(await machine.run(*options, "--discovery", machine.url))
    own = json.loads(await machine.run(*options, "--path", str(DEMO_MODEL)))
    assert shaped["weights"] == "random, in the model's shape"
    assert own["weights"] == "the model's own"
    for figures in (shaped, own):
        assert figures["layers_of_model"] == 6
        one, several = figures["decode_layers_per_second"], figures["batch_layers_per_second"]
        assert 0 < one < several
        assert figures["tokens_per_second_all_layers"] == pytest.approx(one / 6)
    refused = await machine.run(
        *options[:3], "--quantization", "int3", "--path", str(DEMO_MODEL), status=CONFIG_ERROR
    )
    assert "A quantization is one of none, int8, nf4" in refused
