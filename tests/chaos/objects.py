"""A place in object storage for a round: SeaweedFS, which is killed and started again while the round goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.seaweed import SeaweedFS

BUCKET = "chaos"


class Objects:
    """The server, with one bucket."""

    def __init__(self, folder: Path) -> None:
        self.server = SeaweedFS(folder)
        self.server.start()
        self.environment = self.server.environment
        self.uri = self.server.make_bucket(BUCKET)
        self._watching = self._client(tries=1)
        self._away: threading.Thread | None = None
        self._failed: list[Exception] = []

    def interrupt(self, seconds: float) -> bool:
        """Kill the server, and start it again after a while -> whether it was there to be killed."""
        if self._away is not None and self._away.is_alive():
            return False
        self.server.kill()

        def come_back() -> None:
            time.sleep(seconds)
            try:
                self.server.start()
            except RuntimeError as error:
                self._failed.append(error)

        self._away = threading.Thread(target=come_back, daemon=True)
        self._away.start()
        return True

    def wait(self) -> None:
        """Wait until the server is there.

        Raises:
            RuntimeError: it does not start any more.
        """
        if self._away is not None:
            self._away.join()
        if self._failed:
            raise self._failed[0]

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder into the bucket -> its URI."""
        client = self._client()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")
        return f"{self.uri}/{prefix}"

    def download(self, prefix: str, folder: Path) -> Path:
        """Copy what lies under a prefix into a folder -> the folder."""
        client = self._client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            for entry in page.get("Contents", ()):
                path = folder / entry["Key"].removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(BUCKET, entry["Key"], str(path))
        return folder

    def etags(self, prefix: str) -> dict[str, str]:
        """The ETag of each object under a prefix; nothing while the server is away."""
        try:
            pages = [*self._watching.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")]
        except (BotoCoreError, ClientError):
            return {}
        return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", ())}

    def _client(self, tries: int = 5) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": tries}),
        )

    def close(self) -> None:
        """End the server."""
        self.wait()
        self.server.kill()
