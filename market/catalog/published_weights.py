"""The weights of the models on offer: their manifests, and where their files are for a while."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from market.catalog.local_weights import FolderContents, LocalWeights, has_weights
from market.clients.aws import open_s3
from market.clients.http_reader import read_url
from market.errors import Unavailable
from market.settings.models import ModelSettings, WeightSettings
from mesh.checkpoint import manifest
from mesh.checkpoint.manifest import Manifest
from mesh.errors import WeightsMissing, WeightsNotPublished, WeightsRefused

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
    """``size`` in bytes. ``url``: none where the gateway gives the file out itself."""

    name: str
    size: int
    sha256: str
    url: str | None


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file in a folder of the operator's, and the hash that its manifest has."""

    path: Path
    sha256: str


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
        self._folders = {
            model.id: LocalWeights(model.id, Path(model.path))
            for model in models
            if model.path is not None and not _is_elsewhere(model) and has_weights(Path(model.path))
        }
        self._repositories = {model.id: _repository(model) for model in models}
        self._settings = settings
        self._kept: dict[str, tuple[float, HashedManifest, int]] = {}
        self._reading = asyncio.Lock()
        self._client: Any = None

    async def listing(self, model_id: str) -> WeightListing:
        """What a node needs to fetch a model.

        Raises:
            WeightsNotPublished: the operator gives no weights of this model out; says which
                repository of the hub has them.
            Unavailable: S3, the operator's server or his folder does not give the manifest now.
        """
        model = self._models[model_id]
        if _is_elsewhere(model):
            async with self._reading:
                published, size = await self._published(model)
            return await asyncio.to_thread(self._list, model, published, size)
        if model_id not in self._folders:
            raise WeightsNotPublished(
                f"The operator did not publish the weights of {model_id}.",
                repository=self._repositories[model_id],
            )
        contents = await self._contents(model_id)
        published = HashedManifest(contents.manifest, contents.sha256)
        return _listing(published, len(contents.content), lambda _: None)

    async def file(self, model_id: str, name: str) -> FolderFile | bytes:
        """A file that the gateway gives out itself; of the manifest, its bytes.

        Raises:
            WeightsMissing: the gateway has no such file of this model.
            Unavailable: the folder cannot be read now.
        """
        if model_id in self._folders:
            contents = await self._contents(model_id)
            if name == manifest.NAME:
                return contents.content
            # By the manifest's names alone: nothing else in the folder, or above it, is there.
            if name in contents.manifest.files:
                return FolderFile(
                    self._folders[model_id].folder / name, contents.manifest.files[name].sha256
                )
        raise WeightsMissing(f"There is no {name!r} of {model_id} here.")

    async def _contents(self, model_id: str) -> FolderContents:
        try:
            return await self._folders[model_id].contents()
        except (OSError, WeightsRefused) as error:
            raise _unreadable(model_id, error) from None

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
            raise _unreadable(model.id, error) from None
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
        return _listing(published, size, lambda name: self._url(model, name))

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


def _is_elsewhere(model: ModelSettings) -> bool:
    """Whether the operator has put a model's weights into S3, or on another server."""
    return model.s3 is not None or model.weights_url is not None


def _repository(model: ModelSettings) -> str:
    """The hub's repository: by the model's path, unless that is a folder."""
    return model.id if model.path is None or Path(model.path).is_dir() else model.path


def _listing(
    published: HashedManifest, size: int, url_of: Callable[[str], str | None]
) -> WeightListing:
    """``size``: of the manifest's bytes."""
    own = WeightFile(manifest.NAME, size, published.sha256, url_of(manifest.NAME))
    files = [
        WeightFile(name, file.size, file.sha256, url_of(name))
        for name, file in published.manifest.files.items()
    ]
    return WeightListing(published.sha256, [own, *files])


def _unreadable(model_id: str, error: Exception) -> Unavailable:
    log.error("weights_manifest_unreadable", model_id=model_id, reason=str(error))
    return Unavailable(
        f"The manifest of {model_id} cannot be read now.", retry_after=RETRY_AFTER_SECONDS
    )


def _bucket_and_key(s3: str, name: str) -> tuple[str, str]:
    bucket, _, prefix = s3.partition("/")
    return bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/")


def _public_url(model: ModelSettings, name: str) -> str:
    return f"{(model.weights_url or '').rstrip('/')}/{quote(name)}"
