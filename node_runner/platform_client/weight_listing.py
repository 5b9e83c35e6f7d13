"""Asking the platform where a model's weights are."""

from dataclasses import dataclass
from typing import Any

import httpx

from mesh import signed_texts
from mesh.errors import (
    WeightsError,
    WeightsNotPublished,
    WeightsRefused,
    WeightsUnreachable,
)
from node_runner.weights.published_source import Listing

TIMEOUT = 20.0
MAX_ANSWER = 4 * 2**20
"""Bytes: a URL for each of some thousand files."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """Proves itself over a nonce of the platform's."""

    address: str
    private_key: bytes


@dataclass(frozen=True, slots=True)
class AskPlatform:
    """Gives a listing each time it is called.

    ``token``: a machine's or a node's; without one the wallet signs.
    """

    platform: str
    model_id: str
    token: str | None = None
    wallet: Wallet | None = None

    def __call__(self) -> Listing:
        """
        Raises:
            WeightsNotPublished: the platform has no weights of this model; look elsewhere.
            WeightsUnreachable: no answer.
            WeightsError: it does not let us have them.
        """
        try:
            with httpx.Client(base_url=self.platform, timeout=TIMEOUT) as http:
                answer = self._ask(http)
        except httpx.HTTPError as error:
            raise WeightsUnreachable(
                f"{self.platform} does not say where the weights are ({type(error).__name__})."
            ) from None
        try:
            content: Any = answer.json() if len(answer.content) <= MAX_ANSWER else {}
            if answer.is_error:
                _refuse(answer.status_code, content)
            files = {entry["name"]: entry["url"] for entry in content["files"]}
            return Listing(self.model_id, files, content["manifest_sha256"])
        except (ValueError, KeyError, TypeError):
            raise WeightsRefused(
                f"{self.platform} answered {answer.status_code} without a list of files."
            ) from None

    def _ask(self, http: httpx.Client) -> httpx.Response:
        path = f"/api/models/{self.model_id}/files"
        if self.token is not None or self.wallet is None:
            return http.get(path, headers={"Authorization": f"Bearer {self.token}"})
        nonce = http.get("/api/auth/nonce").raise_for_status().json()["nonce"]
        address = self.wallet.address
        message = signed_texts.weights_message(
            wallet_address=address, model_id=self.model_id, nonce=nonce
        )
        signature = signed_texts.sign(message, self.wallet.private_key)
        body = {"wallet_address": address, "nonce": nonce, "signature": signature}
        return http.post(path, json=body)


def _refuse(status: int, problem: Any) -> None:
    code, detail = problem["code"], problem["detail"]
    if code in (WeightsNotPublished.code, "not_found"):
        raise WeightsNotPublished(detail)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
        raise WeightsUnreachable(f"The platform says: {detail} ({code})")
    raise WeightsError(f"The platform says: {detail} ({code})")
