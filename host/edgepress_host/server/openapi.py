"""OpenAPI of routes whose bodies are msgspec records: FastAPI describes pydantic's types only."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from edgepress_host.server import views

_TEMPLATE = "#/components/schemas/{name}"
_RECORDS = tuple(
    record
    for record in vars(views).values()
    if isinstance(record, type) and issubclass(record, msgspec.Struct) and record.__module__ == views.__name__
)


def takes(record: type[msgspec.Struct]) -> dict[str, Any]:
    """Describe a JSON body, for a route's `openapi_extra`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(record)}}}}


def gives(record: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """Describe a route's answers, for its `responses`."""
    return {
        200: {"description": "As asked", "content": {"application/json": {"schema": _ref(record)}}},
        "4XX": {"description": "One line", "content": {"application/json": {"schema": _ref(views.ErrorView)}}},
    }


def describe(app: FastAPI) -> None:
    """Add the records of `views` to what the application says of itself."""
    plain = app.openapi

    def with_records() -> dict[str, Any]:
        document = plain()
        _, components = msgspec.json.schema_components(_RECORDS, ref_template=_TEMPLATE)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = with_records  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _ref(record: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=record.__name__)}
