"""Each wrong input ends with one message that names place, value, limit and remedy, and with nothing left behind."""

from __future__ import annotations

import pytest
from wrong_input import Wrong, tried
from wrong_table import CASES, FILE, HEAD, RENEW, line


def case(wrong: Wrong):
    return pytest.param(wrong, id=f"{wrong.place}: {wrong.what}", marks=[] if wrong.quick else [pytest.mark.slow])


@pytest.mark.parametrize("wrong", [case(wrong) for wrong in CASES])
def test_one_message_and_nothing_left_behind(wrong: Wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    told = tried(wrong, tmp_path)
    assert told.code == (1 if wrong.fails else 2), told
    assert len(told.messages) == 1, told
    assert "Traceback" not in told.err
    if not wrong.fails:
        assert told.left == []
    assert line(wrong, told) in FILE.read_text(encoding="utf-8"), f"not what the docs say; renew them: {RENEW}"


def test_the_table_has_these_rows_and_no_others():
    text = FILE.read_text(encoding="utf-8")
    assert text.startswith(HEAD), f"renew it: {RENEW}"
    listed = [row.split(" | ")[:2] for row in text.removeprefix(HEAD).splitlines()]
    cases = [[f"| {one.place}", f"{one.what}{' (*job failed*)' if one.fails else ''}"] for one in CASES]
    assert listed == cases, f"renew it: {RENEW}"
    assert len({tuple(row) for row in listed}) == len(listed)
