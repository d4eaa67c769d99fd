"""The control API: HTTP/1.1 with JSON over the unix socket `STATE/control.sock`.

endpoint    what a path is: method, body fields, summary, handler; one table feeds routes and OpenAPI
mesh layers apps migrations store    the handlers, by resource
stream      server-sent events
metrics     Prometheus text
page        the web page
openapi     the description, generated from the endpoints
application the ASGI application: routing, body limits, errors
server      the sockets, and Hypercorn
"""
