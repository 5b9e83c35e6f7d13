"""The running mesh of tests/e2e, and a worker's services, for what takes too long elsewhere: `make
chaos`."""

from tests.e2e.conftest import make_user, redis_client, reference, stack, user
from tests.integration.conftest import chain_services, escrow, services

__all__ = [
    "chain_services",
    "escrow",
    "make_user",
    "redis_client",
    "reference",
    "services",
    "stack",
    "user",
]
