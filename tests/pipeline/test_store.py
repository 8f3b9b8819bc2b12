"""The store on local disk, on an S3 server, through a proxy that spoils the traffic, and through fsspec."""

import copy
import errno
import functools
import http.server
import io
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.errors import AccessError, ChangedError, NotFoundError, StoreError, UnreachableError, UserError
from pipeline.store import Patience, Store, absolute, join, redact
from pipeline.store.uris import selection
from tests import seaweed
from tests.faults import Fault, Proxy, Script, answer

CONTENT = bytes(range(256)) * 12_000  # 3 MB: more than any buffer on the way


def names(store, uri, base, **options):
    return sorted(info.uri.removeprefix(base).lstrip("/") for info in store.list(uri, **options))


@pytest.fixture(scope="module")
def module_proxy(s3_endpoint):
    with Proxy(s3_endpoint, Script()) as proxy:
        yield proxy, Store(Patience(attempts=3))


@pytest.fixture
def proxy(module_proxy, s3_uri, store, monkeypatch):
    """A proxy before the S3 server, with an object behind it. `store` still goes past it."""
    proxy, _ = module_proxy
    store.put(join(s3_uri, "object"), CONTENT)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.faults.clear()
    proxy.requests.clear()
    return proxy


@pytest.fixture
def proxied(module_proxy, proxy):
    """The store that goes through the proxy."""
    return module_proxy[1]


def test_round_trip(store, place, tmp_path_factory):
    """What was put, from memory or from a file of several parts, does not come back changed, or not at all."""
    big = tmp_path_factory.mktemp("source") / "big"
    big.write_bytes(CONTENT * 3)
    store.put(join(place, "deep/er/small"), b"small")
    store.put(join(place, "empty"), b"")
    store.put(join(place, "big"), big)
    assert store.get(join(place, "deep/er/small")) == b"small"
    assert store.get(join(place, "empty")) == b""
    assert store.get(join(place, "big")) == CONTENT * 3
    assert store.stat(join(place, "big")).bytes == len(CONTENT) * 3
    store.delete(join(place, "big"))
    store.delete(join(place, "big"))
    assert not store.exists(join(place, "big"))


def test_absent_objects(store, place):
    """A typo in a URI, or a directory in place of a file, is not taken for an empty object or a crash."""
    store.put(join(place, "directory/file"), b"x")
    for uri in (join(place, "nothing"), join(place, "directory"), join(place, "directory/file/more")):
        for read in (store.stat, store.open, store.get):
            with pytest.raises((NotFoundError, StoreError), match=uri):
                read(uri)
        assert not store.exists(uri)
    assert list(store.list(join(place, "nothing"))) == []


def test_get_with_a_limit(store, place):
    """An input of a gigabyte where a small file is meant does not fill the memory."""
    store.put(join(place, "object"), b"12345")
    assert store.get(join(place, "object"), limit=5) == b"12345"
    with pytest.raises(StoreError, match="more than 4 bytes"):
        store.get(join(place, "object"), limit=4)


def test_etag_changes_with_the_content(store, place):
    """Another content under the same name is not labelled as if it were the planned one."""
    uri = join(place, "object")
    store.put(uri, b"one")
    before = store.stat(uri)
    assert store.stat(uri) == before
    assert list(store.list(uri)) == [before]
    with store.open(uri, etag=before.etag) as stream:
        assert stream.read() == b"one"
    store.put(uri, b"two")
    assert store.stat(uri).etag != before.etag
    with pytest.raises(ChangedError, match="replaced"):
        store.open(uri, etag=before.etag)


def test_reader_seeks(store, place):
    """Parquet, which is read from its end, does not come out wrong."""
    table = pyarrow.table({"number": range(100_000), "text": [str(n * 7919) for n in range(100_000)]})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=25_000)
    store.put(join(place, "table.parquet"), sink.getvalue())
    with store.open(join(place, "table.parquet")) as stream:
        assert pyarrow.parquet.read_table(stream).equals(table)
        data = sink.getvalue()
        for offset in (len(data) - 8, 0, 1_000_000, 999_990, len(data) + 5, 17):
            stream.seek(offset)
            assert stream.tell() == offset
            assert stream.read(20) == data[offset : offset + 20]


@pytest.fixture(params=["local", "s3", "memory"])
def tree(request, store):
    """A place with some objects, of each kind."""
    if request.param == "memory":
        base = f"memory://{uuid.uuid4().hex}"
    else:
        base = (
            str(request.getfixturevalue("tmp_path")) if request.param == "local" else request.getfixturevalue("s3_uri")
        )
    for key in ("a.tar", "b.tar", "data/c.tar", "data/c.txt", "data/deep/d.tar", "database/e.tar", "x[1]/f.tar"):
        store.put(join(base, key), key.encode())
    return base


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a.tar", "b.tar", "data/c.tar", "data/c.txt", "data/deep/d.tar", "database/e.tar", "x[1]/f.tar"]),
        ("data", ["data/c.tar", "data/c.txt", "data/deep/d.tar"]),
        ("data/", ["data/c.tar", "data/c.txt", "data/deep/d.tar"]),
        ("data/c.tar", ["data/c.tar"]),
        ("*.tar", ["a.tar", "b.tar"]),
        ("?.tar", ["a.tar", "b.tar"]),
        ("[!b].tar", ["a.tar"]),
        ("data*/*.tar", ["data/c.tar", "database/e.tar"]),
        ("**/*.tar", ["a.tar", "b.tar", "data/c.tar", "data/deep/d.tar", "database/e.tar", "x[1]/f.tar"]),
        ("data/**", ["data/c.tar", "data/c.txt", "data/deep/d.tar"]),
        ("data*/", ["data/c.tar", "data/c.txt", "data/deep/d.tar", "database/e.tar"]),
        ("x[[]1]/*", ["x[1]/f.tar"]),
        ("x[1]/f.tar", ["x[1]/f.tar"]),
        ("*.zip", []),
        ("dat", []),
    ],
)
def test_listing(store, tree, pattern, found):
    """No kind of storage takes more or fewer objects than another for the same prefix or pattern."""
    assert names(store, join(tree, pattern) if pattern else tree, tree) == found


def test_listing_says_what_stat_says(store, tree):
    """An object that is opened with the etag of its listing is not refused as replaced."""
    for info in store.list(tree):
        assert store.stat(info.uri) == info
        with store.open(info.uri, etag=info.etag) as stream:
            assert stream.read() == info.uri.removeprefix(tree).lstrip("/").encode()


def test_listing_taken_literally(store, tree):
    """A run whose URI holds a bracket finds its own commits."""
    assert names(store, join(tree, "x[1]"), tree) == []
    assert names(store, join(tree, "x[1]"), tree, literal=True) == ["x[1]/f.tar"]


def test_listing_of_many_pages(store, s3_uri):
    """A listing does not end with its first page."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put(join(s3_uri, f"many/{number:04d}"), b""), range(1005)))
    assert names(store, join(s3_uri, "many"), join(s3_uri, "many")) == [f"{n:04d}" for n in range(1005)]


def test_create_only_if_absent(store, place):
    """A second attempt does not overwrite the first one's claim, and the first one knows its own again."""
    uri = join(place, "commits/ab/claim")
    assert store.create(uri, b"first")
    assert not store.create(uri, b"second")
    assert store.create(uri, b"first")
    assert store.get(uri) == b"first"


def test_racing_creators(store, place):
    """Of several workers that finish the same shard, not two believe that they won, and not none."""
    with ThreadPoolExecutor(8) as threads:
        for turn in range(8):
            uri, barrier = join(place, f"race/{turn}"), threading.Barrier(8)

            def race(number, uri=uri, barrier=barrier):
                barrier.wait(10)
                return store.create(uri, f"attempt {number}".encode())

            won = list(threads.map(race, range(8)))
            assert won.count(True) == 1
            assert store.get(uri) == f"attempt {won.index(True)}".encode()


def test_probe(store, place):
    """A storage that is fit is not refused, and nothing is left in it."""
    store.probe(join(place, "run"))
    assert list(store.list(place)) == []


def test_probe_refuses_what_overwrites(store, monkeypatch):
    """A run does not begin where two workers could both commit one shard."""
    create = fsspec.get_filesystem_class("memory").pipe_file
    overwrite = lambda self, path, value, mode="overwrite": create(self, path, value)  # noqa: E731
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", overwrite)
    with pytest.raises(UserError, match=r"memory://run: .* put-if-absent"):
        store.probe("memory://run")


def test_store_travels(store, place):
    """A store that was used can be sent to a worker, and works there."""
    store.put(join(place, "object"), b"here")
    assert copy.deepcopy(store).get(join(place, "object")) == b"here"


def test_store_after_a_fork(store, s3_uri):
    """A forked process does not talk over its parent's connections."""
    store.put(join(s3_uri, "object"), b"here")
    before = store._backend(s3_uri)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"shared" if store._backend(s3_uri) is before else b"its own")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"its own"


class TestLocal:
    def test_half_written_is_never_seen(self, store, tmp_path):
        """A reader or a listing does not meet a file, new or replaced, before it is whole."""
        uri, sizes, done = str(tmp_path / "file"), set(), threading.Event()
        store.put(uri, CONTENT)

        def watch():
            while not done.is_set():
                sizes.update(info.bytes for info in store.list(str(tmp_path)))
                sizes.add(len(store.get(uri)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(20):
            store.put(uri, CONTENT)
            store.create(str(tmp_path / f"new-{number}"), CONTENT)
        done.set()
        watcher.join()
        assert sizes == {len(CONTENT)}

    def test_killed_while_writing(self, store, tmp_path):
        """A worker that is killed leaves nothing under the name that it was writing to, and nothing in listings."""
        fifo = tmp_path / "source"
        os.mkfifo(fifo)
        script = (
            "import sys, pathlib; from pipeline.store import Store; Store().put(sys.argv[1], pathlib.Path(sys.argv[2]))"
        )
        root = str(Path(__file__).parents[2])
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "out/file"), str(fifo)],
            env={**os.environ, "PYTHONPATH": root},
        )
        with fifo.open("wb") as source:  # opens once the child reads, with its file begun
            source.write(CONTENT)
            source.flush()
            child.kill()
            child.wait()
        assert os.listdir(tmp_path / "out") != []  # noqa: PTH208 hidden ones are the point
        assert list(store.list(str(tmp_path / "out"))) == []
        assert not store.exists(str(tmp_path / "out/file"))

    def test_reader_of_a_replaced_file(self, store, tmp_path):
        """A reader does not get the beginning of one file and the end of another."""
        uri = str(tmp_path / "file")
        store.put(uri, CONTENT)
        with store.open(uri) as stream:
            start = stream.read(1000)
            store.put(uri, bytes(len(CONTENT)))
            assert start + stream.read() == CONTENT

    def test_without_links(self, store, tmp_path, monkeypatch):
        """A file system that has no links still has one winner."""

        def refuse(self, target):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(lambda n: store.create(str(tmp_path / "claim"), b"%d" % n), range(8)))
        assert won.count(True) == 1
        store.probe(str(tmp_path))

    def test_what_is_no_file(self, store, tmp_path):
        """A pipe does not hang the reader, a circle of links not the listing; a link to nothing is not passed over."""
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "circle").symlink_to(tmp_path)
        (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(NotFoundError, match="pipe, not a file"):
            store.open(str(tmp_path / "pipe"))
        assert names(store, str(tmp_path), str(tmp_path)) == ["dangling.jpg", "file"]

    def test_file_uri(self, store, tmp_path):
        """file:// and a plain path mean the same file."""
        store.put(f"file://{tmp_path}/with%20space/file", b"x")
        assert (tmp_path / "with space/file").read_bytes() == b"x"
        (info,) = store.list(f"file://{tmp_path}")
        assert store.get(info.uri) == b"x"
        with pytest.raises(UserError, match="names the host 'host'"):
            store.get("file://host/file")

    def test_relative_path(self, store, tmp_path, monkeypatch):
        """A relative path works, and can be made to mean the same in a worker that runs elsewhere."""
        monkeypatch.chdir(tmp_path)
        store.put("images/a.jpg", b"x")
        assert names(store, "images", "") == ["images/a.jpg"]
        assert names(store, "*/*.jpg", "") == ["images/a.jpg"]
        assert absolute("images/") == f"{tmp_path}/images/"
        assert absolute("s3://bucket/images") == "s3://bucket/images"

    def test_no_permission(self, store):
        """An unwritable output and an unreadable input are not found out late, or by a traceback."""
        root = Path(tempfile.mkdtemp())  # not below tmp_path, which is closed to others
        (root / "secret").mkdir(0o000)
        root.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(AccessError, match=f"{root}/run.*permission denied"):
                store.probe(f"{root}/run")
            with pytest.raises(AccessError, match=f"{root}/secret/: permission denied"):
                list(store.list(str(root)))
        finally:
            os.seteuid(user)
            root.chmod(0o755)
            shutil.rmtree(root)

    def test_no_room(self, store, tmp_path):
        """A file that cannot be written to its end is one sentence, and leaves nothing behind."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            for write in (store.put, store.create):
                with pytest.raises(StoreError, match=f"{tmp_path}/out/file: file too large"):
                    write(str(tmp_path / "out/file"), CONTENT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list((tmp_path / "out").iterdir()) == []


class TestBrokenTransfers:
    @pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
    @pytest.mark.parametrize("whole", [True, False])
    def test_goes_on_where_it_stopped(self, proxied, proxy, s3_uri, kind, whole):
        """A connection that dies, or falls silent, in the middle of an object does not lose or repeat bytes."""
        store = Store(Patience(attempts=3, read_s=1.0)) if kind == "stall" else proxied
        proxy.faults += [Fault(kind, after=1_500_000)] * 2
        with store.open(join(s3_uri, "object")) as stream:
            data = stream.read() if whole else b"".join(iter(lambda: stream.read(100_003), b""))
        assert data == CONTENT
        first, *others = proxy.requests
        assert "Range:" not in first
        assert len(others) == 2
        if kind != "reset":  # a reset can take along all that had arrived
            assert all("Range: bytes=" in request and "If-Match:" in request for request in others)

    def test_undisturbed_is_one_request(self, proxied, proxy, s3_uri):
        """Reading front to back does not ask for an object piece by piece."""
        with proxied.open(join(s3_uri, "object")) as stream:
            assert b"".join(iter(lambda: stream.read(5_000), b"")) == CONTENT
        assert len(proxy.requests) == 1

    def test_gives_up(self, proxied, proxy, s3_uri):
        """A store that breaks off every transfer does not hold a worker for ever."""
        head = "HTTP/1.1 206 X\r\nContent-Length: 9\r\nContent-Range: bytes 2000000-2000008/3072000\r\nETag: {}\r\n\r\n"
        only_head = head.format(proxied.stat(join(s3_uri, "object")).etag).encode()
        with proxied.open(join(s3_uri, "object")) as stream:
            stream.seek(2_000_000)
            proxy.faults += [Fault("answer", answer=only_head)] * 3
            with pytest.raises(UnreachableError, match="broke off at byte 2000000 of 3072000, 3 times"):
                stream.read()
            assert stream.read() == CONTENT[2_000_000:]

    @pytest.mark.parametrize("new", [CONTENT[::-1], b"short"])
    def test_replaced_while_read(self, store, proxied, proxy, s3_uri, new):
        """The rest of another object is not read as the rest of this one."""
        replace = functools.partial(store.put, join(s3_uri, "object"), new)
        proxy.faults.append(Fault("reset", after=1_000_000, meanwhile=replace))
        with proxied.open(join(s3_uri, "object")) as stream, pytest.raises(ChangedError, match="object was replaced"):
            stream.read()

    def test_replaced_before_a_seek(self, s3_uri, store):
        """The footer of one Parquet file is not used with the pages of another."""
        store.put(join(s3_uri, "object"), CONTENT)
        with store.open(join(s3_uri, "object")) as stream:
            stream.read(10)
            store.put(join(s3_uri, "object"), CONTENT[::-1])
            stream.seek(2_500_000)
            with pytest.raises(ChangedError, match="object was replaced"):
                stream.read(10)


class TestCommitUnderFaults:
    @pytest.mark.parametrize("late", [False, True])
    def test_answer_of_a_finished_put_is_lost(self, store, proxied, proxy, s3_uri, late):
        """We do not believe a 412 that our own first try caused: the shard's labels would be thrown away."""
        uri = join(s3_uri, "commit")
        proxy.faults.append(Fault("lost", "PUT"))
        if late:  # the first try arrives after we looked for it
            proxy.faults.append(Fault("answer", "GET", answer=answer("404 Not Found", "NoSuchKey")))
        assert proxied.create(uri, b"ours")
        assert store.get(uri) == b"ours"
        assert [request.split(" ")[0] for request in proxy.requests].count("PUT") == 1 + late

    def test_answer_is_lost_and_another_had_won(self, store, proxied, proxy, s3_uri):
        """We do not believe that we won because an answer was lost."""
        uri = join(s3_uri, "commit")
        store.create(uri, b"another's")
        proxy.faults.append(Fault("truncate", "PUT"))
        assert not proxied.create(uri, b"ours")

    @pytest.mark.parametrize("refusal", ["500 InternalError", "503 SlowDown", "409 ConditionalRequestConflict"])
    def test_put_is_refused_for_a_while(self, proxied, proxy, s3_uri, refusal):
        """A store that is busy, or in a conflict, does not fail a shard whose labels are ready."""
        spoiled = answer(refusal, refusal.split(" ")[1])
        proxy.faults += [Fault("answer", "PUT", answer=spoiled)] * 2
        assert proxied.create(join(s3_uri, "commit"), b"ours")

    def test_store_without_conditions(self, proxied, proxy, s3_uri):
        """A store that refuses conditional writes is refused by name, before the run."""
        proxy.faults.append(Fault("answer", "PUT", answer=answer("501 Not Implemented", "NotImplemented")))
        with pytest.raises(UserError, match=f"{s3_uri}/run.*NotImplemented"):
            proxied.probe(join(s3_uri, "run"))


class TestCredentials:
    @pytest.fixture
    def refusing(self, request, s3_uri, s3_endpoint):
        """Lets moto look at signatures, which SeaweedFS does at all times."""

        def look(count):
            headers = {"Content-Type": "text/plain"}
            request = urllib.request.Request(f"{s3_endpoint}/moto-api/reset-auth", data=count, headers=headers)
            urllib.request.urlopen(request).close()

        real = request.config.getoption("--s3") != "moto"
        if not real:
            look(b"0")
        yield
        if not real:
            look(b"inf")

    def test_expired(self, proxied, proxy, s3_uri):
        """Credentials that were renewed are taken up in the middle of a run; expired ones are named."""
        expired = Fault("answer", "PUT", answer=answer("400 Bad Request", "ExpiredToken"))
        proxy.faults.append(expired)
        proxied.put(join(s3_uri, "object"), b"x")
        proxy.faults += [expired] * 2
        proxied.put(join(s3_uri, "object"), b"x")
        proxy.faults += [expired] * 3
        with pytest.raises(AccessError, match="object: the credentials have expired"):
            proxied.put(join(s3_uri, "object"), b"x")
        big = Fault("answer", "POST", answer=answer("400 Bad Request", "ExpiredToken"))
        proxy.faults.append(big)
        file = Path(tempfile.mkdtemp()) / "big"
        file.write_bytes(CONTENT * 3)
        proxied.put(join(s3_uri, "object"), file)
        shutil.rmtree(file.parent)
        assert proxied.stat(join(s3_uri, "object")).bytes == len(CONTENT) * 3

    def test_wrong(self, refusing, s3_uri, monkeypatch):
        """Wrong credentials are not taken for an empty input, and the secret is not shown."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        store = Store(Patience(attempts=3))
        for ask in (
            lambda: list(store.list(s3_uri)),
            lambda: store.stat(join(s3_uri, "object")),
            lambda: store.get(join(s3_uri, "object")),
            lambda: store.probe(s3_uri),
            lambda: store.put(join(s3_uri, "object"), b"x"),
        ):
            with pytest.raises(AccessError, match=rf"{s3_uri}.*refused \(InvalidAccessKeyId\)") as caught:
                ask()
            assert seaweed.SECRET not in str(caught.value)

    def test_none(self, s3_uri, monkeypatch):
        """A machine without credentials is one sentence."""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(AccessError, match=f"{s3_uri}.*no credentials"):
            list(Store().list(s3_uri))

    def test_redaction(self):
        """Passwords and signatures do not reach a log through a URI."""
        assert redact("no https://me:pass@word@host/a?b=c&sig=d.") == "no https://***@host/a?***"
        assert redact("https://token@host/a") == "https://***@host/a"
        assert redact("sftp://me:pass@host/a") == "sftp://***@host/a"
        for harmless in ("s3://bucket/img?.jpg", "abfs://container@account/x", "s3://bucket/a@b:c", "12:30 x@y"):
            assert redact(harmless) == harmless


class TestAddresses:
    def test_endpoint_down(self, s3_environment, monkeypatch):
        """An endpoint that is down is named at once, and is not an empty input."""
        store = Store(Patience(attempts=3))
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://user:pass@127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        host = url.replace("user:pass@", "")
        for ask in (lambda: list(store.list("s3://bucket/data")), lambda: store.probe("s3://bucket/data")):
            with pytest.raises(UnreachableError, match=f"s3://bucket/data.*{host} does not answer") as caught:
                ask()
            assert "pass" not in str(caught.value)

    def test_no_such_bucket(self, s3_environment, store):
        """A misspelt bucket is not an empty input."""
        for ask in (
            lambda: list(store.list("s3://no-such-bucket")),
            lambda: list(store.list("s3://no-such-bucket/data/*.tar")),
            lambda: store.get("s3://no-such-bucket/object"),
            lambda: store.stat("s3://no-such-bucket/object"),
            lambda: store.create("s3://no-such-bucket/object", b"x"),
            lambda: store.probe("s3://no-such-bucket/run"),
        ):
            with pytest.raises(NotFoundError, match=r"no-such-bucket.*no such bucket"):
                ask()

    @pytest.mark.parametrize(
        ("uri", "sentence"),
        [
            ("gopher://host/x", "no such kind of storage; a local path, file://, s3://"),
            ("gcs://bucket/x", "needs a package that is not installed: .*gcsfs"),
            ("s3://", "names no bucket"),
            ("s3://Not A Bucket/x", "names no bucket"),
            ("s3://buck*/x", "names no bucket; .*without wildcards"),
            ("x://y://z", "no such kind of storage"),
            ("a b://c", "neither a path nor a URI"),
            ("data/[z-a]", "is no pattern"),
            ("a\0b", "zero byte"),
        ],
    )
    def test_what_is_no_place(self, s3_environment, store, uri, sentence):
        """A URI that means nothing here is one sentence that says what does."""
        with pytest.raises(UserError, match=sentence):
            list(store.list(uri))

    def test_endpoint_that_is_no_url(self, s3_environment, monkeypatch):
        """A slip in AWS_ENDPOINT_URL is not a traceback."""
        store = Store(Patience(attempts=3))
        monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
        with pytest.raises(UserError, match=r"settings for S3.*localhost:9000"):
            store.get("s3://bucket/x")

    def test_pattern_narrows_the_listing(self):
        """A pattern does not make an S3 bucket list all that it holds."""
        chosen = selection("s3://bucket/data/train-*/part-?.tar")
        assert (chosen.directory, chosen.start, chosen.depth) == ("s3://bucket/data/", "train-", 2)


class TestGeneric:
    def test_memory(self, store):
        """A scheme that comes by fsspec keeps to the same contract."""
        base = f"memory://{uuid.uuid4().hex}"
        store.probe(base)
        assert list(store.list(base)) == []
        assert store.create(join(base, "claim"), b"one")
        assert not store.create(join(base, "claim"), b"two")
        store.put(join(base, "big"), CONTENT * 5)
        with store.open(join(base, "big")) as one, store.open(join(base, "big")) as two:
            assert one.read(10_000_000) + one.read() == two.read() == CONTENT * 5
        info = store.stat(join(base, "claim"))
        store.delete(join(base, "claim"))
        store.delete(join(base, "claim"))
        with pytest.raises(NotFoundError, match="claim: there is no such object"):
            store.open(join(base, "claim"), etag=info.etag)

    def test_replaced_while_read(self, store):
        """A large object that changes under the reader is not taken for one."""
        uri = f"memory://{uuid.uuid4().hex}"
        store.put(uri, CONTENT * 5)
        with store.open(uri) as stream:
            stream.read(10)
            store.put(uri, CONTENT * 5)
            with pytest.raises(ChangedError, match="was replaced while"):
                stream.read()

    def test_exclusion_that_is_not_safe(self, store, tmp_path):
        """A package that looks first and writes then is not trusted with commits."""
        assert fsspec.get_filesystem_class("local").pipe_file is fsspec.AbstractFileSystem.pipe_file
        with pytest.raises(UserError, match="does not support put-if-absent"):
            store.create(f"local://{tmp_path}/claim", b"x")

    @pytest.fixture
    def web(self, tmp_path):
        """A plain web server over a directory."""

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *parts):
                pass

            def do_HEAD(self):
                return self.send_error(403) if "secret" in self.path else super().do_HEAD()

            def do_GET(self):
                return self.send_error(403) if "secret" in self.path else super().do_GET()

        handler = functools.partial(Handler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()

    def test_web_server(self, store, web, tmp_path):
        """A web server can be read and listed, cannot be written, and its refusals are told apart."""
        (tmp_path / "data").mkdir()
        (tmp_path / "data/big").write_bytes(CONTENT * 5)
        (tmp_path / "data/small").write_bytes(b"small")
        assert store.get(f"{web}/data/small") == b"small"
        with store.open(f"{web}/data/big", etag=store.stat(f"{web}/data/big").etag) as stream:
            assert stream.read(9_000_000) + stream.read() == CONTENT * 5
        assert names(store, f"{web}/data/", web) == ["data/big", "data/small"]
        assert names(store, f"{web}/data/small", web) == ["data/small"]
        with pytest.raises(NotFoundError, match=r"nothing\?\*\*\*: there is no such object"):
            store.get(f"{web}/nothing?token=hidden")
        with pytest.raises(AccessError, match=r"access was refused \(403\)"):
            store.get(f"{web}/secret")
        with pytest.raises(UserError, match="http:// can only be read"):
            store.put(f"{web}/new", b"x")
        with pytest.raises(UserError, match="http:// can only be read"):
            store.probe(f"{web}/run")

    def test_web_server_down(self, store):
        """A web server that is down is not a missing file."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with pytest.raises(UnreachableError, match=f"{url}: the store does not answer"):
            store.get(url)
