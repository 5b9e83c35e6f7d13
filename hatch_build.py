"""What far-mesh depends on: the far-node of its own version among it."""

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Dependencies(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        """Take the dependencies from pyproject.toml, with the version in place of ``{version}``."""
        metadata["dependencies"] = [
            each.format(version=metadata["version"]) for each in self.config["dependencies"]
        ]
