"""What a path of the API is, said once: routing, checking of the body and the OpenAPI document all read it."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from p2player import errors

if TYPE_CHECKING:
    from p2player.node import Node

MAX_BODY_BYTES = 1 << 20
MAX_WAIT_S = 60.0

_TYPE_NAMES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a request's JSON body."""

    name: str
    type: type
    doc: str
    required: bool = False
    choices: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        schema: dict[str, Any] = {"type": _TYPE_NAMES[self.type], "description": self.doc}
        if self.choices:
            schema["enum"] = list(self.choices)
        return schema

    def check(self, value: Any) -> Any:
        """`value` in the field's type.

        Raises:
            Usage: it is of another.
        """
        accepted: tuple[type, ...] = (int, float) if self.type is float else (self.type,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise errors.Usage(f"{self.name!r} must be a {_TYPE_NAMES[self.type]}")
        if self.choices and value not in self.choices:
            raise errors.Usage(f"{self.name!r} must be one of {', '.join(self.choices)}")
        return float(value) if isinstance(value, int) and self.type is float else value


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an endpoint: path parameters, the checked body and the node it is about."""

    node: "Node"
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]

    def wait_s(self) -> float:
        """How long the client is ready to wait for a change: `?wait=SECONDS`."""
        return self._seconds("wait")

    def every_s(self) -> float:
        """How often the client wants to hear of changes that are no end: `?every=SECONDS`."""
        return self._seconds("every")

    def _seconds(self, name: str) -> float:
        text = self.query.get(name, "0")
        try:
            return min(max(float(text), 0.0), MAX_WAIT_S)
        except ValueError:
            raise errors.Usage(f"{name}={text!r} is not a number of seconds") from None


Handle = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method on a path. `answers` says in words what a success is."""

    method: str
    path: str
    summary: str
    handle: Handle
    fields: tuple[Field, ...] = ()
    status: int = 200
    answers: str = "the document"

    async def read_body(self, request: Request) -> dict[str, Any]:
        """The request's JSON body, checked against `fields`.

        Raises:
            Usage: not JSON, too large, an unknown or ill-typed member, or a required one missing.
        """
        data = b""
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_BODY_BYTES:
                raise errors.Usage(f"the request body is over {MAX_BODY_BYTES} bytes")
        if not data.strip():
            document: Any = {}
        else:
            try:
                document = json.loads(data)
            except (ValueError, RecursionError):
                raise errors.Usage("the request body is not JSON") from None
        if not isinstance(document, dict):
            raise errors.Usage("the request body is not a JSON object")
        known = {field.name: field for field in self.fields}
        for name in document:
            if name not in known:
                raise errors.Usage(f"unknown member {name!r}; known are {', '.join(known) or 'none'}")
        body: dict[str, Any] = {}
        for field in self.fields:
            value = document.get(field.name)
            if value is not None:
                body[field.name] = field.check(value)
            elif field.required:
                raise errors.Usage(f"member {field.name!r} is missing")
        return body


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A JSON answer."""
    return JSONResponse(document, status, dict(headers or {}))


def accepted(document: Mapping[str, Any], location: str) -> JSONResponse:
    """202: the work goes on; `Location` tells where to watch it."""
    return JSONResponse(document, 202, {"Location": location})


def problem(error: errors.P2PlayerError) -> JSONResponse:
    """The answer that tells of `error`."""
    return JSONResponse({"error": {"code": error.code, "message": error.message}}, error.http_status)
