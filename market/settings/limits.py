"""Settings of the API's limits: rates, and sizes of bodies."""

from pydantic import BaseModel


class LimitSettings(BaseModel):
    generations_per_ip: str = "100/hour"
    generations_per_wallet: str = "1000/hour"
    logins_per_ip: str = "100/hour"
    registrations_per_ip: str = "100/hour"
    device_codes_per_ip: str = "60/hour"
    user_codes_per_ip: str = "60/hour"
    """Codes typed in, right or wrong: guessing one of 2.6e10 is hopeless at this rate."""
    device_polls_per_ip: str = "5000/hour"
    probes_per_ip: str = "120/hour"
    """Each moves up to four megabytes."""
    heartbeats_per_node: str = "120/minute"
    """Each writes a row; a node sends two a minute."""
    relay_connections_per_node: str = "120/minute"
    """A node on a bad link connects again and again."""
    receipts_per_wallet: str = "1000/hour"
    """Each reads its batch's usage tree: up to some megabytes."""
    tables_per_wallet: str = "60/hour"
    """Usage and earnings as CSV, which may be long."""
    weights_per_wallet: str = "600/hour"
    """Requests for a model's files, by a wallet's machines, or by one node."""
    max_body_bytes: int = 2**20
    max_prompt_chars: int = 200_000
    trust_forwarded_for: bool = False
    """Take the caller's address from X-Forwarded-For: only behind a proxy that sets it."""
