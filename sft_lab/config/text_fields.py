"""Text fields keep what the user wrote: the revision 1.10 must not become 1.1, nor the tag true True."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from antlr4 import CommonTokenStream, InputStream
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf._utils import get_yaml_loader  # private: OmegaConf.load cannot change nodes

from sft_lab.core.io import refuse_alias_bomb
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

KeyPath = tuple[str | int, ...]
_LITERALS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
_YAML_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))
_SWEEP_FUNCTIONS = ("choice", "sort", "shuffle", "tag")  # functions whose arguments are the field's own values
_PARAMS = ("hydra", "sweeper", "params")  # of a sweep file: values in the grammar of overrides


def is_text(path: KeyPath) -> bool:
    """Return whether a key holds text, whichever kind of its group is chosen."""
    hints = list(_hints_at(Run, path))
    return bool(hints) and all(hint is str for hint in hints)


def _hints_at(hint: Any, path: KeyPath) -> Iterator[Any]:
    """Yield the types at a path below a type: several if a group has several kinds."""
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
    """Return an override with quotes around values of text fields that Hydra would read as numbers or booleans."""
    key, _, value = override.partition("=")
    path = tuple(re.split(r"[./]", key.lstrip("+~")))
    if not value or not re.search(r"\d|true|false|inf|nan", value, re.IGNORECASE):
        return override
    lexer = OverrideLexer(InputStream(override))
    parser = OverrideParser(CommonTokenStream(lexer))
    for recognizer in (lexer, parser):
        recognizer.removeErrorListeners()  # syntax errors are reported when Hydra itself parses it
    tree = parser.override()
    for token in sorted(_numbers_in(tree.value(), path), key=lambda token: -token.start):
        override = f"{override[: token.start]}'{token.text}'{override[token.stop + 1 :]}"
    return override


def _numbers_in(node: Any, path: KeyPath) -> Iterator[Any]:
    """Yield the tokens below a grammar node that would be read as a number or boolean in a text field."""
    if isinstance(node, OverrideParser.PrimitiveContext):
        tokens = [child.symbol for child in node.getChildren() if child.symbol.type != OverrideLexer.WS]
        if len(tokens) == 1 and tokens[0].type in _LITERALS and is_text(path):
            yield tokens[0]
    elif isinstance(node, OverrideParser.ListContainerContext):
        for index, child in enumerate(node.element()):
            yield from _numbers_in(child, (*path, index))
    elif isinstance(node, OverrideParser.DictKeyValuePairContext):
        yield from _numbers_in(node.element(), (*path, node.dictKey().getText().strip()))
    elif not isinstance(node, OverrideParser.FunctionContext) or node.getChild(0).getText() in _SWEEP_FUNCTIONS:
        for child in getattr(node, "children", None) or ():
            yield from _numbers_in(child, path)


def read_yaml(text: str, path: KeyPath = ()) -> Any:
    """Return the content of YAML as OmegaConf reads it, but text fields as written.

    Args:
        text: the YAML.
        path: path of the key that the content belongs to.
    """
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        refuse_alias_bomb(node, text)
        _keep_text(node, path)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(node: Any, path: KeyPath) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _keep_text(value, (*path, *str(key.value).split(".")))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _keep_text(value, (*path, index))
    elif node.tag in _YAML_TAGS and node.style is None and (path[:3] == _PARAMS or is_text(path)):
        node.tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
