"""Makes the folder of a span's checkpoint from a source of weights."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from mesh.errors import UnsupportedModel, WeightsCorrupt
from node_runner.weights.checkpoint_cache import CheckpointCache, CheckpointRecord
from node_runner.weights.download_plan import DownloadPlan, plan_download
from node_runner.weights.hub_source import open_hub
from node_runner.weights.published_source import open_url
from node_runner.weights.range_assembly import JOURNAL, WEIGHTS, assemble, verify
from node_runner.weights.source import FolderSource, Source

log = structlog.get_logger()

MANIFEST, SIZES = "manifest", "sizes"
"""What a checkpoint was compared with: published hashes of its tensors, or sizes and header
alone."""


@dataclass(frozen=True, slots=True)
class CheckpointRequest:
    """A request for a checkpoint that is to be made.

    ``label``: its name for people. ``asked``: what it is for, by which it is found again when its
    source does not answer. ``made``: small files that are written, by name. ``copied``: small files
    of the source. ``renamed``: a tensor's name in it; none if it is not to be in it.
    """

    label: str
    asked: str
    made: Mapping[str, str]
    renamed: Callable[[str], str | None]
    copied: Sequence[str] = ()


def open_source(path: str) -> Source:
    """A checkpoint's files.

    Args:
        path: A folder, a URL, or a hub id.

    Raises:
        UnsupportedModel: a path at which there is no folder, or none of the three.
        WeightsError: the source does not answer.
    """
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        return FolderSource(folder)
    if folder.is_absolute() or path.startswith((".", "~")):
        raise UnsupportedModel(f"There is no model folder {path}.")
    if path.startswith(("https://", "http://")):
        return open_url(path)
    return open_hub(path)


def obtain(source: Source, request: CheckpointRequest, cache: CheckpointCache) -> Path:
    """The folder of the checkpoint that is asked for; fetched if the cache has no good one.

    Raises:
        WeightsError: it cannot be had.
    """
    plan = plan_download(source, request.renamed)
    key = f"{request.label}-{_fingerprint(source, request, plan)}"
    return cache.obtain(key, plan.size, lambda folder: _make(source, request, plan, folder))


def _make(
    source: Source, request: CheckpointRequest, plan: DownloadPlan, folder: Path
) -> CheckpointRecord:
    assemble(source, plan, folder, label=request.label)
    file = folder / WEIGHTS
    try:
        sha256 = verify(file, plan)
    except WeightsCorrupt:
        shutil.rmtree(folder)  # which of its ranges are good is not known
        raise
    for name, content in request.made.items():
        (folder / name).write_text(content)
    for name in request.copied:
        (folder / name).write_bytes(source.read_small(name))
    (folder / JOURNAL).unlink()
    checked = MANIFEST if source.manifest is not None else SIZES
    log.info(
        "weights_ready", checkpoint=request.label, bytes=plan.size, checked=checked, sha256=sha256
    )
    stat = file.stat()
    return CheckpointRecord(request.asked, checked, stat.st_size, stat.st_mtime_ns, sha256)


def _fingerprint(source: Source, request: CheckpointRequest, plan: DownloadPlan) -> str:
    versions = sorted((file, one.size, one.tag) for file, one in plan.versions.items())
    content = json.dumps([source.name, request.label, dict(request.made), versions])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
