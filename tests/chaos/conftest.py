"""The running mesh of tests/e2e, and a worker's services, for what takes too long elsewhere: `make
chaos`."""

from tests.e2e.conftest import make_user, redis_client, reference, stack, user
from tests.integration.conftest import services

__all__ = ["make_user", "redis_client", "reference", "services", "stack", "user"]
