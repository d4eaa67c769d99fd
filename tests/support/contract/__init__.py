"""What tests need of each engine: for the contract suite of backends, and for migrations between real nodes.

programs   small shell programs, the same text on every engine
rigs       the seam: how applications get onto an engine, what may be expected of it; the rig of the process backend
containers, machines    the rigs of runc, LXD and libvirt
labs       a node's own engine, of whichever kind
services, ground        a counting service on the network; three real nodes and a client around it
engines, absence        which engines are tried, and what happens where one is not there
leftovers, reaper       one folder a test process for all that engines make; what refers to it is found and ended
tampered_node           a node that tells untrue facts
"""
