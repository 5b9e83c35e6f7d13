"""Device codes, approvals, machines."""

import datetime as dt
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field

from api.schemas.base import MachineName, RequestBody, WalletAddress
from market.identity.tables import Machine


class DeviceBody(RequestBody):
    machine: MachineName


class DeviceCodes(BaseModel):
    """RFC 8628, 3.2."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: float


class TokenBody(RequestBody):
    device_code: str = Field(max_length=100)


class MachineToken(BaseModel):
    access_token: str
    token_type: str = "Bearer"
    expires_in: int
    machine_id: str
    wallet_address: str


class UserCodeBody(RequestBody):
    user_code: str = Field(max_length=20)


class MessageBody(UserCodeBody):
    wallet_address: WalletAddress


class MessageToSign(BaseModel):
    message: str
    domain: str
    uri: str
    machine: str
    nonce: str
    issued_at: str
    expires_at: str


class ApprovalBody(MessageBody):
    signature: str = Field(max_length=1024)


class Decision(BaseModel):
    status: str
    machine: str


class MachineView(BaseModel):
    machine_id: str
    name: str
    created_at: dt.datetime
    last_used_at: dt.datetime | None


class Machines(BaseModel):
    machines: list[MachineView]

    @classmethod
    def of(cls, rows: Sequence[Machine]) -> Self:
        return cls(
            machines=[
                MachineView(
                    machine_id=row.machine_id,
                    name=row.name,
                    created_at=row.created_at,
                    last_used_at=row.last_used_at,
                )
                for row in rows
            ]
        )
