"""The platform is asked where a model's weights are: which error a node gets for which answer."""

from typing import Any

import pytest
from eth_account import Account

from mesh.errors import WeightsError, WeightsNotPublished, WeightsRefused, WeightsUnreachable
from mesh.node_api import NONCE_PATH
from node_runner.platform_client.weight_listing import ListingRequest, WalletKey
from node_runner.weights.published_source import WeightListing
from tests.support.gateway.platform_server import TEMPORARY, Answer, PlatformServer, problem

PATH = "/api/models/far/m/files"
FILES = {"files": [{"name": "a", "url": "https://a"}], "manifest_sha256": "ab"}
EXPECTED = WeightListing("far/m", {"a": "https://a"}, "ab")


def ask(server: PlatformServer, credential: str | WalletKey = "a token") -> WeightListing:
    return ListingRequest(server.url, "far/m", credential).send()


def test_a_token_is_sent_and_a_wallet_signs(server: PlatformServer) -> None:
    server.answers[PATH] = [Answer(200, FILES)]
    domain = server.url.removeprefix("http://")
    challenge = {"nonce": "once", "expires_in": 300, "domain": domain}
    server.answers[NONCE_PATH] = [Answer(200, challenge)]
    assert ask(server) == EXPECTED
    account = Account.create()
    assert ask(server, WalletKey(account.address, bytes(account.key))) == EXPECTED
    first, _, last = server.requests
    assert (first.method, first.token) == ("GET", "a token")
    assert (last.method, last.token, last.body["nonce"]) == ("POST", None, "once")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, problem("weights_not_published"), WeightsNotPublished),
        (404, problem("not_found"), WeightsError),
        (404, problem("model_not_found"), WeightsError),
        (403, problem("forbidden"), WeightsError),
        (200, FILES | {"files": ["a"]}, WeightsRefused),
        (200, FILES | {"files": [{"name": "a"}]}, WeightsRefused),
    ],
)
def test_a_refusal(
    server: PlatformServer, status: int, body: Any, error: type[WeightsError]
) -> None:
    server.answers[PATH] = [Answer(status, body)]
    with pytest.raises(error) as raised:
        ask(server)
    assert type(raised.value) is error


def test_urls_may_be_relative_to_the_list(server: PlatformServer) -> None:
    files = [{"name": "a", "url": "files/a?token=t"}, {"name": "b", "url": "/b"}]
    server.answers[PATH] = [Answer(200, FILES | {"files": files})]
    assert ask(server).urls == {
        "a": f"{server.url}/api/models/far/m/files/a?token=t",
        "b": f"{server.url}/b",
    }


def test_a_hub_is_named_by_the_platform(server: PlatformServer) -> None:
    refused = problem("weights_not_published") | {"repository": "owner/other"}
    server.answers[PATH] = [Answer(404, refused)]
    with pytest.raises(WeightsNotPublished) as raised:
        ask(server)
    assert raised.value.repository == "owner/other"


def test_a_platform_that_says_when_to_come_back_is_asked_again(server: PlatformServer) -> None:
    busy = Answer(503, problem("unavailable"), {"Retry-After": "1"})
    server.answers[PATH] = [busy, Answer(200, FILES)]
    assert ask(server) == EXPECTED


def test_nothing_is_signed_for_another_platform(server: PlatformServer) -> None:
    challenge = {"nonce": "once", "expires_in": 300, "domain": "other.example"}
    server.answers[NONCE_PATH] = [Answer(200, challenge)]
    account = Account.create()
    with pytest.raises(WeightsError, match=r"wants a signature for 'other.example'"):
        ask(server, WalletKey(account.address, bytes(account.key)))
    assert server.paths == [NONCE_PATH]


@pytest.mark.parametrize("answer", TEMPORARY.values(), ids=TEMPORARY)
def test_what_may_pass_is_an_outage(server: PlatformServer, answer: Answer) -> None:
    """A node that has the span from before serves it meanwhile."""
    server.answers[PATH] = [answer]
    with pytest.raises(WeightsUnreachable):
        ask(server)
