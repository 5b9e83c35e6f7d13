"""The weights that the operator published: their manifests, and URLs for a while."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from market.clients.aws import open_s3
from market.clients.http_reader import read_url
from market.errors import Unavailable
from market.settings.models import ModelSettings, WeightSettings
from mesh.checkpoint import manifest
from mesh.checkpoint.manifest import Manifest
from mesh.errors import WeightsNotPublished, WeightsRefused

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 30
"""Seconds after which to ask again while S3, or the operator's own server, does not answer."""


@dataclass(frozen=True, slots=True)
class HashedManifest:
    """A manifest and the SHA-256 of its bytes."""

    manifest: Manifest
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """``size`` in bytes."""

    name: str
    size: int
    sha256: str
    url: str


@dataclass(frozen=True, slots=True)
class WeightListing:
    """Files and their URLs, the manifest's among them."""

    manifest_sha256: str
    files: list[WeightFile]


class PublishedWeights:
    """Keeps manifests for a while; signs URLs each time, which needs no network.

    S3's credentials, region and endpoint are boto3's: the machine's role, or its usual variables.
    """

    def __init__(self, models: list[ModelSettings], settings: WeightSettings) -> None:
        self._models = {model.id: model for model in models}
        self._settings = settings
        self._kept: dict[str, tuple[float, HashedManifest, int]] = {}
        self._reading = asyncio.Lock()
        self._client: Any = None

    async def listing(self, model_id: str) -> WeightListing:
        """What a node needs to fetch a model.

        Raises:
            WeightsNotPublished: the operator did not publish this model.
            Unavailable: S3 or his server does not give the manifest.
        """
        model = self._models[model_id]
        if model.s3 is None and model.weights_url is None:
            raise WeightsNotPublished(f"The operator did not publish the weights of {model_id}.")
        async with self._reading:
            published, size = await self._published(model)
        return await asyncio.to_thread(self._list, model, published, size)

    async def _published(self, model: ModelSettings) -> tuple[HashedManifest, int]:
        read_at, published, size = self._kept.get(model.id, (0.0, None, 0))
        if published is not None and time.monotonic() - read_at < self._settings.manifest_ttl:
            return published, size
        try:
            content = await asyncio.to_thread(self._read, model)
            found = HashedManifest(
                await asyncio.to_thread(manifest.read_manifest, content),
                hashlib.sha256(content).hexdigest(),
            )
        except (BotoCoreError, ClientError, httpx.HTTPError, WeightsRefused) as error:
            log.error("weights_manifest_unreadable", model_id=model.id, reason=str(error))
            raise Unavailable(
                f"The manifest of {model.id} cannot be read now.", retry_after=RETRY_AFTER_SECONDS
            ) from None
        self._kept[model.id] = (time.monotonic(), found, len(content))
        return found, len(content)

    def _read(self, model: ModelSettings) -> bytes:
        if model.s3 is not None:
            bucket, key = _bucket_and_key(model.s3, manifest.NAME)
            body = self._s3().get_object(Bucket=bucket, Key=key)["Body"]
            content: bytes = body.read(manifest.MAX_BYTES + 1)
        else:
            content = read_url(_public_url(model, manifest.NAME), most=manifest.MAX_BYTES)
        if len(content) > manifest.MAX_BYTES:
            raise WeightsRefused("The manifest is larger than it may be.")
        return content

    def _list(self, model: ModelSettings, published: HashedManifest, size: int) -> WeightListing:
        own = WeightFile(manifest.NAME, size, published.sha256, self._url(model, manifest.NAME))
        files = [
            WeightFile(name, file.size, file.sha256, self._url(model, name))
            for name, file in published.manifest.files.items()
        ]
        return WeightListing(published.sha256, [own, *files])

    def _url(self, model: ModelSettings, name: str) -> str:
        if model.s3 is None:
            return _public_url(model, name)
        bucket, key = _bucket_and_key(model.s3, name)
        url: str = self._s3().generate_presigned_url(
            "get_object",
            Params={"Bucket": bucket, "Key": key},
            ExpiresIn=self._settings.url_ttl,
        )
        return url

    def _s3(self) -> Any:
        if self._client is None:
            self._client = open_s3()
        return self._client


def _bucket_and_key(s3: str, name: str) -> tuple[str, str]:
    bucket, _, prefix = s3.partition("/")
    return bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/")


def _public_url(model: ModelSettings, name: str) -> str:
    return f"{(model.weights_url or '').rstrip('/')}/{quote(name)}"
