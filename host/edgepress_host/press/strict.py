"""Turn a user's plain TOML tables into frozen records, refusing what is unknown or of the wrong type, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from edgepress_protocol.errors import UsageError
from msgspec import inspect

from edgepress_host.press.loading import did_you_mean

T = TypeVar("T")
_AT = re.compile(r"^(?P<what>.*?)(?: - at (?:key in )?`\$(?P<path>.*)`)?$", re.DOTALL)


def convert(data: object, type_: type[T], *, where: str = "") -> T:
    """Convert plain data to `type_`; `where` is the path of `data` in the user's file.

    Raises UsageError that names the path of the wrong key and, for an unknown key, the nearest right one.
    """
    _refuse_unknown(data, inspect.type_info(type_), where)
    try:
        return msgspec.convert(data, type_, strict=True)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        assert found is not None
        path = (where + (found["path"] or "")).lstrip(".") or "the file"
        what = found["what"][0].lower() + found["what"][1:]
        raise UsageError(f"{path}: {what.replace('`', '')}") from error


def _refuse_unknown(data: object, info: inspect.Type, where: str) -> None:
    for path, value, inner in _inside(data, info, where):
        if inner is None:
            assert isinstance(info, inspect.StructType)
            raise UsageError(_unknown(path.lstrip("."), str(value), [field.encode_name for field in info.fields]))
        _refuse_unknown(value, inner, path)


def _inside(data: object, info: inspect.Type, where: str) -> Iterator[tuple[str, object, inspect.Type | None]]:
    """Yield path, value and expected type of what a table or list holds; for an unknown key, the key and None."""
    match info:
        case inspect.StructType() if isinstance(data, dict):
            known = {field.encode_name: field.type for field in info.fields}
            for key, value in data.items():
                yield f"{where}.{key}", value if key in known else key, known.get(key)
        case inspect.DictType() if isinstance(data, dict):
            yield from ((f"{where}.{key}", value, info.value_type) for key, value in data.items())
        case inspect.ListType() | inspect.VarTupleType() if isinstance(data, list):
            yield from ((f"{where}[{index}]", value, info.item_type) for index, value in enumerate(data))
        case _:
            pass


def _unknown(path: str, key: str, known: list[str]) -> str:
    hint = did_you_mean(key, known) or f"; expected one of {', '.join(sorted(known))}"
    return f"{path}: unknown key{hint}"


def changed(record: msgspec.Struct) -> set[str]:
    """Names of the fields that differ from what they are where nobody says otherwise; those without a default not."""
    return {
        field.name
        for field in msgspec.structs.fields(record)
        if not field.required
        and getattr(record, field.name)
        != (field.default_factory() if field.default is msgspec.NODEFAULT else field.default)
    }


def fields_of(record: msgspec.Struct) -> dict[str, Any]:
    """Plain values of a record, in the order in which they are declared."""
    plain = msgspec.to_builtins(record)
    assert isinstance(plain, dict)
    return plain
