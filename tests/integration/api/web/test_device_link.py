"""The page on which a wallet lets a machine in, in a real browser."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import encode_defunct
from playwright.async_api import Browser, Page, ViewportSize
from redis.asyncio import Redis

from market.settings import Settings
from stack.servers import free_port
from tests.support.browser import needs_chromium, open_browser
from tests.support.gateway.api import PROVIDER, PROVIDER_WALLET, Gateway, open_gateway, problem
from tests.support.gateway.api_served import serve

PICTURES = os.environ.get("FAR_TEST_PICTURES")
"""A folder for pictures of the pages, for people to look at."""

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}

WALLET = """
window.ethereum = {
  request: async ({ method, params }) => {
    if (method === "eth_requestAccounts") return [WALLET_ADDRESS];
    if (method === "personal_sign") return window.signByWallet(params[0], params[1]);
    throw new Error("the page asks for " + method);
  },
};
"""
"""An EIP-1193 provider, whose key is in the test."""

pytestmark = needs_chromium


class Wallet:
    """Signs as a wallet does; remembers what it was asked to sign."""

    def __init__(self, *, willing: bool = True) -> None:
        self.requests: list[str] = []
        self._willing = willing

    async def attach(self, page: Page) -> None:
        await page.expose_function("signByWallet", self._sign)
        refusal = (
            ""
            if self._willing
            else (
                "window.signByWallet = () => "
                "Promise.reject(Object.assign(new Error(), {code: 4001}));"
            )
        )
        script = WALLET.replace("WALLET_ADDRESS", f'"{PROVIDER.address}"')
        await page.add_init_script(script + refusal)

    def _sign(self, message: str, wallet: str) -> str:
        assert wallet == PROVIDER.address
        text = bytes.fromhex(message.removeprefix("0x"))
        self.requests.append(text.decode())
        signed = PROVIDER.sign_message(encode_defunct(primitive=text))
        return "0x" + bytes(signed.signature).hex()


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    auth = {
        "jwt_secret": "a secret for the tests, long enough",
        "domain": f"127.0.0.1:{port}",
        "device_poll_interval": 0.01,
    }
    settings = make_settings(auth=auth, public_url=url)
    async with open_gateway(settings) as opened, serve(opened, port=port):
        yield opened


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


async def begin(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.client.post("/api/machines/device", json={"machine": "attic PC"})
    found: dict[str, Any] = answer.json()
    return found


async def open_page(browser: Browser, **size: int) -> tuple[Page, list[str]]:
    """The page, and what its console complains of: a policy's violation is such a complaint."""
    page = await browser.new_page(viewport=ViewportSize(**(size or DESKTOP)))
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


async def picture(page: Page, name: str) -> None:
    if PICTURES is not None:
        await page.screenshot(path=Path(PICTURES) / f"{name}.png")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_a_wallet_lets_a_machine_in(
    gateway: Gateway, browser: Browser, size: dict[str, int], request: pytest.FixtureRequest
) -> None:
    codes = await begin(gateway)
    page, complaints = await open_page(browser, **size)
    wallet = Wallet()
    await wallet.attach(page)
    await page.goto(codes["verification_uri"])
    where = request.node.callspec.id
    await picture(page, f"code-{where}")
    await page.get_by_label("Code").fill(codes["user_code"].lower())
    await page.get_by_role("button", name="Continue").click()
    await page.get_by_text("attic PC").first.wait_for()
    await picture(page, f"link-{where}")
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    await page.get_by_role("button", name="Sign with my wallet").click()
    await page.get_by_text("attic PC is linked").wait_for()
    await picture(page, f"approved-{where}")
    (text,) = wallet.requests
    assert codes["user_code"] in text
    assert "attic PC" in text
    body = {"device_code": codes["device_code"]}
    token = (await gateway.client.post("/api/machines/token", json=body)).json()
    assert token["wallet_address"] == PROVIDER_WALLET
    assert complaints == []


async def test_the_owner_says_no(gateway: Gateway, browser: Browser) -> None:
    codes = await begin(gateway)
    page, complaints = await open_page(browser)
    await page.goto(codes["verification_uri_complete"])
    await page.get_by_role("button", name="Not my machine").click()
    await page.get_by_text("Sent away").wait_for()
    body = {"device_code": codes["device_code"]}
    answer = await gateway.client.post("/api/machines/token", json=body)
    problem(answer, 400, "access_denied")
    assert complaints == []


async def test_without_a_wallet_or_its_consent_nothing_happens(
    gateway: Gateway, browser: Browser
) -> None:
    codes = await begin(gateway)
    page, _ = await open_page(browser)
    await page.goto(codes["verification_uri_complete"])
    await page.get_by_role("button", name="Sign with my wallet").click()
    await page.get_by_text("No wallet here").wait_for()
    unwilling, _ = await open_page(browser)
    await Wallet(willing=False).attach(unwilling)
    await unwilling.goto(codes["verification_uri_complete"])
    await unwilling.get_by_role("button", name="Sign with my wallet").click()
    await unwilling.get_by_text("Your wallet did not sign").wait_for()
    body = {"device_code": codes["device_code"]}
    answer = await gateway.client.post("/api/machines/token", json=body)
    problem(answer, 400, "authorization_pending")


async def test_the_policy_holds_in_a_browser(gateway: Gateway, browser: Browser) -> None:
    """A script that got into the page would not run."""
    codes = await begin(gateway)
    page, complaints = await open_page(browser)
    await page.goto(codes["verification_uri_complete"])
    await page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        " document.body.append(s); }"
    )
    assert await page.evaluate("window.bad") is None
    assert any("Content Security Policy" in each for each in complaints)
