"""Applications that follow their users: the node, its protocol and its command line.

    cli client          commands; they talk to a running node through its control API
    enrol demo          init and join, which need no running node; the tour that `make demo` runs
    control             the control API: HTTP over a unix socket
    node                the composition root: makes every part below and runs it
    layers apps directory transfer serving migration warmer upkeep mesh     what a node does, a service each
    net                 trio shells: TLS, sessions, gossip over UDP
    proto               sans-IO cores: frames, swarm, hand-off, warming
    statedir config log events operations errors faults                     what all of them stand on

Below this package lie `chunkstore` (one machine's content), `gossip` (what nodes know of each other) and `backends`
(how an application runs); they import nothing of it.
"""

__version__ = "0.1.0"
