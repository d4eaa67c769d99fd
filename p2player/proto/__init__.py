"""Sans-IO cores: every decision of the node, with no socket, clock or task in sight.

    frames measure session      bytes <-> messages of the peer protocol, their cost, and one authenticated connection
    swarm                       which peer is asked for which chunk, made of
        swarm_events wants asks     what it is told and says; what is missing; what is under way
        peerstats fairstart hedging what a peer delivers; a fair share for newcomers; help for the slowest
        roster                      which holders are dialled, and again when
    content_wire                bodies of the methods that move content
    rate                        token buckets behind the bandwidth caps
    handoff rounds              the phases of a migration on both ends, and when pre-copy stops
    warming                     which layers are placed where ahead of need
    joining gate                enrolment's messages, and how often strangers are answered

Each is a plain machine, `handle(event, now) -> outputs` or bytes in and events out. `p2player.net` and the services
drive them with trio.
"""
