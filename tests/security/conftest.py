"""A worker's resources and the gateway, as integration tests have them."""

from tests.integration.api.relay.conftest import client, here, settings
from tests.integration.conftest import chain_resources, empty_gateway, escrow, gateway, resources

__all__ = [
    "chain_resources",
    "client",
    "empty_gateway",
    "escrow",
    "gateway",
    "here",
    "resources",
    "settings",
]
