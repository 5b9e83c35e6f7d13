"""A test that sets the log up leaves it as it was."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that a test runs sets its log up on a stream that is closed after the test."""
    yield
    structlog.reset_defaults()
