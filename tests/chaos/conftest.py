"""The running mesh of tests/e2e, for what takes too long there: `make chaos`."""

from tests.e2e.conftest import make_user, redis_client, reference, stack, user

__all__ = ["make_user", "redis_client", "reference", "stack", "user"]
