"""One machine's content: chunks named by their digest, and the layers that are made of them.

    digest codec errors content        names; groups of chunks in zstd frames; what can go wrong; the seam
                                       that everything below works on

    store                              the node's shared content, made of
      records packs index              append-only files of self-checking records; where each chunk lies
      recovery retrieve audit          opening after a crash; reading back; verify
      holdings leases filecache        layers and what is here of them; what gc spares; the stat cache's rows
      collect sweep                    garbage collection: a pure plan, its execution
    vault sealed                       the encrypted content of one migration

    chunker holes images               where bytes are cut; what is left out; the inside of memory and disk images
    entries manifest manifest_*        what a tree is made of, its canonical encoding, what changed
    importer ingest reserving treescan treerecall statcache filememory imagefiles writeback    a folder into content
    fileimport                         a virtual disk into content
    tarfiles tarreader tarfields tarsparse acltext sniff storedfile    an archive into content
    checkout staging leftovers filewriter    a manifest back into a folder
    delta                              new chunks as patches against old ones
    attributes beneath pinning progress tree_errors  what both directions need

Synchronous: no network, no event loop. Imports nothing else of this project.
"""
