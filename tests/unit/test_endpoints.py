"""The table of the control API: bodies are checked against it, and the OpenAPI document is made from it."""

import json
from typing import Any

import pytest
from starlette.requests import Request

from p2player import errors
from p2player.control.application import ENDPOINTS
from p2player.control.endpoint import MAX_BODY_BYTES, Endpoint, Field
from p2player.control.openapi import describe


def endpoint(*fields: Field) -> Endpoint:
    async def never(_: Any) -> Any:
        raise AssertionError("not called")

    return Endpoint("POST", "/x", "a test", never, fields)


async def body_of(point: Endpoint, data: bytes) -> dict[str, Any]:
    pieces = [data[:3], data[3:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return await point.read_body(Request({"type": "http", "method": "POST", "headers": []}, receive))


FIELDS = (
    Field("app", str, "doc", required=True),
    Field("copies", int, "doc"),
    Field("freeze", float, "doc"),
    Field("on", bool, "doc"),
    Field("mode", str, "doc", choices=("live", "cold")),
)


async def test_a_good_body_is_taken() -> None:
    document = {"app": "a", "copies": 2, "freeze": 1, "on": True, "mode": "cold"}
    assert await body_of(endpoint(*FIELDS), json.dumps(document).encode()) == {**document, "freeze": 1.0}
    assert await body_of(endpoint(*FIELDS), b'{"app": "a", "copies": null}') == {"app": "a"}
    assert await body_of(endpoint(), b"") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"[1]",
        b"{}",
        b'{"app": 5}',
        b'{"app": "a", "copies": 1.5}',
        b'{"app": "a", "copies": true}',
        b'{"app": "a", "on": 1}',
        b'{"app": "a", "mode": "warm"}',
        b'{"app": "a", "more": 1}',
        b"[" * 100_000,
        b'"' + b"a" * (MAX_BODY_BYTES + 1) + b'"',
    ],
)
async def test_a_bad_body_is_a_usage_error(data: bytes) -> None:
    with pytest.raises(errors.Usage):
        await body_of(endpoint(*FIELDS), data)


def test_the_openapi_document_names_every_path_and_field() -> None:
    document = describe(ENDPOINTS)
    for point in ENDPOINTS:
        operation = document["paths"][point.path][point.method.lower()]
        assert operation["summary"]
        properties = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        named = properties.get("schema", {}).get("properties", {})
        assert set(named) == {field.name for field in point.fields}
    json.dumps(document)


def test_no_path_is_said_twice() -> None:
    said = [(point.method, point.path) for point in ENDPOINTS]
    assert len(said) == len(set(said))
