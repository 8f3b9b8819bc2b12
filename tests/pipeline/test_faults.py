"""Storage that fails: each operation under each fault, and whole runs under many at once."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import yaml

from jobs import label
from pipeline import runs
from pipeline.errors import AccessError, LabelingError, NotFoundError, UnreachableError, UserError
from pipeline.store import Patience, Store, join
from pipeline.verify import verify
from pipeline.worker import Run, label_shard
from tests.faults import KINDS, Dice, Fault, Proxy, Script, answer, fault_of
from tests.small_runs import config_of, found_run, make_inputs

pytestmark = pytest.mark.filterwarnings("ignore:tzname")  # of a date that was cut off

DATA = bytes(range(256)) * 40
PARTS = bytes(range(256)) * 33_000  # 8.4 MB, which go up in two parts


@pytest.fixture(scope="module")
def module_proxy(s3_endpoint):
    with Proxy(s3_endpoint, Script()) as proxy:
        yield proxy, Store(Patience(read_s=1.0))


@pytest.fixture
def proxy(module_proxy, s3_uri, monkeypatch):
    """A proxy before the S3 server, which does nothing yet. `store` goes past it."""
    proxy, _ = module_proxy
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.faults.clear()
    proxy.requests.clear()
    return proxy


@pytest.fixture
def proxied(module_proxy, proxy):
    """The store that goes through the proxy."""
    return module_proxy[1]


def put_and_get(store, proxied, uri):
    proxied.put(uri, DATA)
    return store.get(uri) == DATA


def create(store, proxied, uri):
    return proxied.create(uri, DATA) and store.get(uri) == DATA and not proxied.create(uri, b"another's")


def get(store, proxied, uri):
    store.put(uri, DATA)
    return proxied.get(uri) == DATA


def stat(store, proxied, uri):
    store.put(uri, DATA)
    return proxied.stat(uri) == store.stat(uri)


def refusal(store, proxied, uri):
    """A refusal whose body breaks off is asked for again, and comes in the same words."""
    with pytest.raises(NotFoundError, match="there is no such object"):
        proxied.get(uri)
    return not store.exists(uri)


def list_all(store, proxied, uri):
    for number in range(3):
        store.put(join(uri, str(number)), DATA)
    return [info.uri for info in proxied.list(join(uri, ""))] == [join(uri, str(number)) for number in range(3)]


def delete(store, proxied, uri):
    store.put(uri, DATA)
    proxied.delete(uri)
    return not store.exists(uri)


@pytest.mark.parametrize(
    ("operation", "method"),
    [
        (put_and_get, "PUT"),
        (create, "PUT"),
        (get, "GET"),
        (stat, "GET"),
        (refusal, "GET"),
        (list_all, "GET"),
        (delete, "DELETE"),
    ],
)
def test_operations(store, proxied, proxy, s3_uri, operation, method):
    """No fault of the network or the store makes an operation fail, lie, or leave half of something."""
    for kind in KINDS:
        proxy.faults.append(fault_of(kind, method, after=0.5))
        assert operation(store, proxied, join(s3_uri, kind)), kind
        assert proxy.faults == [], f"{kind} did not happen"


@pytest.mark.parametrize(("method", "part"), [("POST", "?uploads"), ("PUT", "partNumber=2"), ("POST", "?uploadId=")])
def test_uploads_in_parts(store, proxy, s3_uri, tmp_path, method, part):
    """A fault in the middle of a large file costs that part again, and no file is lost whose last answer was."""
    proxied = Store(Patience(read_s=5.0))
    (tmp_path / "big").write_bytes(PARTS)
    for kind in KINDS:
        proxy.faults.append(fault_of(kind, method, after=0.5, part=part))
        proxy.requests.clear()
        proxied.put(join(s3_uri, kind), tmp_path / "big")
        assert proxy.faults == [], f"{kind} did not happen"
        assert store.get(join(s3_uri, kind)) == PARTS, kind
        sent = [request for request in proxy.requests if "partNumber=1" in request]
        assert len(sent) == 1 or "upload" in proxied.retries(), f"{kind}: the first part was sent again"


class CutOnce:
    """Ends the first answer about each `cut-<number>` after so many bytes, of its head or of its body."""

    def __init__(self, kind):
        self.kind, self.seen = kind, set()

    def choose(self, method, target):
        number = int(re.search(r"cut-(\d+)", target)[1])
        if number in self.seen:
            return None
        self.seen.add(number)
        return Fault(self.kind, after=number)


def sentence(operation, *arguments):
    """What is raised."""
    with pytest.raises(LabelingError) as raised:
        operation(*arguments)
    return str(raised.value).rpartition(": ")[2]


CUT = {
    "get": (lambda store, place: store.get(f"{place}/object"), DATA),
    "stat": (lambda store, place: store.stat(f"{place}/object").bytes, len(DATA)),
    "list": (lambda store, place: [found.bytes for found in store.list(f"{place}/")], [len(DATA)]),
    "missing": (lambda store, place: sentence(store.get, f"{place}/missing"), "there is no such object."),
    "taken": (lambda store, place: store.create(f"{place}/object", b"another's"), False),
    "create": (lambda store, place: store.create(f"{place}/new", DATA), True),
}


@pytest.mark.parametrize("kind", ["truncate", "reset"])
@pytest.mark.parametrize("operation", CUT)
def test_answers_cut_short(store, s3_endpoint, s3_uri, monkeypatch, operation, kind):
    """An answer that ends early is not taken for a whole one, nor for a failure: wherever it ends, it comes again."""
    numbers, (ask, right) = range(1, 700, 7), CUT[operation]
    with ThreadPoolExecutor(16) as threads, Proxy(s3_endpoint, CutOnce(kind)) as proxy:
        list(threads.map(lambda number: store.put(f"{s3_uri}/cut-{number}/object", DATA), numbers))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxied = Store()
        found = list(threads.map(lambda number: ask(proxied, f"{s3_uri}/cut-{number}"), numbers))
    assert [number for number, one in zip(numbers, found, strict=True) if one != right] == []
    assert proxy.counts[kind] > 20  # an answer ends before the rest of the numbers


def label_all(store, run, shards, labeler):
    """Label shards in threads, as workers do."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda shard: label_shard(shard, run=run, store=store, labeler=labeler), shards))


def rows_of(store, uri):
    return {row.key: repr(replace(row, uri="")) for row in runs.read_rows(store, uri)}


def test_run_under_faults(store, s3_endpoint, s3_uri, tmp_path, monkeypatch):
    """A run through a network that spoils every twentieth request ends with the rows of an undisturbed one."""
    for path in make_inputs(tmp_path / "in", 40).iterdir():
        store.put(join(s3_uri, "in", path.name), path)
    times = {}
    for name, faults in (("quiet", Script()), ("faulty", Dice.evenly(seed=2675, rate=0.05))):
        with Proxy(s3_endpoint, faults) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            proxied = Store(Patience(read_s=1.0))
            config = config_of(join(s3_uri, "in"), join(s3_uri, name))
            start = time.monotonic()
            manifest, labeler = found_run(proxied, config)
            run = Run(id=manifest.run_id, uri=config.output.uri, config=config)
            label_all(proxied, run, manifest.shards, labeler)
            times[name] = time.monotonic() - start
            counts, requests = dict(proxy.counts), len(proxy.requests)
    print(
        f"{requests} requests, faults {counts}, retries {proxied.retries()}, {times['faulty'] / times['quiet']:.1f} x"
    )
    assert sum(counts.values()) > 8
    assert len(counts) > 7, "not every kind of fault was tried"
    assert sum(proxied.retries().values()) > 4
    assert verify(store, join(s3_uri, "faulty")).faults == ()
    assert rows_of(store, join(s3_uri, "faulty")) == rows_of(store, join(s3_uri, "quiet"))
    assert len(rows_of(store, join(s3_uri, "faulty"))) == 240


@pytest.mark.slow
def test_job_under_faults(store, s3_endpoint, s3_uri, tmp_path, monkeypatch):
    """The command on Ray, too, with its driver and its workers behind the same network."""
    for path in make_inputs(tmp_path / "in", 24).iterdir():
        store.put(join(s3_uri, "in", path.name), path)
    raw = {
        "input": {"uri": join(s3_uri, "in")},
        "labeler": {"name": "tests.fakes:ThresholdLabeler"},
        "run": {"workers": 2},
    }
    for name, faults in (("quiet", Script()), ("faulty", Dice.evenly(seed=11, rate=0.05))):
        with Proxy(s3_endpoint, faults) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw | {"output": {"uri": join(s3_uri, name)}}))
            start = time.monotonic()
            assert label.main(["--config", str(tmp_path / f"{name}.yaml")]) == 0
            print(f"{name}: {len(proxy.requests)} requests, {dict(proxy.counts)}, {time.monotonic() - start:.0f} s")
    assert verify(store, join(s3_uri, "faulty")).faults == ()
    assert rows_of(store, join(s3_uri, "faulty")) == rows_of(store, join(s3_uri, "quiet"))


class TestAnswers:
    """What an S3 answers that is neither the object nor a fault that passes."""

    @pytest.mark.parametrize(
        ("status", "code", "error", "sentence"),
        [
            ("403 Forbidden", "RequestTimeTooSkewed", AccessError, "the clock of this machine and that of the store"),
            ("307 Temporary Redirect", "TemporaryRedirect", UserError, "served elsewhere .*AWS_DEFAULT_REGION"),
            ("304 Not Modified", "", UserError, r"served elsewhere \(304"),
        ],
    )
    def test_sentences(self, proxied, proxy, s3_uri, status, code, error, sentence):
        """A wrong clock or region is named, not blamed on the credentials or on the object."""
        proxy.faults += [Fault("answer", answer=answer(status, code))] * 10_000
        with pytest.raises(error, match=f"{s3_uri}/object: .*{sentence}.*"):
            proxied.get(join(s3_uri, "object"))

    def test_busy_for_good(self, proxied, proxy, s3_uri):
        """A store that is down is given up after four tries, not after four times four."""
        proxy.faults += [Fault("answer", answer=answer("503 Service Unavailable", "SlowDown"))] * 100
        for ask in (lambda: proxied.get(join(s3_uri, "x")), lambda: proxied.put(join(s3_uri, "x"), b"x")):
            proxy.requests.clear()
            with pytest.raises(UnreachableError, match=r"503 SlowDown \(4 tries\)"):
                ask()
            assert len(proxy.requests) == 4
        proxy.requests.clear()
        with pytest.raises(UnreachableError, match=r"503 SlowDown \(4 tries\)"):
            proxied.create(join(s3_uri, "x"), b"x")
        assert len(proxy.requests) == 5

    def test_upload_that_fails_leaves_nothing(self, store, proxied, proxy, s3_uri, s3_endpoint, tmp_path):
        """An upload in parts that is given up does not leave parts that are paid for."""
        (tmp_path / "big").write_bytes(PARTS)
        refusal = Fault("answer", "PUT", "partNumber=2", answer=answer("403 Forbidden", "AccessDenied"))
        proxy.faults.append(refusal)
        with pytest.raises(AccessError, match="AccessDenied"):
            proxied.put(join(s3_uri, "big"), tmp_path / "big")
        assert list(store.unfinished(s3_uri)) == []
        assert not store.exists(join(s3_uri, "big"))

    def test_completion_that_fails_with_a_200(self, store, proxied, proxy, s3_uri, tmp_path):
        """An upload whose completion was answered by an error under the status 200 is not taken for done."""
        (tmp_path / "big").write_bytes(PARTS)
        proxy.faults.append(Fault("answer", "POST", "?uploadId=", answer=answer("200 OK", "InternalError")))
        proxied.put(join(s3_uri, "big"), tmp_path / "big")
        assert proxy.faults == []
        assert store.get(join(s3_uri, "big")) == PARTS
