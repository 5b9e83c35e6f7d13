"""Weights in a folder of the operator's, which the gateway gives out itself."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from market.errors import Unavailable
from mesh.checkpoint import manifest
from mesh.checkpoint.manifest import Manifest
from mesh.errors import WeightsRefused

log = structlog.get_logger()

HASHING_WAIT = 10.0
"""Seconds that a request waits for the folder to be hashed; nodes wait 20 for an answer."""

RETRY_AFTER_SECONDS = 5
"""Seconds after which to ask again while the folder is being hashed."""

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time (ns) of each file of a folder: another one where a file was replaced."""


@dataclass(frozen=True, slots=True)
class FolderContents:
    """A folder's manifest, and the bytes that it has as a file."""

    manifest: Manifest
    content: bytes
    sha256: str
    stamp: Stamp


class LocalWeights:
    """A checkpoint's folder. It is read when somebody asks, and again where a file was replaced."""

    def __init__(self, model_id: str, folder: Path) -> None:
        self._model_id = model_id
        self.folder = folder
        self._contents: FolderContents | None = None
        self._reading: asyncio.Task[FolderContents] | None = None

    async def contents(self) -> FolderContents:
        """The folder's manifest: as `far-mesh models publish` wrote it there, else made now.

        Raises:
            Unavailable: the folder is still being hashed.
            WeightsRefused: it holds no weights, or other files than its manifest says.
            OSError: it cannot be read.
        """
        stamp = await asyncio.to_thread(_stamp, self.folder)
        if self._contents is not None and self._contents.stamp == stamp:
            return self._contents
        if self._reading is None:
            self._reading = asyncio.create_task(
                asyncio.to_thread(_read, self.folder, self._model_id)
            )
        reading = self._reading
        await asyncio.wait([reading], timeout=HASHING_WAIT)
        if not reading.done():
            raise Unavailable(
                f"The weights of {self._model_id} are being hashed.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        if self._reading is reading:
            self._reading = None
        self._contents = reading.result()
        return self._contents


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, rather than a configuration and a tokenizer alone, which are
    all that the gateway itself needs."""
    return folder.is_dir() and any(
        path.suffix == ".safetensors" for path in manifest.published_files(folder)
    )


def _read(folder: Path, model_id: str) -> FolderContents:
    stamp = _stamp(folder)  # before the files: what is replaced meanwhile is read again
    written = folder / manifest.NAME
    if written.is_file():
        with written.open("rb") as opened:
            content = opened.read(manifest.MAX_BYTES + 1)
        if len(content) > manifest.MAX_BYTES:
            raise WeightsRefused("The manifest is larger than it may be.")
        found = manifest.read_manifest(content)
        for name, file in found.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file.size:
                raise WeightsRefused(
                    f"{path} is not the file that {manifest.NAME} names: publish the folder again."
                )
    else:
        log.info("weights_hashing", model_id=model_id)
        found = manifest.make_manifest(folder, model_id)
        content = found.to_bytes()
    return FolderContents(found, content, hashlib.sha256(content).hexdigest(), stamp)


def _stamp(folder: Path) -> Stamp:
    written = folder / manifest.NAME
    paths = [*manifest.published_files(folder), *([written] if written.is_file() else [])]
    stats = [(path.name, path.stat()) for path in paths]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
