"""Weights that the operator published: files that the platform lists, or under one URL."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from mesh.checkpoint import manifest
from mesh.errors import WeightsChanged, WeightsCorrupt, WeightsMissing
from node_runner.weights.http_source import HttpSource


@dataclass(frozen=True, slots=True)
class WeightListing:
    """The platform's list of a model's files. ``urls``: by the file's name, each valid for a while,
    the manifest's among them. ``manifest_sha256``: of the manifest's bytes."""

    model_id: str
    urls: dict[str, str]
    manifest_sha256: str


class SignedUrls:
    """The URLs of a listing; ``fetch_listing`` gives others when they have expired."""

    def __init__(self, fetch_listing: Callable[[], WeightListing]) -> None:
        self._fetch_listing = fetch_listing
        self._listing = fetch_listing()
        self._lock = threading.Lock()
        self.name = f"the platform's {self._listing.model_id}"

    @property
    def manifest_sha256(self) -> str:
        return self._listing.manifest_sha256

    def url_of(self, file: str) -> tuple[str, dict[str, str]]:
        url = self._listing.urls.get(file)
        if url is None:
            raise WeightsMissing(f"{self.name} has no {file}.")
        return url, {}

    def on_response(self, file: str, response: httpx.Response) -> None:
        pass

    def renew(self, file: str, refused: str) -> bool:
        with self._lock:
            if self.url_of(file)[0] != refused:  # another thread has renewed it
                return True
            listing = self._fetch_listing()
            if listing.manifest_sha256 != self.manifest_sha256:
                raise WeightsChanged(f"{self.name} was published anew. Start again.")
            self._listing = listing
            return True


class BaseUrl:
    """Files under one URL."""

    def __init__(self, base: str) -> None:
        self.name = base.rstrip("/")

    def url_of(self, file: str) -> tuple[str, dict[str, str]]:
        return f"{self.name}/{quote(file)}", {}

    def on_response(self, file: str, response: httpx.Response) -> None:
        pass

    def renew(self, file: str, refused: str) -> bool:
        return False


def open_published(fetch_listing: Callable[[], WeightListing]) -> HttpSource:
    """The files that the platform lists, with their manifest.

    Raises:
        WeightsCorrupt: the manifest has another hash than the listing says.
    """
    urls = SignedUrls(fetch_listing)
    files = HttpSource(urls)
    with _closed_on_error(files):
        content = files.read_small(manifest.NAME)
        if hashlib.sha256(content).hexdigest() != urls.manifest_sha256:
            raise WeightsCorrupt(f"The manifest of {files.name} is not the one that was published.")
        files.manifest = manifest.read_manifest(content)
    return files


def open_url(base: str) -> HttpSource:
    """Files under one URL, with the manifest that lies there, if any."""
    files = HttpSource(BaseUrl(base))
    with _closed_on_error(files), contextlib.suppress(WeightsMissing):
        files.manifest = manifest.read_manifest(files.read_small(manifest.NAME))
    return files


@contextlib.contextmanager
def _closed_on_error(files: HttpSource) -> Iterator[None]:
    try:
        yield
    except BaseException:
        files.close()
        raise
