"""Whether hivemind is installed: it comes with an extra, and not for every system."""

import importlib.util


def hivemind_missing(distribution: str) -> str | None:
    """Without hivemind, what to type to install it with this distribution; else None."""
    if importlib.util.find_spec("hivemind") is not None:
        return None
    return (
        f"The DHT needs hivemind, which is not installed: pip install '{distribution}[dht]'. "
        "It has wheels for Linux and macOS, on x86-64 and arm64."
    )
