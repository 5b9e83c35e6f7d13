"""Where a node's weights come from: what it was told, else the platform, else the hub."""

import structlog

from mesh.errors import WeightsNotPublished
from node_runner.platform_client.weight_listing import AskPlatform
from node_runner.weights.hub_source import hub
from node_runner.weights.published_source import listed
from node_runner.weights.source import Source
from node_runner.weights.span_download import open_source

log = structlog.get_logger()


def weights_of(place: str | None, ask: AskPlatform) -> Source:
    """A model's files.

    Args:
        place: A folder, a URL or a hub id; none to ask the platform, and to take the model's id for
            a hub's where that has not published it.
        ask: The question to the platform.

    Raises:
        UnsupportedModel: a path at which there is no folder.
        WeightsError: the place does not answer, or refuses.
    """
    if place is not None:
        return open_source(place)
    try:
        return listed(ask)
    except WeightsNotPublished:
        log.info("weights_from_hub", repository=ask.model_id)
        return hub(ask.model_id)
