"""How an application is started, checkpointed, moved aside and restored.

    base        the `Backend` protocol and its values: layouts, moments, status
    config      the application's TOML file; `command` turns its words into argv and environment
    hooks       commands of the operator around suspend and restore
    process     the embedded backend: a child process with a cooperative checkpoint
    runc        containers whose memory moves; `container` has the files and mounts of one, `oci` its configuration
    supervised  what these two have in common: a run under a shim
      shim      the small process that supervises an application, and outlives the node
      spawn     starting a shim
      rundir    what the two tell each other, in files
      applog    the bounded log of an application
      procfs    processes by pid and start time
      folders   deleting what an application wrote
    overlay     file systems of layers; `overlaydiff` makes a layer of what one tree has beside another
    appnet      the network of an application: the node's, none, or a place on a bridge
    criu        CRIU: where it is, what it cannot save, what another machine must have
    registry    all of them, by name

Everything here is synchronous and may block: the node calls it in worker threads. This package file stays empty of
imports, because the shim imports it at every start of an application.
"""
