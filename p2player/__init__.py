"""Applications that follow their users: the node, its protocol and its command line.

    cli client plainhttp    commands; they talk to a running node through its control API
    enrol demo localmesh    init and join, which need no running node; the tour that `make demo` runs, and its nodes
    daemon              a node as a process: signals, readiness, the control API on its sockets
    control             the control API: HTTP over a unix socket
    node                the composition root: makes every part below and ties them together
    mesh presence directory         who is there; what this node tells of itself; the apps of the mesh
    listing layers trees            which layers there are; layers in and out; checked-out trees
    upkeep warmer                   verify, repair, gc; placing ahead of need
    transfer manifests swarming landing     content from peers
    kin relatives patching                  and as deltas of old content
    serving patch_serving outflow sources turns   content to peers, and deltas
    apps (apphost appcare apprecord appstate)       the applications of this node
    migration planning              moving them
    renewal remembered              certificates in time; what outlives a restart
    net                 trio shells: TLS, sessions, gossip over UDP
    proto               sans-IO cores: frames, swarm, hand-off, warming
    allocator           what the C library keeps of freed memory
    statedir config quantities addresses listening journal log events operations notify errors faults
                        what all of them stand on

Below this package lie `chunkstore` (one machine's content), `gossip` (what nodes know of each other) and `backends`
(how an application runs); they import nothing of it.
"""

__version__ = "0.1.0"
