"""An S3 server for the tests, and the places that a store is tried on."""

import logging
import urllib.request
import uuid

import pytest
from moto.server import ThreadedMotoServer

from pipeline.store import Patience, Store


@pytest.fixture(scope="session")
def s3_endpoint():
    """The URL of an S3 server that lives as long as the tests do."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint, monkeypatch):
    """The settings that lead boto3, in this process and its children, to the server and to nothing else."""
    for key in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(key, raising=False)
    settings = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    return settings


@pytest.fixture
def s3_uri(s3_environment):
    """The URI of a new, empty bucket."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{s3_environment['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def store():
    """A store that tests share, as making a client takes long. A test that changes the environment makes its own."""
    return Store(Patience(attempts=3))


@pytest.fixture(params=["local", "s3"])
def place(request):
    """The URI of an empty place: on disk, then in a bucket."""
    return str(request.getfixturevalue("tmp_path")) if request.param == "local" else request.getfixturevalue("s3_uri")
