"""What is inside memory and disk images, as far as it says where they are best cut.

    layout      segments of a file, and the rule where they end; how a layout is asked while a file is read
    criu        pages-N.img of a CRIU image folder, through its pagemap
    qemu        the migration stream of QEMU, bare or in a save file of libvirt
    qcow2       virtual disks in clusters
    raw         virtual disks as they are
    recognise   which of them a file is

Two images of one guest differ in few pages, yet nearly everything in the second one lies at another offset of the
file. Cut where addresses of the *guest* are round, most segments of the two are equal byte for byte, and a changed
one faces its older self.
"""
