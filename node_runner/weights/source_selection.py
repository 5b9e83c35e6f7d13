"""Which source a node's weights come from: what the node was told, else the platform, else the
hub."""

from collections.abc import Callable

import structlog

from mesh.errors import WeightsNotPublished
from node_runner.weights.hub_source import open_hub
from node_runner.weights.published_source import WeightListing, open_published
from node_runner.weights.source import Source
from node_runner.weights.span_download import open_source

log = structlog.get_logger()


def select_source(
    path: str | None, model_id: str, fetch_listing: Callable[[], WeightListing]
) -> Source:
    """A model's files.

    Args:
        path: A folder, a URL or a hub id; none to ask the platform.
        model_id: For the log.
        fetch_listing: Asks the platform; called again whenever its URLs have expired.

    Raises:
        UnsupportedModel: a path at which there is no folder.
        WeightsError: the source does not answer, or refuses.
    """
    if path is not None:
        return open_source(path)
    try:
        return open_published(fetch_listing)
    except WeightsNotPublished as error:
        log.info("weights_from_hub", model_id=model_id, repository=error.repository)
        return open_hub(error.repository)
