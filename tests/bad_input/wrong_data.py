"""Wrong files, encodings, columns and sizes: what is read, and what is left of it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wrong_input import PREPARE, TRAIN, Wrong
from wrong_words import written


def row(number: int, **more: Any) -> dict[str, Any]:
    turns = [("human", f"Question number {number}?"), ("gpt", f"Answer number {number}.")]
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def lines(rows: list[Any]) -> str:
    return "".join(f"{json.dumps(one)}\n" for one in rows)


GOOD = lines([row(number) for number in range(200)])
ENOUGH = [row(number) for number in range(30)]


def source(place: str, what: str, name: str, make: Any, *words: str, **more: Any) -> Wrong:
    """Rows of a file; ``make`` is its content, or what makes it."""
    maker = make if callable(make) else written(name, make)
    return Wrong(place, what, [*PREPARE, "dataset=file", f"dataset.path={name}", *words], maker, **more)


def file(what: str, name: str, make: Any, *words: str, **more: Any) -> Wrong:
    return source("files", what, name, make, *words, **more)


def encoding(what: str, name: str, content: bytes) -> Wrong:
    return source("encodings", what, name, content)


def size(what: str, rows: Any, *words: str, **more: Any) -> Wrong:
    return source("sizes", what, "data.jsonl", rows, *words, **more)


def held_out(what: str, rows: Any, *words: str) -> Wrong:
    """Rows too few to be judged by, which ``prepare`` only mentions."""
    maker = rows if callable(rows) else written("data.jsonl", rows)
    return Wrong("sizes", what, [*TRAIN, "dataset=file", "dataset.path=data.jsonl", *words], maker)


def rows(what: str, content: Any, *words: str, name: str = "data.jsonl") -> Wrong:
    return source("rows", what, name, content if callable(content) else lines(content), *words)


def several(contents: dict[str, str]) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        for name, content in contents.items():
            (here / name).write_text(content)

    return make


def linked(target: str) -> Callable[[Path], None]:
    return lambda here: (here / "data.jsonl").symlink_to(target)


def parquet(change: Callable[[bytes], bytes] = bytes, **columns: list[Any]) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        whole = io.BytesIO()
        pq.write_table(pa.table(columns), whole)
        (here / "data.parquet").write_bytes(change(whole.getvalue()))

    return make


def arrow(end: int) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        import pyarrow as pa

        stream = io.BytesIO()
        table = pa.table(PAIRS)
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        (here / "data.arrow").write_bytes(stream.getvalue()[:end])

    return make


def several_splits(here: Path) -> None:
    (here / "saved").mkdir()
    (here / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def conversation(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def tool_row(arguments: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    turns = [{"role": "user", "content": "Warm?"}, {"role": "assistant", "tool_calls": [{"function": function}]}]
    return {"messages": turns}


# Refuses what every row of GOOD asks.
STRICT = """\
{%- for message in messages -%}
{%- if message.content.startswith('Question number') -%}{{ raise_exception('no questions here') }}{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
PAIRS = {"prompt": ["a"] * 30, "completion": ["b"] * 30}
CASES = [
    file("missing", "nowhere.jsonl", lambda _: None),
    file("a glob that nothing matches", "'*.jsonl'", lambda _: None),
    file("a folder", "folder.jsonl", lambda here: (here / "folder.jsonl").mkdir()),
    file("of an unsupported type", "data.xlsx", "x"),
    file("an endless device", "data.jsonl", linked("/dev/zero")),
    file("a pipe", "data.jsonl", lambda here: os.mkfifo(here / "data.jsonl")),
    file("a link to itself", "data.jsonl", linked("data.jsonl")),
    file("with a read error", "data.jsonl", linked("/proc/self/mem")),
    file("empty", "data.jsonl", ""),
    file("an empty list", "data.json", "[]"),
    file("at a URL whose package is not installed", "sftp://host/rows.jsonl", lambda _: None),
    file("at a URL with an unknown scheme", "nosuch://host/rows.jsonl", lambda _: None),
    file("at a signed URL", "'https://host/rows.jsonl?X-Amz-Signature=0123456789abcdef'", lambda _: None),
    file("a folder of save_to_disk with several splits", "saved", several_splits),
    file("truncated Arrow", "data.arrow", arrow(-200)),
    file("Arrow in name only", "data.arrow", "prompt,completion\na,b\n"),
    file("a list with a broken record", "data.json", json.dumps(ENOUGH, indent=1)[:-300] + "]"),
    file("only a header", "data.csv", "prompt,completion\n"),
    file("truncated gzip", "data.jsonl.gz", gzip.compress(GOOD.encode(), 0, mtime=0)[:2000]),
    file("gzip in name only", "data.jsonl.gz", GOOD),
    file("gzip without .gz in the name", "data.json", gzip.compress(GOOD.encode(), mtime=0)),
    file("truncated bz2", "data.jsonl.bz2", bz2.compress(GOOD.encode())[:500]),
    file("bz2 without .bz2 in the name", "data.jsonl", bz2.compress(GOOD.encode())),
    file("xz without .xz in the name", "data.csv", lzma.compress(GOOD.encode())),
    file("zstd without .zst in the name", "data.jsonl", b"\x28\xb5\x2f\xfd" + b"\0" * 300),
    file("corrupt zstd", "data.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\0" * 300),
    file("a line longer than the limit", "data.jsonl", GOOD + "x" * 5000, "dataset.max_record_mb=0.002"),
    file("two columns with the same name", "data.csv", "prompt,completion,prompt\n" + "a,b,c\n" * 30),
    file("two fields with the same name in a turn", "data.jsonl",
         GOOD + '{"conversations": [{"from": "human", "value": "x", "value": "y"}]}\n'),
    file("a zip archive without .zip in the name", "data.jsonl", b"PK\x03\x04" + b"\0" * 300),
    file("truncated Parquet", "data.parquet", parquet(lambda whole: whole[:-20], **PAIRS)),
    file("corrupt Parquet", "data.parquet",
         parquet(lambda whole: whole[:40] + b"\xff" * 30 + whole[70:], **PAIRS)),
    file("Parquet in name only", "data.parquet", "prompt,completion\na,b\n"),
    file("Parquet without columns", "data.parquet", parquet()),
    file("CSV with an unclosed quote", "data.csv", 'prompt,completion\n"a,b\nc,d\n'),
    file("CSV with a quote inside a field", "data.csv", 'prompt,completion\n"a"x,b\n'),
    file("CSV with unquoted commas in its texts", "data.csv", "prompt,completion\n" + "a,b,c\n" * 30),
    file("half a line at the end", "data.jsonl", GOOD + '{"conversations": [{"from": "human", "val'),
    file("a list named .jsonl", "data.jsonl", json.dumps(ENOUGH)),
    file("a multi-line list named .jsonl", "data.jsonl", json.dumps(ENOUGH, indent=1)),
    file("lines named .json", "data.json", GOOD),
    file("an object named .json", "data.json", '{"data": []}'),
    file("a Python dict literal", "data.jsonl", "{'a': 1}\n"),
    file("100,000 nested lists", "data.jsonl", GOOD + "[" * 100_000 + "]" * 100_000 + "\n"),
    file("a number of 5,000 digits", "data.jsonl", GOOD + '{"conversations": ' + "9" * 5000 + "}\n"),
    file("held-out rows missing", "data.jsonl", GOOD, "split=file", "split.path=nowhere.jsonl"),
    file("a split that the source does not have", "data.jsonl", GOOD, "split=source"),
    file("a benchmark missing", "data.jsonl", GOOD, "decontaminate.against=[nowhere.jsonl]"),
    file("decisions missing", "data.jsonl", GOOD, "filter=[reviewed]", "filter.reviewed.path=nowhere.csv"),
    encoding("UTF-16", "data.jsonl", GOOD.encode("utf-16")),
    encoding("a CSV in UTF-16", "data.csv", "prompt,completion\na,b\n".encode("utf-16")),
    encoding("one line in latin-1", "data.jsonl",
             GOOD.encode() + json.dumps(row(1, note="é"), ensure_ascii=False).encode("latin-1")),
    encoding("Arabic in cp1256", "data.csv", "prompt,completion\nسلام,عليكم\n".encode("cp1256")),
    encoding("an Arabic header in cp1256", "data.csv", "سؤال,جواب\nسلام,عليكم\n".encode("cp1256")),
    encoding("Arabic in cp1256 after an English row", "data.jsonl", (json.dumps(row(1)) + '\n{"prompt": "سلام"}\n'
             ).encode("cp1256")),
    encoding("a CSV in UTF-16 without a BOM", "data.csv", "prompt,completion\nسلام,b\n".encode("utf-16-le")),
    encoding("a list in UTF-16", "data.json", json.dumps(ENOUGH).encode("utf-16")),
    encoding("one line in latin-1 after others in UTF-8", "data.jsonl",
             json.dumps(row(1, note="é"), ensure_ascii=False).encode() + b"\n"
             + json.dumps(row(2, note="é"), ensure_ascii=False).encode("latin-1")),
    encoding("UTF-8 cut inside a character", "data.json", '["é'.encode()[:-1]),
    encoding("binary data", "data.jsonl", bytes(range(256))),
    held_out("one row", lines([row(1)])),
    held_out("all rows equal", lines([row(1)] * 100)),
    size("no usable row", lines([conversation()] * 50 + [conversation(("human", "a"))] * 50)),
    size("a limit of no rows", GOOD, "dataset.limit=0"),
    held_out("no row short enough to be held out", GOOD, "trainer.max_length=1", "filter.length.max_tokens=1",
             "split.max_eval_tokens=1"),
    held_out("more held-out rows required than exist", GOOD, "split.min_eval_rows=10000000",
             "split.max_eval_rows=10000000"),
    held_out("too few rows in a held-out file", several({"data.jsonl": GOOD, "few.jsonl": lines([row(999)])}),
             "split=file", "split.path=few.jsonl", "split.min_eval_rows=5"),
    size("a template that rejects every row", several({"data.jsonl": GOOD, "strict.jinja": STRICT}),
         "template=file", "template.path=strict.jinja", "split.eval_share=0", fails=True),
    size("all rows held out", GOOD, "split.eval_share=1"),
    size("a filter that leaves nothing", GOOD, "filter=[length]", "filter.length.min_tokens=500", fails=True),
    size("the training rows held out as well", GOOD, "split=file", "split.path=data.jsonl", fails=True),
    rows("columns that match no known format", [{"foo": 1}] * 20),
    rows("user-named columns that do not exist", [{"foo": 1}] * 20, "dataset.columns={prompt: q, answer: a}"),
    rows("columns that do not match the given format", ENOUGH, "dataset.format=alpaca"),
    rows("a group that is not a column", ENOUGH, "dataset.group=topic"),
    rows("ids without numbers to group by", ENOUGH, "dataset.group=id_prefix"),
    rows("numbers instead of text in every row", [conversation(("human", 1), ("gpt", 2))] * 30),
    rows("unknown roles in every row", [conversation(("alice", "Hi?"), ("bob", "Hello."))] * 30),
    rows("unreadable tool calls in every row", [*[tool_row("Rome")] * 20, *[tool_row("[1]")] * 10]),
    rows("invalid tool schemas in every row", [row(number, tools=["weather"]) for number in range(30)]),
    rows("bytes instead of text", parquet(prompt=[b"\xff\xfe"] * 30, completion=[b"\xff"] * 30), name="data.parquet"),
    rows("no record with columns", [1, 2, 3]),
    rows("an invalid pattern", ENOUGH, "filter=[pattern]", "filter.pattern.drop=['(']"),
    rows("an unknown language code", ENOUGH, "filter=[language]", "filter.language.keep=[klingon]"),
]  # fmt: skip
