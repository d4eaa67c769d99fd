"""Hosts and links of a network that is slower and longer than loopback, on one machine; needs root.

    with Netlab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, Shape(mbit=20, delay_ms=10))
        a.run(["p2player", ...])

How it works
------------
A host is a network namespace with one address, which it has on all its links; the file systems and the processes are
those of the machine. A link without delay is a pair of veth devices, each with a `tc tbf` where it has a rate. A link
with delay is a pair of TAP devices and a process between them (`bench.wire`), because not every kernel has netem.
Switches are bridges in namespaces of their own.

Rates are of Ethernet frames, so TCP gets about 95 % of them. `Host.counters` counts frames too: on links of less than
50 Mbit/s exactly, on faster ones but for the headers inside TCP super-packets (see `bench.wire`). Queues in front of a
rate hold max(one round trip, 20 ms, 256 KB) and drop what does not fit, with and without delay.

Names of namespaces carry the pid and the start time of the process that made them. Leaving the block deletes them with
all that is in them: links, wires, processes; so do exceptions, Ctrl-C and SIGTERM. What a killed run left behind, the
next `Netlab` sweeps away.

Measured on two cores, one TCP transfer of 3 s, payload in Mbit/s after the first third (1448/1514 of the rate is what
can be had), round trip of one byte, and processor time of the wire:

    rate        delay   payload   round trip (asked)   wire, s per 100 MB
    5           20 ms     4.78      40.55 (40) ms       8.0
    20           0       19.13       0.05              (tbf)
    20          10 ms    19.13      20.34 (20)          4.9
    20          20±5     19.12      39.74 (40)          2.8
    100          0       95.64       0.01              (tbf)
    100          1 ms    95.61       2.11 (2)           1.0
    100         20 ms    95.59      40.70 (40)          0.9
    300          1 ms   286.9        2.11 (2)           0.3
    1000         0      956          0.01              (tbf)
    1000         1 ms   956          2.14 (2)           0.13
    1000        20 ms   563         40.24 (40)          0.18   one connection's window (tcp_rmem) is the limit
    none         1 ms  6226          2.11 (2)           0.07

lab        Netlab: hosts, links and stars, from first to last
hosts      Host: commands inside, counters
links      Shape, Access, and how a cable of each kind is laid
leftovers  names that tell whose a namespace is, and sweeping
"""

from bench.netlab.hosts import Counters, Host
from bench.netlab.lab import Netlab
from bench.netlab.links import Access, Shape
from bench.netlab.tools import NetlabUnavailable

__all__ = ["Access", "Counters", "Host", "Netlab", "NetlabUnavailable", "Shape"]
