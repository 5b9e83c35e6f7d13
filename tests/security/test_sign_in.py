"""A stranger signs in with a message that the parser would never be through with."""

import asyncio
import base64
import time

import httpx
import pytest

from market.identity.login_message import MAX_MESSAGE
from tests.support.gateway.api import WALLET, Gateway, problem
from tests.support.gateway.login import fresh_nonce, login, login_message, signed

LIMIT = 0.05
"""Seconds: the best of several tries, since this machine does other things, too."""

RESOURCES = "\nResources:" + "\n- a://b:" * 40

MESSAGES = {
    "resources": login_message("f" * 32) + RESOURCES,
    "resources, and a space at the end": login_message("f" * 32) + RESOURCES + " ",
    "resources, and a line too many": login_message("f" * 32) + RESOURCES + "\n- \n",
    "resources with all that a URI may have": (
        login_message("f" * 32) + "\nResources:" + "\n- a://b:/?a:b?c#:/?" * 40
    ),
    "a statement of colons": login_message("f" * 32, statement="a://" * 900),
    "a domain of schemes": "a://" * 900 + login_message("f" * 32),
    "as many lines as fit": "\n" * MAX_MESSAGE,
    "a time of digits": login_message("f" * 32, **{"Not Before": "2" * 3000}),
    "a chain of digits": login_message("f" * 32).replace("ID: 56", "ID: " + "9" * 3000),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
async def test_a_login_is_answered_at_once(empty_gateway: Gateway, message: str) -> None:
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        answer = await login(empty_gateway, message)
        taken.append(time.perf_counter() - began)
        assert answer.status_code == 401, answer.text
    assert min(taken) < LIMIT, taken


async def test_the_gateway_serves_on_while_strangers_try(empty_gateway: Gateway) -> None:
    asking = [
        asyncio.create_task(login(empty_gateway, message))
        for message in MESSAGES.values()
        for _ in range(5)
    ]
    nonce = await fresh_nonce(empty_gateway)
    message = login_message(nonce)
    assert (await login(empty_gateway, message)).status_code == 200
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {401}


async def test_forty_resources_and_a_request_id_are_no_hindrance(empty_gateway: Gateway) -> None:
    message = login_message(await fresh_nonce(empty_gateway)) + "\nRequest ID: 7" + RESOURCES
    assert (await login(empty_gateway, message)).status_code == 200


async def test_a_lower_case_address_signs_in(empty_gateway: Gateway) -> None:
    message = login_message(await fresh_nonce(empty_gateway), address=WALLET)
    assert (await login(empty_gateway, message)).json()["wallet_address"] == WALLET


async def test_a_token_of_brackets(empty_gateway: Gateway) -> None:
    """Its header is JSON, deeper than a parser goes."""
    header = base64.urlsafe_b64encode(b"[" * 30_000).decode().rstrip("=")
    headers = {"Authorization": f"Bearer {header}.e30.AAAA"}
    answer = await empty_gateway.client.get("/api/billing/balance", headers=headers)
    problem(answer, 401, "token_invalid")


BODIES = {
    "brackets": "[" * 500_000,
    "objects": '{"a":' * 150_000,
    "a number of digits": '{"wallet_address": ' + "9" * 900_000 + "}",
    "a giant exponent": '{"wallet_address": 1e999999999}',
    "a text of escapes": '{"wallet_address": "' + "\\u00e9" * 150_000 + '"}',
    "surrogates": '{"message": "' + "\\ud800" * 150_000 + '"}',
    "fields": "{" + ",".join(f'"{number}":0' for number in range(80_000)) + "}",
    "a field that comes again and again": "{" + '"message":"",' * 70_000 + '"message":""}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_that_is_no_login(empty_gateway: Gateway, body: str) -> None:
    """As large as a body may be: refused by a problem document, and not in a time that grows faster
    than the body."""
    taken = []
    for _ in range(3):
        began = time.thread_time()
        answer: httpx.Response = await empty_gateway.client.post(
            "/api/auth/login", content=body, headers={"Content-Type": "application/json"}
        )
        taken.append(time.thread_time() - began)
        assert answer.status_code in (400, 413, 422), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert min(taken) < 1, taken


async def test_prices_of_a_node_with_giant_exponents(empty_gateway: Gateway) -> None:
    """A Decimal of a few characters may have a million digits."""
    body = {
        "wallet_address": WALLET,
        "model_id": "m",
        "gpu_model": "",
        "vram_gb": 0,
        "public_addr": "a:1",
        "location": "",
    }
    for price in ("1e999999", "1e-999999", "0e999999", "9" * 100_000, "sNaN", "Infinity"):
        began = time.thread_time()
        answer = await empty_gateway.client.post(
            "/api/nodes/register-distributed", json=body | {"min_price": price}
        )
        assert answer.status_code in (404, 413, 422), (price, answer.text)
        assert time.thread_time() - began < 1, price


async def test_a_signature_counts_for_its_text_alone(empty_gateway: Gateway) -> None:
    """What follows the text that was signed is not read as part of it."""
    message = login_message(await fresh_nonce(empty_gateway))
    answer = await login(empty_gateway, message + RESOURCES, signature=signed(message))
    problem(answer, 401, "signature_mismatch")
