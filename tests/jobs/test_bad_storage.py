"""Storage and clusters that are not there, or refuse."""

from __future__ import annotations

import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from jobs import label
from tests import seaweed
from tests.refusals import Refused, tree


def test_an_address_without_a_cluster(refused: Refused, config: Path) -> None:
    """Ray itself would try for minutes before it gives up."""
    with socket.socket() as held:  # bound but not listening: nobody else can take the port meanwhile
        held.bind(("127.0.0.1", 0))
        for scheme in ("", "ray://"):
            address = f"{scheme}127.0.0.1:{held.getsockname()[1]}"
            assert refused(label.main, config, f"run.address={address}") == (
                f"run.address is {address!r}, where no Ray cluster answers: connection refused"
            )
    for address in ("nonsense", "http://127.0.0.1:8265"):
        assert refused(label.main, config, f"run.address={address}") == (
            f"run.address is {address!r}; accepted are host:port, ray://host:port and auto"
        )


def test_s3_that_is_not_there(
    refused: Refused, config: Path, tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing bucket is the user's to mend; an endpoint that is down may be up in a minute, so that exits with 1."""
    assert refused(label.main, config, "output.uri=s3://no-such-bucket/out") == (
        "output.uri cannot be written: s3://no-such-bucket/out: there is no such bucket"
    )
    assert refused(label.main, config, "input.uri=s3://no-such-bucket/in") == (
        "input.uri cannot be read: s3://no-such-bucket/in/: there is no such bucket"
    )
    assert refused(label.main, config, f"input.uri={s3_uri}/in") == f"input.uri: there is nothing at {s3_uri}/in"
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert refused(label.main, config, f"output.uri={s3_uri}/out", code=1) == (
            f"output.uri cannot be written: {s3_uri}/out: {endpoint} does not answer (EndpointConnectionError, 4 tries)"
        )
    assert tree(tmp_path / "out") == set()


@pytest.fixture
def s3_secret(
    s3_endpoint: str, s3_uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Makes the server check credentials, and gives a key id whose secret is another than the environment's."""
    if request.config.getoption("--s3") != "moto":  # it checks them anyway
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        yield seaweed.KEY
        return
    iam = boto3.client("iam")
    iam.create_user(UserName=s3_uri.removeprefix("s3://"))
    key = iam.create_access_key(UserName=s3_uri.removeprefix("s3://"))["AccessKey"]["AccessKeyId"]

    def check_after(count: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{s3_endpoint}/moto-api/reset-auth", data=count, headers=headers)
        urllib.request.urlopen(request).close()

    check_after(b"0")
    yield key
    check_after(b"inf")


def test_wrong_credentials(
    refused: Refused, config: Path, s3_uri: str, s3_secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong or no credentials are told as such, by the key of the config that needs them, without the secret."""
    for key_id, reason in (("nobody", "InvalidAccessKeyId"), (s3_secret, "SignatureDoesNotMatch")):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
        refusal = f"access was refused ({reason}); check the credentials and what they allow"
        assert refused(label.main, config, f"input.uri={s3_uri}/in") == (
            f"input.uri cannot be read: {s3_uri}/in: {refusal}"
        )
        assert refused(label.main, config, f"output.uri={s3_uri}/out") == (
            f"output.uri cannot be written: {s3_uri}/out: {refusal}"
        )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refused(label.main, config, f"input.uri={s3_uri}/in") == (
        f"input.uri cannot be read: {s3_uri}/in: no credentials for S3 were found in the environment "
        "(Unable to locate credentials)"
    )


def test_ctrl_c_during_planning(
    config: Path,
    tmp_path: Path,
    s3_environment: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Planning a large bucket takes minutes; stopping it must be no traceback, and leave no run behind."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        connections = []

        def press() -> None:
            connections.append(silent.accept()[0])
            signal.pthread_kill(main_thread, signal.SIGINT)  # which is waiting for an answer

        main_thread = threading.get_ident()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        presser = threading.Thread(target=press)
        presser.start()
        try:
            code = label.main(["--config", str(config), "--set", "input.uri=s3://bucket/in"])
        finally:
            signal.signal(signal.SIGINT, before)
        presser.join()
        connections[0].close()
    assert (code, *capsys.readouterr()) == (1, "", "stopped\n")
    assert tree(tmp_path / "out") == set()
