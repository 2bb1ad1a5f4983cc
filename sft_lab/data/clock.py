"""The clock of chat templates: Transformers offers them ``strftime_now``, and a run must say which day it told them."""

from __future__ import annotations

import datetime


def is_read(jinja: str) -> bool:
    """Return whether a template asks for the date."""
    import jinja2

    try:
        return any(token[1:] == ("name", "strftime_now") for token in jinja2.Environment().lex(jinja))  # noqa: S701
    except jinja2.TemplateSyntaxError:
        return False  # rendering says what is wrong with it


def set_to(date: datetime.date, jinja: str) -> None:
    """Have a template's ``strftime_now`` tell the midnight that a date begins with.

    A function that is handed to ``apply_chat_template`` is turned into text, so the compiled template is told, which
    Transformers keeps by its text and renders next.
    """
    from transformers.utils import chat_template_utils

    midnight = datetime.datetime.combine(date, datetime.time())
    compiled = chat_template_utils._compile_jinja_template(jinja)  # noqa: SLF001
    compiled.globals["strftime_now"] = midnight.strftime
