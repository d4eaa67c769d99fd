"""`/v1/events`: what happens, as server-sent events."""

import json
from collections.abc import AsyncIterator

import trio
from starlette.responses import Response, StreamingResponse

from p2player.control.endpoint import Call, Endpoint

KEEP_ALIVE_S = 15.0


class _EventText:
    """The events of a subscription in the text form of server-sent events; a comment when nothing happens."""

    def __init__(self, call: Call) -> None:
        self._subscription = call.node.events.open()
        self._first = True

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._first:
            self._first = False
            return ": p2player events\n\n"
        with trio.move_on_after(KEEP_ALIVE_S):
            event = await anext(self._subscription)
            data = json.dumps({"at": round(event.at, 3), **event.data}, default=str)
            return f"event: {event.type}\ndata: {data}\n\n"
        return ": still here\n\n"


async def _events(call: Call) -> Response:
    return StreamingResponse(_EventText(call), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


ENDPOINTS = (Endpoint("GET", "/v1/events", "What happens, as server-sent events", _events, answers="a stream"),)
