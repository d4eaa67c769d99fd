"""LXD, driven through pylxd.

settings   the `[lxd]` table of a configuration
daemon     the daemon: found by its socket, asked by pylxd, seen as a process
instance   one container as the daemon knows it: what it is made of, its states
volume     its file system: an overlay of the layers, mounted where the daemon looks for it
inside     files in the container that p2player writes and reads: the init script, the log, the exit code
predump    memory images of a running container, for pre-copy
notes      what was asked of the container, for after a restart of the node
backend    all of it as `backends.base.Backend`
adopt      images and instances of LXD taken apart into layers
"""
