"""Fields that are text keep the user's letters: the revision 1.10 is not the number 1.1, the tag true not True."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import IO, Any, Union, get_args, get_origin, get_type_hints

import yaml
from antlr4 import CommonTokenStream, InputStream
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf._utils import get_yaml_loader

from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

KeyPath = tuple[str | int, ...]
_READ_AS_NUMBER = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
_YAML_READS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))
_SWEEPS_OVER = ("choice", "sort", "shuffle", "tag")  # functions whose arguments are the field's own values
_PARAMS = ("hydra", "sweeper", "params")  # of a sweep file: values in the grammar of overrides


def is_text(path: KeyPath) -> bool:
    """Return whether a key is text, whichever kind of its group is chosen."""
    hints = list(_hints_at(Run, path))
    return bool(hints) and all(hint is str for hint in hints)


def _hints_at(hint: Any, path: KeyPath) -> Iterator[Any]:
    """Yield the types that a path below a type leads to: several where a group has several kinds."""
    if get_origin(hint) in (Union, UnionType):
        for option in get_args(hint):
            if option is not NoneType:
                yield from _hints_at(option, path)
    elif not path:
        yield hint
    elif get_origin(hint) in (list, dict):
        yield from _hints_at(get_args(hint)[-1], path[1:])
    elif isinstance(hint, type) and is_dataclass(hint):
        kinds: list[type] = [
            schema for group in SCHEMAS.values() for schema in group.values() if issubclass(schema, hint)
        ]
        for schema in kinds or [hint]:
            if path[0] in (known := _hints_of(schema)):
                yield from _hints_at(known[path[0]], path[1:])


@cache
def _hints_of(schema: Any) -> dict[str | int, Any]:
    return dict(get_type_hints(schema).items())


def quote_text(override: str) -> str:
    """Put quotes around what Hydra's grammar would read as a number or truth value in a field that is text."""
    key, _, value = override.partition("=")
    path = tuple(re.split(r"[./]", key.lstrip("+~")))
    if not value or not re.search(r"\d|true|false|inf|nan", value, re.IGNORECASE):
        return override
    lexer = OverrideLexer(InputStream(override))
    parser = OverrideParser(CommonTokenStream(lexer))
    for recognizer in (lexer, parser):
        recognizer.removeErrorListeners()  # Hydra's own reading tells of what is no override
    tree = parser.override()
    for token in sorted(_numbers_in(tree.value(), path), key=lambda token: -token.start):
        override = f"{override[: token.start]}'{token.text}'{override[token.stop + 1 :]}"
    return override


def _numbers_in(node: Any, path: KeyPath) -> Iterator[Any]:
    """Yield the tokens below a node of the grammar that stand alone, read as numbers, where the schema has text."""
    if isinstance(node, OverrideParser.PrimitiveContext):
        tokens = [child.symbol for child in node.getChildren() if child.symbol.type != OverrideLexer.WS]
        if len(tokens) == 1 and tokens[0].type in _READ_AS_NUMBER and is_text(path):
            yield tokens[0]
    elif isinstance(node, OverrideParser.ListContainerContext):
        for index, child in enumerate(node.element()):
            yield from _numbers_in(child, (*path, index))
    elif isinstance(node, OverrideParser.DictKeyValuePairContext):
        yield from _numbers_in(node.element(), (*path, node.dictKey().getText().strip()))
    elif not isinstance(node, OverrideParser.FunctionContext) or node.getChild(0).getText() in _SWEEPS_OVER:
        for child in getattr(node, "children", None) or ():
            yield from _numbers_in(child, path)


def read_yaml(text: str | IO[str], path: KeyPath = ()) -> Any:
    """Read YAML as OmegaConf does, fields that are text by their letters.

    Args:
        text: or an open file, which errors then name.
        path: of the key that the file's content belongs below.
    """
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _read_letters(node, path)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _read_letters(node: Any, path: KeyPath) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _read_letters(value, (*path, *str(key.value).split(".")))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _read_letters(value, (*path, index))
    elif node.tag in _YAML_READS and node.style is None and (path[:3] == _PARAMS or is_text(path)):
        node.tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
