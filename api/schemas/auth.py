"""Nonce, login, token."""

from pydantic import BaseModel, Field

from api.schemas.base import RequestBody, WalletAddress
from market.identity.login_message import MAX_MESSAGE


class Nonce(BaseModel):
    nonce: str
    domain: str
    """The domain that a login message has to name."""
    expires_in: int


class LoginBody(RequestBody):
    wallet_address: WalletAddress
    message: str = Field(max_length=MAX_MESSAGE)
    signature: str = Field(max_length=1024)


class UserToken(BaseModel):
    token: str
    wallet_address: str
    expires_in: int
