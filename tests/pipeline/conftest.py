"""An S3 server for the tests, moto's or SeaweedFS (`--s3 seaweedfs`), and the places that a store is tried on."""

import logging
import uuid

import pytest
from moto.server import ThreadedMotoServer

from pipeline.store import Patience, Store
from tests import seaweed


@pytest.fixture(scope="session")
def s3_endpoint(request, tmp_path_factory):
    """The URL of an S3 server that lives as long as the tests do, and that takes the account of `seaweed.settings`."""
    if request.config.getoption("--s3") == "seaweedfs":
        if seaweed.binary() is None:
            pytest.skip(seaweed.MISSING)
        with seaweed.SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
            yield server.endpoint
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint, monkeypatch):
    """The settings that lead boto3, in this process and its children, to the server and to nothing else."""
    for key in seaweed.FOREIGN_SETTINGS:
        monkeypatch.delenv(key, raising=False)
    for key, value in seaweed.settings(s3_endpoint).items():
        monkeypatch.setenv(key, value)
    return seaweed.settings(s3_endpoint)


@pytest.fixture
def s3_uri(s3_environment):
    """The URI of a new, empty bucket."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    seaweed.client(s3_environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def store():
    """A store that tests share, as making a client takes long. A test that changes the environment makes its own."""
    return Store(Patience(attempts=3))


@pytest.fixture(params=["local", "s3"])
def place(request):
    """The URI of an empty place: on disk, then in a bucket."""
    return str(request.getfixturevalue("tmp_path")) if request.param == "local" else request.getfixturevalue("s3_uri")
