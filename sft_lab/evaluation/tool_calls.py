"""Checking tool calls in answers: whether the tool exists, and whether its JSON schema allows the arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# The part of JSON Schema that decides whether a call can be carried out. Schemas, which may come from elsewhere, are
# not passed to a library: references may lead into the network, and patterns may take forever to match.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
MAX_DEPTH = 50  # of a schema


def call_problem(name: str, arguments: dict[str, Any], tools: Sequence[dict[str, Any]]) -> str:
    """Return what is wrong with a call; empty if it is valid."""
    schemas = {
        function.get("name"): function for tool in tools if isinstance(function := tool.get("function", tool), dict)
    }
    if name not in schemas:
        return "no such tool"
    return misfit(arguments, schemas[name].get("parameters") or {}, "arguments")


def misfit(value: Any, schema: Any, path: str, depth: int = 0) -> str:
    """Return where a value does not match a JSON schema; empty if it does.

    It checks type, enum, const, required, properties, additionalProperties: false and items, and ignores the rest.

    Args:
        value: plain data.
        schema: its schema.
        path: of the value, for the message.
        depth: of the schema within the tool's.
    """
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return ""
    if "type" in schema and not _is_of_type(value, schema["type"]):
        return f"{path} is not of type {json.dumps(schema['type'])}"
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(allowed, list) and value not in allowed:
        return f"{path} is not one of {json.dumps(allowed, ensure_ascii=False)}"
    if isinstance(value, dict):
        return _object_misfit(value, schema, path, depth)
    if isinstance(value, list):
        items = (misfit(item, schema.get("items"), f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
        return next(filter(None, items), "")
    return ""


def _object_misfit(value: dict[str, Any], schema: dict[str, Any], path: str, depth: int) -> str:
    required, properties = schema.get("required"), schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    for name in required if isinstance(required, list) else []:
        if name not in value:
            return f"{path} lacks {name}"
    for name, item in value.items():
        if name not in properties:
            if schema.get("additionalProperties") is False:
                return f"{path} has no {name}"
        elif problem := misfit(item, properties[name], f"{path}.{name}", depth + 1):
            return problem
    return ""


def _is_of_type(value: Any, wanted: Any) -> bool:
    names = [name for name in (wanted if isinstance(wanted, list) else [wanted]) if isinstance(name, str)]
    if not names or not set(names) <= _TYPES.keys():
        return True  # not a type of JSON Schema
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return any(isinstance(value, _TYPES[name]) for name in names)


def describe_calls(calls: Sequence[tuple[str, dict[str, Any]]], tools: Sequence[dict[str, Any]]) -> str:
    """Return calls as text, one per line: the function, its arguments, and what is wrong with the call."""
    lines = []
    for name, arguments in calls:
        problem = call_problem(name, arguments, tools)
        remark = f"  ({problem})" if problem else ""
        lines.append(f"{name} {json.dumps(arguments, ensure_ascii=False)}{remark}")
    return "\n".join(lines)


def are_valid(calls: Sequence[tuple[str, dict[str, Any]]], tools: Sequence[dict[str, Any]]) -> bool:
    """Return whether there is at least one call and all of them are valid."""
    return bool(calls) and not any(call_problem(name, arguments, tools) for name, arguments in calls)
