"""Files of a model that the operator published: by the platform's word, or beside a manifest."""

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
class Listing:
    """What the platform says of a model's files. ``urls``: by name, each valid for a while; the
    manifest's is among them. ``manifest_sha256``: of the manifest's bytes."""

    model_id: str
    urls: dict[str, str]
    manifest_sha256: str


class SignedUrls:
    """URLs that expire; ``ask`` the platform for others then."""

    def __init__(self, ask: Callable[[], Listing]) -> None:
        self._ask = ask
        self._listing = ask()
        self._lock = threading.Lock()
        self.name = f"the platform's {self._listing.model_id}"

    @property
    def manifest_sha256(self) -> str:
        return self._listing.manifest_sha256

    def of(self, file: str) -> tuple[str, dict[str, str]]:
        url = self._listing.urls.get(file)
        if url is None:
            raise WeightsMissing(f"{self.name} has no {file}.")
        return url, {}

    def answered(self, file: str, answer: httpx.Response) -> None:
        pass

    def renew(self, file: str, refused: str) -> bool:
        with self._lock:
            if self.of(file)[0] != refused:  # another thread has asked
                return True
            listing = self._ask()
            if listing.manifest_sha256 != self.manifest_sha256:
                raise WeightsChanged(f"{self.name} was published anew. Start again.")
            self._listing = listing
            return True


class BaseUrl:
    """Files under one URL."""

    def __init__(self, base: str) -> None:
        self.name = base.rstrip("/")

    def of(self, file: str) -> tuple[str, dict[str, str]]:
        return f"{self.name}/{quote(file)}", {}

    def answered(self, file: str, answer: httpx.Response) -> None:
        pass

    def renew(self, file: str, refused: str) -> bool:
        return False


def open_published(ask: Callable[[], Listing]) -> HttpSource:
    """What the platform lists, with its manifest.

    Raises:
        WeightsCorrupt: the manifest is not the one that the platform speaks of.
    """
    addresses = SignedUrls(ask)
    files = HttpSource(addresses)
    with _closed_on_error(files):
        content = files.small(manifest.NAME)
        if hashlib.sha256(content).hexdigest() != addresses.manifest_sha256:
            raise WeightsCorrupt(f"The manifest of {files.name} is not the one that was published.")
        files.manifest = manifest.read_manifest(content)
    return files


def open_url(base: str) -> HttpSource:
    """Files under one URL, with the manifest that lies there, if any."""
    files = HttpSource(BaseUrl(base))
    with _closed_on_error(files), contextlib.suppress(WeightsMissing):
        files.manifest = manifest.read_manifest(files.small(manifest.NAME))
    return files


@contextlib.contextmanager
def _closed_on_error(files: HttpSource) -> Iterator[None]:
    try:
        yield
    except BaseException:
        files.close()
        raise
