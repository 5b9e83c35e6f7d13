"""Asks the platform where a model's weights are."""

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

import structlog

from mesh import signed_texts
from mesh.errors import WeightsError, WeightsNotPublished, WeightsRefused, WeightsUnreachable
from node_runner.platform_client.errors import (
    PlatformError,
    PlatformRefused,
    PlatformUnreachable,
)
from node_runner.platform_client.http import client, request
from node_runner.platform_client.signing import get_challenge
from node_runner.weights.published_source import WeightListing

log = structlog.get_logger()

TIMEOUT = 20.0
"""Seconds without a byte: the platform signs a URL for each file."""

REPLY_FIELDS = ("files", "manifest_sha256")

PATIENCE = 60.0
"""Seconds in which the platform is asked again while it says to come back, such as while it hashes
the weights."""


@dataclass(frozen=True, slots=True)
class WalletKey:
    """A wallet's key, with which it signs a nonce of the platform's."""

    address: str
    private_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListingRequest:
    """Asks the platform for the files of a model, as often as it is sent.

    ``platform``: its URL. ``credential``: the token of a machine or a node, or a wallet that signs.
    """

    platform: str
    model_id: str
    credential: str | WalletKey = field(repr=False)

    def send(self) -> WeightListing:
        """
        Raises:
            WeightsNotPublished: the platform gives no weights of this model out; it names the hub's
                repository that has them.
            WeightsUnreachable: no answer, or none that is the platform's.
            WeightsRefused: the answer lists no files.
            WeightsError: the platform does not let us have them.
        """
        try:
            answer = self._patiently()
        except PlatformUnreachable as error:
            raise WeightsUnreachable(
                f"The platform does not say where the weights are: {error}"
            ) from error
        except PlatformRefused as error:
            if error.code == WeightsNotPublished.code:
                repository = str(error.document.get("repository", self.model_id))
                raise WeightsNotPublished(str(error), repository=repository) from error
            raise WeightsError(f"The platform says: {error}") from error
        except PlatformError as error:
            raise WeightsError(str(error)) from error
        base = f"{self.platform.rstrip('/')}{self._path}"
        try:
            urls = {file["name"]: urljoin(base, file["url"]) for file in answer["files"]}
        except (KeyError, TypeError, ValueError):
            raise WeightsRefused(f"{self.platform} answered without a list of files.") from None
        return WeightListing(self.model_id, urls, answer["manifest_sha256"])

    @property
    def _path(self) -> str:
        return f"/api/models/{self.model_id}/files"

    def _patiently(self) -> dict[str, Any]:
        """The platform's answer, or its last one when it asked for more patience than there is."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask()
            except PlatformUnreachable as error:
                if not error.retry_after or time.monotonic() + error.retry_after > give_up:
                    raise
                log.info("weights_awaited", reason=str(error), retry_in=error.retry_after)
                time.sleep(error.retry_after)

    def _ask(self) -> dict[str, Any]:
        path = self._path
        with client(self.platform, timeout=TIMEOUT) as http:
            if isinstance(self.credential, str):
                return request(http, "GET", path, token=self.credential, required=REPLY_FIELDS)
            challenge = get_challenge(http)
            message = signed_texts.weights_message(
                platform=challenge.platform,
                wallet_address=self.credential.address,
                model_id=self.model_id,
                nonce=challenge.nonce,
                expires_at=challenge.expires_at,
            )
            body = {
                "wallet_address": self.credential.address,
                "nonce": challenge.nonce,
                "expires_at": challenge.expires_at,
                "signature": signed_texts.sign(message, self.credential.private_key),
            }
            return request(http, "POST", path, body, required=REPLY_FIELDS)
