"""Sans-IO cores: every decision of the node, with no socket, clock or task in sight.

    frames      bytes <-> messages of the peer protocol
    session     one authenticated connection: hello, requests, parts, replies
    swarm       which peer is asked for which chunk
    rate        token buckets behind the bandwidth caps
    handoff     the phases of a migration, source and destination
    warming     which layers are placed where ahead of need

Each is a plain machine, `handle(event, now) -> outputs` or bytes in and events out. `p2player.net`
and the services drive them with trio.
"""
