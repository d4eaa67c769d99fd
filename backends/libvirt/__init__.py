"""The backend of virtual machines: QEMU through libvirt.

backend     LibvirtBackend: what the node asks for
instance    one machine with what is remembered of it: where it stands, how it ended
starting    loading a machine and letting it go
stopping    ending it, by its power button or by force
saving      its memory, once and for all or as a pre-copy round
machine     single calls of libvirt about one machine
adopt       an existing machine of libvirt's, taken apart into layers
table       the [libvirt] table of a configuration
domain      libvirt's XML: written for a new machine; given this node's paths for a saved one
description libvirt's XML, as it is read: what may be in it, whether memory is final
place       what of that belongs to this node
disks       the chain of images below a machine's disk
image       what a qcow2 header says
savefile    memory saved in a file: which may be continued
ending      how a machine ended that is not there any more
facts       what two nodes must have in common for memory to move
kvm         whether KVM works here, by booting something
console     what the machine printed
notes       what is remembered of a run, in the run folder
connection  libvirtd: calls with a limit, errors, reconnecting, answers that come too late

Inside this package `import libvirt` means libvirt-python, which is imported when it is first needed.
"""
