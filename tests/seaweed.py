"""SeaweedFS, a real object storage server, for the tests and `make demo-s3`; `make test-s3` installs it.

python -m tests.seaweed FOLDER COMMAND...    run a command beside a server with its data in a folder, and s3://demo
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

MISSING = "SeaweedFS is not installed; `make test-s3` installs it."

_PORTS = range(20_000, 32_000)  # above what Ray gives its workers, below what the system gives to outgoing connections
_START_S = 60.0

#: The one account of the server.
KEY, SECRET = "test-key", "test-secret"

#: Settings that would lead boto3 to another server or account; a test process takes them out of its environment.
FOREIGN_SETTINGS = (
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)


def settings(endpoint: str) -> dict[str, str]:
    """The environment variables that lead boto3 to one server, and to no account or settings of the user's own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


@cache
def client(endpoint: str) -> Any:
    """A boto3 client for a server with this account, whatever the environment says; it tries everything once."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
    )


def binary() -> str | None:
    """The path of SeaweedFS, beside this Python or on the PATH; None where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


class SeaweedFS:
    """A server on 127.0.0.1 with the data in a folder, which survive `kill`; ports are chosen once.

    Only requests signed with the key of `environment` are served.

    Raises:
        RuntimeError: it is not installed, or it does not start.
    """

    def __init__(self, folder: Path) -> None:
        found = binary()
        if found is None:
            raise RuntimeError(MISSING)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        parts = ("master", "volume", "filer", "s3")
        ports = _free_ports(2 * len(parts))
        self.endpoint = f"http://127.0.0.1:{ports[-1]}"
        self.environment = settings(self.endpoint)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._command = [found, "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.config=s3.json"]
        for part in parts:
            self._command += [f"-{part}.port.grpc={ports.pop(0)}", f"-{part}.port={ports.pop(0)}"]
        self._command += [
            "-filer.localSocket=filer.sock",
            "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=0",  # as many as fit on the disk: each bucket takes one of its own
        ]

    def start(self) -> None:
        """Start the server and wait until it takes an object."""
        assert self.process is None, "it runs already"
        small = {"GOMEMLIMIT": "200MiB", "GOGC": "25", "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env={**os.environ, **small}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        s3, deadline = client(self.endpoint), time.monotonic() + _START_S
        while True:
            try:
                with suppress(s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists):
                    s3.create_bucket(Bucket="ready")
                s3.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            except (BotoCoreError, ClientError) as error:
                gone = self.process.poll() is not None
                if gone or time.monotonic() > deadline:
                    self.kill()
                    log_end = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS did not start ({error}); its log ends: {log_end}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        """End the server with SIGKILL, at once, as a crash would; its data stay, and `start` goes on with them."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def make_bucket(self, name: str) -> str:
        """Make a bucket -> its URI."""
        client(self.endpoint).create_bucket(Bucket=name)
        return f"s3://{name}"

    def __enter__(self) -> SeaweedFS:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, and that outgoing connections will not take while the server is down."""
    chosen: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            chosen.append(port)
        if len(chosen) == count:
            break
    return chosen


def main(folder: str, *command: str) -> int:
    """Run a command whose environment leads to a server, which is stopped after it -> its exit status."""
    with SeaweedFS(Path(folder)) as server:
        with suppress(ClientError):  # it is there, from the last time
            server.make_bucket("demo")
        own = {key: value for key, value in os.environ.items() if key not in FOREIGN_SETTINGS}
        return subprocess.run(command, env=own | server.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
