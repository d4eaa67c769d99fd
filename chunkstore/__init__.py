"""One machine's content: chunks named by their digest, and the layers that are made of them.

    digest    names: BLAKE3                      codec    groups of chunks in zstd frames
    content   the seam that the rest works on    errors   what can go wrong

Synchronous: no network, no event loop. Imports nothing else of this project.
"""
