"""The small files of a checkpoint, in a folder or on a hub."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError


class CheckpointFiles:
    """``location``: a folder, or a repository's name on the hub."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._is_local = Path(location).is_dir()

    def path(self, name: str) -> Path:
        """Where a file is on this machine, downloaded if need be.

        Raises:
            EntryNotFoundError: the repository has no such file. A folder may be without it, too.
        """
        if self._is_local:
            return Path(self._location) / name
        return Path(hf_hub_download(self._location, name))

    def text(self, name: str) -> str | None:
        """A file's text; none if there is no such file."""
        try:
            return self.path(name).read_text(encoding="utf-8")
        except (FileNotFoundError, EntryNotFoundError):
            return None

    def json(self, name: str) -> Any:
        """A file's value; none if there is no such file."""
        text = self.text(name)
        return None if text is None else json.loads(text)
