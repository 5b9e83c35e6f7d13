"""A worker's resources and the gateway, as integration tests have them."""

from tests.integration.api.relay.conftest import client, here, settings
from tests.integration.conftest import (
    chain_resources,
    chat_gateway,
    chat_model,
    empty_gateway,
    escrow,
    gateway,
    resources,
)
from tests.integration.workers.chain_indexer.conftest import actions, reader

__all__ = [
    "actions",
    "chain_resources",
    "chat_gateway",
    "chat_model",
    "client",
    "empty_gateway",
    "escrow",
    "gateway",
    "here",
    "reader",
    "resources",
    "settings",
]
