"""The running mesh of tests/e2e, and a worker's resources, for what takes too long elsewhere: `make
chaos`."""

from tests.e2e.conftest import make_user, redis_client, reference, stack, user
from tests.integration.conftest import chain_resources, escrow, resources

__all__ = [
    "chain_resources",
    "escrow",
    "make_user",
    "redis_client",
    "reference",
    "resources",
    "stack",
    "user",
]
