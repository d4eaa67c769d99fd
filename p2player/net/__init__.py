"""Trio shells around the cores: sockets, TLS, deadlines; no decision worth a test of its own.

tls         a TLS stream over memory BIOs, fast and counted
identity    who this node is: certificates and keys
joining     enrolling a node, both ends
peers       sessions: dial, listen, call, stream
link        how fast a connection is, by the kernel's counters
gathering   when a reader of a fast socket is woken
gossip      membership packets over UDP, and the ledger's anti-entropy
"""
