"""Clients of the five applications: they use a service all the time, and say when it did not answer.

    with Client("game", "10.88.0.5", folder / "client.log", enter=["nsenter", "--net=/run/netns/user"]) as client:
        before, begin_s = client.start(), time.monotonic()
        ...                                             # the application is moved
        client.wait_for_answers(time.monotonic())
        gaps = client.gaps(begin_s, time.monotonic())   # gaps.longest_s
        client.verify(before, client.snapshot())        # raises StateLost
        client.kept(begin_s)                            # no connection broke

How it works
------------
A client is a process (`python -m bench.paper.clients KEY --address IP --log FILE`), so that it can live in a network
namespace and is not disturbed by what the bench does. It has three channels: datagrams every 20 ms, with which gaps are
measured; one TCP connection that is held open for good; and the application's own protocol, as a user's program speaks
it. What comes back is written down with its time, and looked at by others.

watching   Client: the process, from outside
probing    the first two channels, and the state that an application tells of itself
record     the file of answers, and the gaps in it
game, video, face    the applications' own protocols
"""

from bench.paper.clients.probing import State, StateLost
from bench.paper.clients.record import Gaps
from bench.paper.clients.watching import Client, ClientFailed

__all__ = ["Client", "ClientFailed", "Gaps", "State", "StateLost"]
