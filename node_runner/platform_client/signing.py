"""What a wallet's key needs before it signs for a platform."""

import datetime as dt
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from mesh import signed_texts
from mesh.node_api import NONCE_PATH
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.http import request


@dataclass(frozen=True, slots=True)
class Challenge:
    """What makes a text to sign good for one platform, for a while, and once."""

    platform: str
    nonce: str
    expires_at: str


def get_challenge(http: httpx.Client) -> Challenge:
    """A fresh nonce of the platform's.

    Raises:
        PlatformError: it does not answer, or is not the platform that it says it is.
    """
    answer = request(http, "GET", NONCE_PATH, required=["nonce", "domain", "expires_in"])
    check_name(http, answer["domain"])
    lifetime = dt.timedelta(seconds=min(answer["expires_in"], signed_texts.MAX_LIFETIME))
    expires_at = signed_texts.format_instant(dt.datetime.now(dt.UTC) + lifetime)
    return Challenge(answer["domain"], answer["nonce"], expires_at)


def check_name(http: httpx.Client, told: object) -> None:
    """Nothing is signed for another platform than the one in the URL: it could use that there.

    Raises:
        PlatformError: the platform calls itself otherwise.
    """
    domain = urlsplit(str(http.base_url)).netloc
    if told not in (domain, domain.partition(":")[0]):
        raise PlatformError(
            f"The platform at {domain} wants a signature for {told!r}. Use the URL under which the "
            "platform knows itself; if that is this one, do not trust it."
        )
