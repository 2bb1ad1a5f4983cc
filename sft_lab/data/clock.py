"""The date in chat templates: Transformers gives them ``strftime_now``, and a run must fix what it returns."""

from __future__ import annotations

import datetime


def is_read(jinja: str) -> bool:
    """Return whether a template uses the date."""
    import jinja2

    try:
        return any(token[1:] == ("name", "strftime_now") for token in jinja2.Environment().lex(jinja))  # noqa: S701
    except jinja2.TemplateSyntaxError:
        return False  # rendering will report the error


def set_to(date: datetime.date, jinja: str) -> None:
    """Make a template's ``strftime_now`` format midnight at the beginning of a date.

    A function passed to ``apply_chat_template`` would be turned into text, so it is set on the compiled template, which
    Transformers caches by the template's text.
    """
    from transformers.utils import chat_template_utils

    midnight = datetime.datetime.combine(date, datetime.time())
    compiled = chat_template_utils._compile_jinja_template(jinja)  # noqa: SLF001
    compiled.globals["strftime_now"] = midnight.strftime
