"""AWS: the one place that opens its clients, S3's and KMS', and their time limits.

boto3's own limits are a minute to connect, a minute of silence, and five tries. Credentials and
endpoint are boto3's: the machine's role, or its usual variables.
"""

from typing import Any

import boto3
from botocore.client import Config

CONNECT_TIMEOUT = 3.0
"""Seconds for name, TCP and TLS."""

ATTEMPTS = 2
"""Requests that are sent at most for one call: all that we call may be done twice."""

UPLOAD_ATTEMPTS = 5
"""Requests for one part of an upload, which goes on for hours."""

KMS_SILENCE = 5.0
"""Seconds without a byte from KMS, which signs within a tenth of one. All attempts together are
shorter than settlement's transactions may wait for their next statement (`LONG.idle`)."""

S3_SILENCE = 10.0
"""Seconds without a byte from S3."""


def open_kms(region: str | None) -> Any:
    """A client of KMS. ``region``: none for the one that boto3 is configured with.

    Raises:
        BotoCoreError: there is no region, or a setting of boto3's is wrong.
    """
    return boto3.client("kms", region_name=region, config=_limits(KMS_SILENCE))


def open_s3(*, attempts: int = ATTEMPTS) -> Any:
    """A client of S3, or of a store that speaks its protocol.

    Raises:
        BotoCoreError: a setting of boto3's is wrong.
    """
    return boto3.client("s3", config=_limits(S3_SILENCE, attempts, signature_version="s3v4"))


def _limits(silence: float, attempts: int = ATTEMPTS, **options: Any) -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=silence,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        tcp_keepalive=True,
        **options,
    )
