"""The ASGI application: one route an endpoint, and errors told in one form."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2player import errors, faults
from p2player.control import apps, layers, mesh, metrics, migrations, page, store, stream
from p2player.control.endpoint import Call, Endpoint, answer, problem
from p2player.control.openapi import describe

if TYPE_CHECKING:
    from p2player.node import Node

ENDPOINTS: tuple[Endpoint, ...] = (
    *mesh.ENDPOINTS,
    *layers.ENDPOINTS,
    *apps.ENDPOINTS,
    *migrations.ENDPOINTS,
    *store.ENDPOINTS,
    *stream.ENDPOINTS,
    *metrics.ENDPOINTS,
    *page.ENDPOINTS,
)


def build(node: "Node") -> Starlette:
    """The application that controls `node`."""

    async def openapi(_: Request) -> Response:
        return answer(describe(ENDPOINTS))

    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    routes = [Route(path, _view(node, here), methods=[e.method for e in here]) for path, here in by_path.items()]
    routes.append(Route("/openapi.json", openapi))
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})


def _view(node: "Node", endpoints: list[Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    by_method = {endpoint.method: endpoint for endpoint in endpoints}

    async def view(request: Request) -> Response:
        endpoint = by_method["GET" if request.method == "HEAD" else request.method]
        # The API's boundary: whatever a handler meets becomes an answer, never a broken connection.
        try:
            body = await endpoint.read_body(request)
            return await endpoint.handle(Call(node, request.path_params, dict(request.query_params), body))
        except Exception as error:
            fault = faults.describe(error)
            if type(fault) is errors.Failed and not isinstance(error, errors.P2PlayerError):
                node.log.failure("request failed", error, path=request.url.path)
            return problem(fault)

    return view


async def _http_problem(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        response = problem(errors.Usage(f"{request.method} is not for {request.url.path}; see /openapi.json"))
        response.status_code = 405
        return response
    return problem(errors.NotFound(f"no path {request.url.path}; see /openapi.json"))
