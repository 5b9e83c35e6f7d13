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
    server.answers[NONCE_PATH] = [Answer(200, {"nonce": "once"})]
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
        (404, problem("not_found"), WeightsNotPublished),
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


@pytest.mark.parametrize("answer", TEMPORARY.values(), ids=TEMPORARY)
def test_what_may_pass_is_an_outage(server: PlatformServer, answer: Answer) -> None:
    """A node that has the span from before serves it meanwhile."""
    server.answers[PATH] = [answer]
    with pytest.raises(WeightsUnreachable):
        ask(server)
