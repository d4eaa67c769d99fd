"""`/v1/status`, `/v1/peers`, invitations, leaving, and long work in general."""

from starlette.responses import Response

from p2player import errors
from p2player.control.endpoint import Call, Endpoint, Field, answer


async def _status(call: Call) -> Response:
    return answer(call.node.mesh.status())


async def _peers(call: Call) -> Response:
    return answer(call.node.mesh.peers())


async def _invite(call: Call) -> Response:
    token = await call.node.mesh.invite(ttl_s=call.body.get("ttl_s", 3600.0), uses=call.body.get("uses", 1))
    return answer({"token": token}, 201)


async def _leave(call: Call) -> Response:
    await call.node.mesh.leave()
    return answer({"left": True})


async def _revoke(call: Call) -> Response:
    raise errors.Refused(f"cannot revoke {call.path['node']}: this version does not revoke certificates yet")


async def _authority(call: Call) -> Response:
    raise errors.Refused(f"cannot grant to {call.path['node']}: this version has one authority a mesh")


async def _operation(call: Call) -> Response:
    operation = call.node.operations.get(call.path["id"])
    await operation.wait(call.wait_s(), call.every_s())
    return answer(operation.row())


async def _cancel_operation(call: Call) -> Response:
    operation = call.node.operations.get(call.path["id"])
    operation.scope.cancel()
    return answer(operation.row())


ENDPOINTS = (
    Endpoint("GET", "/v1/status", "This node and how many peers it sees", _status),
    Endpoint("GET", "/v1/peers", "The other nodes of the mesh", _peers, answers="a list of rows"),
    Endpoint(
        "POST",
        "/v1/invites",
        "Make a token that lets a node join",
        _invite,
        (
            Field("ttl_s", float, "seconds until the token expires; 3600 if left out"),
            Field("uses", int, "how many nodes it lets in; 1 if left out"),
        ),
        201,
        "the token",
    ),
    Endpoint("POST", "/v1/leave", "Leave the mesh for good; the node stops", _leave),
    Endpoint("POST", "/v1/nodes/{node}/revoke", "Shut a node out (not in this version)", _revoke),
    Endpoint("POST", "/v1/authorities/{node}", "Let a node invite others (not in this version)", _authority),
    Endpoint(
        "GET",
        "/v1/operations/{id}",
        "Long work; ?wait=SECONDS waits for a change, told every ?every=SECONDS at most",
        _operation,
    ),
    Endpoint("DELETE", "/v1/operations/{id}", "Cancel long work", _cancel_operation),
)
