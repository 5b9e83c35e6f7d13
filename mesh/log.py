"""structlog, set up once a process. Events carry ids, counts and amounts: never text, tokens or
secrets."""

import logging
import sys

import structlog


def configure(*, json: bool, level: int = logging.INFO) -> None:
    """Write events from ``level`` on to standard error, as JSON lines or for people."""
    renderer = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; their debug output could quote a request.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
