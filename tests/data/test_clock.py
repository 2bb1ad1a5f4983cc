"""Templates that write the date, which is an input of the run."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sft_lab.cli.main import main
from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.core.store import Store
from sft_lab.data import clock
from sft_lab.data.chat_template import Auto, Jinja, Template
from sft_lab.data.renderer import Renderer
from sft_lab.data.sources import File
from sft_lab.jobs.replay import replay

CLOCK = (  # as Llama 3.2's and Granite's: the date in a system turn
    "{{- '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y, %H:%M') + '.<|im_end|>\n' -}}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
LEAP_DAY, OTHER_DAY = datetime.date(2024, 2, 29), datetime.date(2025, 12, 31)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Say {n}, number {n}.", "completion": f"{n}, {n * 7} is seven times it."} for n in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "clock.jinja"
    file.write_text(CLOCK)
    return file


def first_text(template: Template, rows: Path, context: StageContext) -> str:
    _, encoded = template(File(path=str(rows))(context).rows, context)
    return str(encoded.table["text"][0])


def test_the_day_is_told_and_enters_the_key(tmp_path: Path, tiny: Any, rows: Path, template: Path) -> None:
    store = Store(tmp_path / "store")
    for date, words in ((LEAP_DAY, "Today is 29 Feb 2024, 00:00."), (OTHER_DAY, "Today is 31 Dec 2025, 00:00.")):
        context = StageContext(store, lambda: tiny, date)
        assert words in first_text(Jinja(path=str(template)), rows, context)
        assert any(f"writes the date into every conversation, {date} in this run" in one for one in context.notices)


def test_a_models_own_template_is_told_the_day_too(tmp_path: Path, tiny: Any, rows: Path) -> None:
    assert clock.is_read(
        "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
    )  # Llama
    own = type(tiny).from_pretrained(tiny.name_or_path)
    own.chat_template = CLOCK
    context = StageContext(Store(tmp_path / "store"), lambda: own, LEAP_DAY)
    assert "29 Feb 2024" in first_text(Auto(), rows, context)
    assert "29 Feb 2024" in Auto().bind(context).prompt([{"role": "user", "content": "Hi?"}]).text


def test_a_template_that_does_not_ask_is_the_same_on_every_day(tmp_path: Path, tiny: Any, rows: Path) -> None:
    jinja = Jinja(path="package:sft_lab/data/templates/chatml.jinja")
    (tmp_path / "words.jinja").write_text(jinja.jinja(tiny) + "{# strftime_now is not asked #}")
    for one in (jinja, Jinja(path=str(tmp_path / "words.jinja"))):
        keys, notices = set(), []
        for date in (LEAP_DAY, OTHER_DAY):
            context = StageContext(Store(tmp_path / "store"), lambda: tiny, date)
            keys.add(one(File(path=str(rows))(context).rows, context)[1].path.name)
            notices += context.notices
        assert (len(keys), notices) == (1, [])


def test_without_a_day_it_is_the_current_one(tiny: Any) -> None:
    before = datetime.datetime.now().astimezone().date()
    renderer = Renderer(tiny, CLOCK)
    assert renderer.date is not None
    assert before <= renderer.date <= datetime.datetime.now().astimezone().date()


WORDS = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1",
         "tracking=local", "dataset=file", "split.eval_share=0.3", "template=file"]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_goes_on_and_its_replay_keep_the_day(
    here: Path, rows: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, f"dataset.path={rows}", f"template.path={template}", "hydra.run.dir=run"]
    assert main(["prepare", *words]) == 0
    manifest = read_json(Path("run/manifest.json"))
    today = datetime.date.fromisoformat(manifest["template_date"])
    assert today <= datetime.datetime.now().astimezone().date()
    assert f"writes the date into every conversation, {today} in this run" in capsys.readouterr().err

    # As a run leaves them that began on another day and was killed.
    Path("run/manifest.json").write_text(json.dumps({**manifest, "template_date": "2024-02-29"}))
    status = read_json(Path("run/status.json"))
    Path("run/status.json").write_text(json.dumps({**status, "state": "running"}))
    assert main(["prepare", *words]) == 0
    assert read_json(Path("run/manifest.json"))["template_date"] == "2024-02-29"
    assert "2024-02-29 in this run" in capsys.readouterr().err

    done = replay(Path("run"), out=Path("again"))
    assert read_json(Path("again/manifest.json"))["template_date"] == "2024-02-29"
    assert (done.result, done.exit_code) == ([], 0)
    keys = [
        {one["key"] for one in read_json(Path(name, "manifest.json"))["stages"] if one["stage"] == "encode"}
        for name in ("run", "again")
    ]
    assert keys[0] == keys[1] != set()
    shutil.rmtree("run")
    assert main(["prepare", *words]) == 0
    assert read_json(Path("run/manifest.json"))["template_date"] == manifest["template_date"]
