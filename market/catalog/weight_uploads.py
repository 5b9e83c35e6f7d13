"""Files into S3, or a store that speaks its protocol (`AWS_ENDPOINT_URL_S3`)."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from market.clients.aws import UPLOAD_ATTEMPTS, open_s3

HASH_METADATA = "sha256"
"""Name of the metadata that keeps a file's hash, so that a second upload is none."""


@dataclass(frozen=True)
class Bucket:
    """Keys under a prefix of a bucket. All methods raise boto3's errors."""

    client: Any
    bucket: str
    prefix: str

    @classmethod
    def at(cls, location: str) -> "Bucket":
        """``location``: `BUCKET/PREFIX`."""
        bucket, _, prefix = location.partition("/")
        return cls(open_s3(attempts=UPLOAD_ATTEMPTS), bucket, prefix.strip("/"))

    def put(self, path: Path, sha256: str, progress: Callable[[int], None]) -> bool:
        """Upload a file in parts, unless it is there already.

        Args:
            path: Its name is that of the file in the bucket.
            sha256: Of its content.
            progress: Called with how many bytes are through.

        Returns:
            Whether it was uploaded.
        """
        key, size = self._key(path.name), path.stat().st_size
        if self._has(key, size, sha256):
            progress(size)
            return False
        self.client.upload_file(
            str(path),
            self.bucket,
            key,
            ExtraArgs={"Metadata": {HASH_METADATA: sha256}},
            Callback=progress,
        )
        return True

    def put_bytes(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def _has(self, key: str, size: int, sha256: str) -> bool:
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND:
                return False
            raise
        same: bool = (
            found["ContentLength"] == size and found["Metadata"].get(HASH_METADATA) == sha256
        )
        return same

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}".lstrip("/")
