"""The hand-off of a running application from one node to another, as two machines without a socket.

Theory of operation
-------------------
An app is owned by the node that holds its current *epoch*. A migration moves ownership from epoch e at the source to
e+1 at the destination, so that at every moment, whichever end is killed and whatever the network does, exactly one
copy can be run in the end and never two run at once:

1. Until the destination is *ready* (all data verified and durable there) the source may call it off at any time.
2. The source makes `Granted(e+1)` durable and only then sends the grant. From here on it never starts the app: it
asks.
3. The destination makes `Accepted(e+1)` durable and only then lets its engine run the app. Or it makes `Refused(e+1)`
   durable, which it may do only if the app never executed there, and only then says so.
4. The source learns which of the two happened; both are final. It destroys its copy, or takes the app back at e+2.

Each end repeats its last word until the other acknowledges it, so an outcome is never forgotten by the one who knows
it while the other still has to ask.

    fields        bounded dataclasses <-> msgpack
    messages      what the ends say
    records       what they journal
    table         every step: who journals what, after what, and what may go out then; the kill points
    events        what goes into a machine and comes out
    machine       the common part of both
    source        gives the app away, or keeps it
      source_grant    from the grant to its answer
      source_end      the four endings
    destination   takes it, or refuses it for good
      destination_owner   from the grant on
      destination_end     refused, superseded, closed
    memory        what is still answered about migrations that are over
"""
