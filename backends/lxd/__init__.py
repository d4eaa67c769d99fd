"""LXD, driven through pylxd.

settings     the `[lxd]` table of a configuration
daemon       the daemon: found by its socket, asked by pylxd, seen as a process
fitness      whether that daemon will do, here and for containers of another machine
instance     one container as the daemon knows it: what it is made of, its states
backup       how containers are made
volume       its file system: an overlay of the layers, mounted where the daemon looks for it
bridge       its connection to a bridge, made when its memory is back; silence while it is saved
inside       files in the container that p2player writes and reads: the init script, the log, the exit code
notes        what was asked of the container, for after a restart of the node
application  the container, the volume and the note of one application together
starting     starts, afresh and from saved memory
saving       suspends
ending       stops
takeover     what a killed node had begun, finished
predump      memory images of a running container, for pre-copy
groups       control groups that LXC forgot
failing      restores that have failed, brought to their end
verdict      what has become of a container that does not run
backend      all of it as `backends.base.Backend`
adopt        images and instances of LXD taken apart into layers
unpack       the archives in which LXD exports them
"""
