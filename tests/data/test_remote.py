"""Remote sources (servers on loopback, fsspec's memory), folders of save_to_disk, and files read in pieces."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_lab import compose
from sft_lab.core import remote
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, SourceError
from sft_lab.core.store import Store
from sft_lab.core.store_view import StoreView
from sft_lab.data.json_array import read_array
from sft_lab.data.load import OnError
from sft_lab.data.mixture import Ingredient, Mixture
from sft_lab.data.sources import File, Hub
from sft_lab.run import inputs

ROWS = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}."} for n in range(30)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


def content(name: str) -> bytes:
    """Give the rows as a file of that kind."""
    packed, _, packing = name.rpartition(".")
    packings = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}
    if packing in packings:
        return packings[packing](content(packed))
    table, sink = pa.Table.from_pylist(ROWS), io.BytesIO()
    if packing == "parquet":
        pq.write_table(table, sink)
    elif packing == "arrow":
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, 7)
    elif packing == "json":
        return json.dumps(ROWS).encode()
    elif packing == "csv":
        return ("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)).encode()
    else:
        return LINES
    return sink.getvalue()


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


class Server(ThreadingHTTPServer):
    """Serves a folder and notes what was asked for; it may give no time of change and no length."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests, self.cuts, self.is_versioned = folder, list[tuple[str, str]](), False, True
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [path for method, path in self.requests if method == "GET" and not path.endswith("/")]


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, request: Any, address: Any, server: Server) -> None:
        self.noted = server
        super().__init__(request, address, server, directory=str(server.folder))

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.noted.requests.append((self.command, self.path))
        return parsed

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified" or self.noted.is_versioned:
            super().send_header(keyword, value)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(100) if self.noted.cuts else source.read())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    (tmp_path / "served").mkdir()
    serving = Server(tmp_path / "served")
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


def again(context: StageContext) -> StageContext:
    """Give what another process has: the same store, and nothing in memory."""
    return StageContext(Store(context.store.root))


# Kinds

KINDS = [f"a{kind}{packing}" for kind in (".jsonl", ".json", ".csv", ".arrow") for packing in ("", ".gz", ".zst")]


@pytest.mark.parametrize("name", [*KINDS, "a.jsonl.xz", "a.arrow.bz2", "a.parquet"])
@pytest.mark.parametrize("is_remote", [True, False])
def test_every_kind_gives_the_same_rows(
    context: StageContext, memory: Any, tmp_path: Path, name: str, is_remote: bool
) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    expected = File(path=str(tmp_path / "a.jsonl"))(context).selection.ids
    data = content(name)
    memory.pipe_file(f"/{name}", data)
    (tmp_path / name).write_bytes(data)
    source = File(path=f"memory://{name}" if is_remote else str(tmp_path / name))
    assert source.check() == []
    assert list(source(context).selection.ids) == list(expected)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.arrow.gz", "a.arrow", "a.arrow.zst", "a.json.zst", "a.parquet"])
def test_a_file_that_is_cut_short_is_named(context: StageContext, tmp_path: Path, name: str) -> None:
    data = content(name)
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=rf"{name}.*(cannot be read completely|after row \d+: not an Arrow|Parquet)"):
        File(path=str(tmp_path / name))(context)
    assert list(context.store.listing()) == []


def test_zstd_of_several_frames_is_read_to_its_end(context: StageContext, tmp_path: Path) -> None:
    frames = [zstd(line) for line in LINES.splitlines(keepends=True)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert len(File(path=str(tmp_path / "a.jsonl.zst"))(context).rows) == 30


def test_arrow_in_its_file_format(context: StageContext, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, 4)
    assert len(File(path=str(tmp_path / "a.arrow"))(context).rows) == 30


@pytest.mark.parametrize("is_remote", [True, False])
def test_a_folder_of_save_to_disk(context: StageContext, memory: Any, tmp_path: Path, is_remote: bool) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.select(range(5, 30)).save_to_disk(tmp_path / "saved", num_shards=3)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "parts")
    if is_remote:
        for name in ("saved", "parts"):
            memory.put(str(tmp_path / name), f"/{name}", recursive=True)
    root = "memory:/" if is_remote else str(tmp_path)
    expected = [row["answer"] for row in ROWS[5:]]
    assert File(path=f"{root}/saved")(context).rows.column("answer") == expected
    assert len(File(path=f"{root}/parts/train")(context).rows) == 30
    (problem,) = File(path=f"{root}/parts").check()
    assert f"has the splits train, test; give the path of one of them, {root}/parts/train" in problem


# URLs


def test_a_url_is_read_once_and_again_when_it_changes(context: StageContext, server: Server) -> None:
    (server.folder / "a.jsonl").write_bytes(LINES)
    source = File(path=f"{server.url}/a.jsonl?download=true")
    assert source.check() == []
    assert not source.is_known(context.store)
    assert server.downloads() == []  # plan and check download nothing
    key = source(context).rows.key
    assert len(server.downloads()) == 1
    assert source.fingerprint(context.store) == File(path=source.path).fingerprint(again(context).store)
    assert File(path=source.path).is_known(StoreView(context.store.root))
    assert source(again(context)).rows.key == key
    assert len(server.downloads()) == 1
    (server.folder / "a.jsonl").write_bytes(LINES[: LINES.index(b"\n") + 1])
    other = source(again(context))
    assert (len(other.rows), len(server.downloads())) == (1, 2)
    assert other.rows.key != key


def test_without_a_version_the_content_is_the_identity(context: StageContext, server: Server) -> None:
    server.is_versioned = False
    (server.folder / "a.jsonl").write_bytes(LINES)
    source = File(path=f"{server.url}/a.jsonl")
    key = source(context).rows.key
    assert source.fingerprint(context.store)
    assert len(server.downloads()) == 1
    assert source(again(context)).rows.key == key
    assert len(server.downloads()) == 2
    (server.folder / "a.jsonl").write_bytes(LINES.replace(b"is", b"IS"))
    assert source(again(context)).rows.key != key


def test_globs_of_urls(context: StageContext, server: Server, memory: Any) -> None:
    for number, name in enumerate(("b.jsonl", "a.jsonl", ".c.jsonl", "d.txt", "[e].jsonl")):
        (server.folder / name).write_bytes(LINES.splitlines(keepends=True)[number])
        memory.pipe_file(f"/rows/{name}", LINES.splitlines(keepends=True)[number])
    (server.folder / "in").mkdir()
    for root in (server.url, "memory://rows"):
        assert File(path=f"{root}/[ab].jsonl")(context).rows.column("answer") == ["It is 2.", "It is 1."]
    assert File(path="memory://rows/[e].jsonl")(context).rows.column("answer") == ["It is 5."]
    assert len(File(path="memory://rows/*.jsonl")(context).rows) == 3
    assert "no such file" in File(path="memory://rows/*.csv").check()[0]
    assert "d.txt is not a supported file type" in File(path="memory://rows/*").check()[0]


def test_an_error_names_the_url_and_the_line(context: StageContext, memory: Any) -> None:
    memory.pipe_file("/a.jsonl", LINES.splitlines(keepends=True)[0] + b"{\n")
    with pytest.raises(SourceError, match=r"^memory://a\.jsonl, line 2: not JSON"):
        File(path="memory://a.jsonl")(context)


def test_a_broken_connection_is_an_error(context: StageContext, server: Server) -> None:
    (server.folder / "a.jsonl").write_bytes(LINES)
    server.cuts = True
    with pytest.raises(SourceError, match=r"a\.jsonl: cannot be read \(ClientPayloadError"):
        File(path=f"{server.url}/a.jsonl")(context)
    assert list(context.store.listing()) == []
    closed = Server(server.folder)
    closed.server_close()
    assert "no such file" in File(path=f"{server.url}/b.jsonl").check()[0]
    (problem,) = File(path=f"{closed.url}/a.jsonl").check()
    assert "cannot be read (ClientConnectorError" in problem
    assert "check the URL, the network" in problem


def test_a_file_that_changes_on_the_way_is_refused(context: StageContext, memory: Any, monkeypatch: Any) -> None:
    memory.pipe_file("/a.jsonl", LINES)
    get_file = type(memory).get_file

    def changing(filesystem: Any, path: str, target: str, **options: Any) -> None:
        get_file(filesystem, path, target, **options)
        memory.pipe_file("/a.jsonl", LINES * 2)  # somebody writes while we read

    monkeypatch.setattr(type(memory), "get_file", changing)
    with pytest.raises(SourceError, match=r"memory://a\.jsonl: changed while it was read"):
        File(path="memory://a.jsonl")(context)
    assert list(context.store.listing()) == []


def test_a_mixture_reads_urls_beside_files(context: StageContext, memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/a.jsonl", LINES)
    (tmp_path / "b.jsonl").write_bytes(LINES)
    parts = {"far": Ingredient(path="memory://a.jsonl"), "near": Ingredient(path=str(tmp_path / "b.jsonl"))}
    mixture = Mixture(sources=parts)
    assert mixture.check() == []
    assert not mixture.is_known(context.store)
    assert mixture(context).rows.column("source") == ["far"] * 30 + ["near"] * 30
    assert mixture.sources["far"].path == "memory://a.jsonl"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "sftp://host/a.jsonl",
            "sftp:// needs the package paramiko, which is not installed; run: pip install paramiko",
        ),
        ("nosuch://host/a.jsonl", "unknown scheme nosuch://"),
    ],
)
def test_a_scheme_that_cannot_be_read_says_what_is_missing(url: str, words: str) -> None:
    (problem,) = File(path=url).check()
    assert problem.startswith(f"dataset.path={url}: ")
    assert words in problem
    assert words in remote.missing_file(url)


@pytest.mark.parametrize("query", ["X-Amz-Signature=0123456789abcdef", "sv=1&sig=0123456789abcdef", "token=0123456789"])
def test_a_url_that_is_a_credential_is_refused(query: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(["dataset=file", f"dataset.path='https://host/a.jsonl?{query}'"])
    assert "0123456789" not in str(raised.value)


def test_a_hub_set_is_read_in_batches(context: StageContext, monkeypatch: Any) -> None:
    """The Hub's own client is left out: what it returns is memory-mapped Arrow."""
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    records = [{"id": str(n), "messages": turns[: n % 3], "score": None, "tags": ["a"] * (n % 2)} for n in range(20)]
    loaded: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, revision: str) -> datasets.Dataset:
        loaded.append((name, config, split, revision))
        return datasets.Dataset.from_list(records)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("sft_lab.data.sources.BATCH", 7)
    source = Hub(name="me/set", revision="a" * 40, eval_split="test")
    assert list(source.records(context.store)) == [(split, row) for split in ("train", "test") for row in records]
    assert loaded == [("hf://datasets/me/set", None, split, "a" * 40) for split in ("train", "test")]


def test_benchmarks_and_question_sets_may_be_urls(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/a.jsonl", LINES)
    words = ["decontaminate.against=[memory://a.jsonl]", "evaluation.domain=memory://a.jsonl", f"store.path={tmp_path}"]
    run = compose([*words, "split=file", "split.path=memory://a.jsonl", "model=tiny_random"])
    assert run.decontaminate.check() == run.evaluation.check() == run.split.check() == []
    noted = inputs.hashes(run, run.store.open())
    sha256 = hashlib.sha256(LINES).hexdigest()
    for key in ("decontaminate.against.0", "evaluation.domain", "split.path"):
        assert noted[key] == {"path": "memory://a.jsonl", "sha256": sha256}
    memory.rm("/a.jsonl")
    for stage, key in ((run.decontaminate, "decontaminate.against"), (run.evaluation, "evaluation.domain")):
        (problem,) = stage.check()
        assert problem.startswith(f"{key}=memory://a.jsonl: no such file; give ")


# In pieces


def array(text: str, max_record_mb: float = 64) -> list[Any]:
    """Read a JSON array from a stream; errors as their text."""
    outcomes = read_array("a.json", io.BytesIO(text.encode()), max_record_mb)
    return [str(outcome) if isinstance(outcome, SourceError) else outcome for outcome in outcomes]


def test_an_array_is_decoded_across_the_borders_of_its_pieces(monkeypatch: Any) -> None:
    records = [{"n": 12345, "text": 'a "quoted" \\ text\n', "deep": [{"x": [1.5e3, None, True]}]}, {}, {"n": -1}]
    text = json.dumps([*records, 17, None, "text"], indent=1)
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr("sft_lab.data.json_array._CHUNK", size)
        assert array(text) == [*records, None, None, None]
        assert array(" [ ] ") == []
        (error,) = array("")
        assert error == "a.json: is empty; a .json file must be a list of records"


@pytest.mark.parametrize(
    ("text", "records", "words"),
    [
        ('[{"a": 1},\n{"a": 2}\n{"a": 3}]', 2, "line 3: not JSON (] expected)"),
        ('[{"a": 1},\n{"a": }]', 1, "line 2: not JSON (Expecting value)"),
        ('[{"a": 1},\n{"a": 1, "a": 2}]', 1, "line 2: not JSON (more than one field named a)"),
        ('[{"a": 1}]\n[]', 1, "line 2: not JSON (extra data)"),
        ('[{"a": 1}', 1, "line 1: not JSON (] expected)"),
        ('{"a": 1}\n{"a": 2}', 0, "line 2: not JSON (extra data)"),
        ("null", 0, "must be a list of records, not a NoneType"),
        ('[{"a": "' + "x" * 2**20 + '"}]', 0, "or longer than dataset.max_record_mb=0.5"),
    ],
)
@pytest.mark.parametrize("size", [3, 2**20])
def test_a_broken_array_is_read_up_to_its_fault(
    text: str, records: int, words: str, size: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sft_lab.data.json_array._CHUNK", size)
    *before, error = array(text, 0.5)
    assert len(before) == records
    assert words in error


@pytest.mark.parametrize("size", [1, 2, 5, 2**20])
def test_an_array_that_is_not_utf8_is_named_with_its_line(size: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("sft_lab.data.json_array._CHUNK", size)
    data = '[{"a": "ü"},\n{"a":\n"Où"}]'
    assert list(read_array("a.json", io.BytesIO(b"\xef\xbb\xbf" + data.encode()), 64)) == [{"a": "ü"}, {"a": "Où"}]
    for cut in (data.encode().replace(b"\xc3\xb9", b"\xf9"), data.encode()[:-4]):
        *_, error = read_array("a.json", io.BytesIO(cut), 64)
        assert "a.json, line 3: not UTF-8 (" in str(error)


@pytest.mark.slow
def test_long_rows_and_broken_lines_at_any_place(context: StageContext, tmp_path: Path) -> None:
    long = json.dumps({"question": "Long?", "answer": "x " * 5 * 2**20}).encode() + b"\n"
    lines = LINES.splitlines(keepends=True)
    path = tmp_path / "a.jsonl"
    for position in (0, 15, 30):
        path.write_bytes(b"".join([*lines[:position], long, b"{\n", *lines[position:]]))
        with pytest.raises(SourceError, match=rf"a\.jsonl, line {position + 2}: not JSON"):
            File(path=str(path))(again(context))
        loaded = File(path=str(path), on_error=OnError.skip)(again(context))
        assert [len(answer) > 2**20 for answer in loaded.rows.column("answer")].index(True) == position
        assert len(loaded.rows) == 31
    path.write_bytes(lines[0].rstrip())
    assert len(File(path=str(path))(again(context)).rows) == 1


@pytest.mark.slow
def test_a_parquet_file_is_decoded_a_few_rows_at_a_time(tmp_path: Path, context: StageContext) -> None:
    """Two hundred rows of a megabyte in one row group: Arrow holds far less than all of them."""
    rows = [{"question": f"{n}?", "answer": f"{n} " + "x" * 2**20} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", use_dictionary=False, write_batch_size=1)
    del rows
    before = pa.total_allocated_bytes()
    peak = 0
    for _, record in File(path=str(tmp_path / "a.parquet")).records(context.store):
        assert record is not None
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 60 * 2**20


@pytest.mark.slow
def test_a_bucket_of_s3(context: StageContext, monkeypatch: Any) -> None:
    """A file, a glob and a folder of save_to_disk, from moto's server by s3fs."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = s3fs.S3FileSystem()
        bucket.mkdir("rows")
        bucket.pipe_file("rows/in/a.jsonl", LINES)
        bucket.pipe_file("rows/in/b.parquet", content("b.parquet"))
        datasets.Dataset.from_list(ROWS).save_to_disk("s3://rows/saved")

        source = File(path="s3://rows/in/a.jsonl")
        assert source.check() == []
        assert not source.is_known(context.store)
        key = source(context).rows.key
        assert len(File(path="s3://rows/in/*.*")(context).rows) == 60
        assert len(File(path="s3://rows/saved")(context).rows) == 30
        assert source(again(context)).rows.key == key
        assert [entry.stage for entry in context.store.listing()].count("remote") == 3
        assert "no such file" in File(path="s3://rows/in/c.jsonl").check()[0]
        assert "s3://none/c.jsonl: " in File(path="s3://none/c.jsonl").check()[0]
    finally:
        moto.stop()
