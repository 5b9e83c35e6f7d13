"""A page shows what was asked for, and runs nobody else's script."""

from tests.support.api import (
    Gateway,
)
from tests.support.machine_api import begin


async def test_the_page_shows_the_machine_and_runs_nobody_elses_script(gateway: Gateway) -> None:
    codes = await begin(gateway, "attic 2")
    page = await gateway.client.get("/link", params={"code": codes["user_code"]})
    assert page.status_code == 200
    assert "attic 2" in page.text
    assert codes["user_code"] in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert (await gateway.client.get("/static/link.js")).status_code == 200
    empty = await gateway.client.get("/link")
    assert (empty.status_code, "Continue" in empty.text) == (200, True)
    evil = await gateway.client.get("/link", params={"code": "<script>x"})
    assert (evil.status_code, "<script>x" in evil.text) == (404, False)
