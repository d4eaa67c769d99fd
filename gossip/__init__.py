"""What every node knows of the others, without sockets, clocks or threads: time and randomness come in as parameters.

Membership: who is there, and how far away

    state        GossipState: events in, outputs out; connects the parts below
    events       those events and outputs
    membership   the rules: what a record, a claim or silence changes
    table        the rows that they change
    probing      who is probed when, and who is asked to help
    contacts     seeds, and members that are to be found again
    suspicion    Lifeguard's timeout; health: how well this node itself is
    distances    coordinates (Vivaldi) and measured round trips
    composing    what goes into one packet; broadcast: the news that rides on it
    exchange     the whole membership as one body, and as a snapshot
    config       presets: LOCAL, LAN, WAN

Its wire forms

    messages     node ids, members, and what nodes say to each other
    records      what a node says of itself, signed
    wire         messages to bytes and back
    sealing      packets that only members read and write

The ledger: what the mesh knows beyond membership

    ledger       names, inventories and popularity of one node; replica: how two of them become equal
    catalog      names that point to layers
    inventory    what a node holds; sketch: how alike two layers are
    popularity   counters that decay
    signed       tables of signed statements; fields: reading what a peer encoded

    sim          a whole mesh under a seed; simnet: its nodes and network

A reader starts with `messages`, `membership` and `state`.
"""
