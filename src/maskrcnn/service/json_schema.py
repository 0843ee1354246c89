"""JSON schemas of TypedDicts, for the description of the service (OpenAPI)."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from typing import Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema_of(kind: Any) -> dict[str, Any]:
    """The schema of a type: a TypedDict, plain values, or lists, mappings and unions of these.

    Texts below the keys of a TypedDict describe them.
    """
    origin = get_origin(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if is_typeddict(kind):
        return _object_schema(kind)
    if origin is NotRequired:
        return schema_of(get_args(kind)[0])

    if origin is list:
        return {"type": "array", "items": schema_of(get_args(kind)[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1])}
    if origin is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    assert origin is types.UnionType, kind
    return {"anyOf": [schema_of(part) for part in get_args(kind)]}


def _object_schema(kind: Any) -> dict[str, Any]:
    texts = _texts_of(kind)
    properties = {}
    required = []
    for name, part in get_type_hints(kind, include_extras=True).items():
        properties[name] = schema_of(part)
        # __required_keys__ misses NotRequired in annotations that are text
        if name in kind.__required_keys__ and get_origin(part) is not NotRequired:
            required.append(name)
        if text := texts.get(name):
            properties[name] = {**properties[name], "description": text}

    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": properties,
        "required": required,
    }


def _texts_of(kind: Any) -> dict[str, str]:
    """The text below each key of a TypedDict and of those it extends."""
    texts: dict[str, str] = {}
    for base in getattr(kind, "__orig_bases__", ()):
        if is_typeddict(base):
            texts |= _texts_of(base)
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    for key, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if is_text and isinstance(text.value.value, str):
                texts[key.target.id] = " ".join(text.value.value.split())
    return texts
