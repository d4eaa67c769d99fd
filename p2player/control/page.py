"""`/`: the web page. One file, no framework; it reads the same API as everybody else."""

from importlib.resources import files

from starlette.responses import HTMLResponse, Response

from p2player.control.endpoint import Call, Endpoint


async def _page(_: Call) -> Response:
    html = files("p2player.control").joinpath("page.html").read_text("utf-8")
    return HTMLResponse(html, headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline'"})


ENDPOINTS = (Endpoint("GET", "/", "The web page", _page, answers="HTML"),)
