"""Settings of authentication: tokens, nonces, device codes."""

from pydantic import BaseModel, Field, SecretStr


class AuthSettings(BaseModel):
    jwt_secret: SecretStr = SecretStr("")
    domain: str = "localhost"
    """EIP-4361 domain that a login message must name."""
    token_ttl: int = 24 * 3600
    node_token_ttl: int = 30 * 24 * 3600
    nonce_ttl: int = 300
    machine_token_ttl: int = 365 * 24 * 3600
    """Long, since the wallet can take a machine's token back at any time."""
    device_code_ttl: int = 600
    """Seconds that the owner of a machine has to let it in."""
    device_poll_interval: float = Field(5, gt=0)
    """Seconds that a machine waits between two looks whether it was let in."""
