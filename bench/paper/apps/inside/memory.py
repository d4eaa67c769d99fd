"""Memory full of random pages, some of them written anew all the time, which can be checked as a whole.

A page of 4 KiB is: its number, how many pages had been written before it, the BLAKE2b digest of the rest, and random
bytes. So a page that was lost, torn or mixed up with another is found, whether it was rewritten or not. The work is
done in small steps between the loop's other duties.
"""

import hashlib
import os

PAGE_BYTES = 4096
DIGEST_BYTES = 16
HEAD_BYTES = 16 + DIGEST_BYTES
STEP_PAGES = 64
MOST_OWED_S = 0.5
"""So much of what was not rewritten in time is made up for."""
FIRST_PAGE = PAGE_BYTES - 16
"""Where the first whole page of memory begins in a large block: glibc maps pages for it, less a header of 16 bytes."""


class Memory:
    """`megabytes` MB of random pages, of which `bytes_s` bytes a second are rewritten."""

    def __init__(self, megabytes: int, bytes_s: int) -> None:
        self.pages = megabytes * 1_000_000 // PAGE_BYTES
        self.bytes_s = bytes_s
        self.block = memoryview(bytearray((self.pages + 1) * PAGE_BYTES))[FIRST_PAGE:]
        self.writes = 0
        self.owed = 0.0
        self.checking: int | None = None
        self.whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.damaged = 0
        self.result: dict[str, int | str] | None = None

    def ready(self) -> bool:
        """All pages have been written."""
        return self.writes >= self.pages

    def busy(self) -> bool:
        """There is work to do at once."""
        return not self.ready() or self.checking is not None or self.owed >= PAGE_BYTES

    def work(self, passed_s: float) -> None:
        """Do a step: fill, or rewrite what `passed_s` seconds ask for and check.

        A processor that is too slow for the rate rewrites as much as it can, and serves others in between.
        """
        if not self.ready():
            for page in range(self.writes, min(self.writes + STEP_PAGES, self.pages)):
                self.write(page)
            return
        self.owed = min(self.owed + self.bytes_s * passed_s, self.bytes_s * MOST_OWED_S)
        for _ in range(min(int(self.owed) // PAGE_BYTES, STEP_PAGES)):
            self.owed -= PAGE_BYTES
            self.write(int.from_bytes(os.urandom(4), "little") % self.pages)
        if self.checking is not None:
            self.checking = self.check_from(self.checking)

    def write(self, page: int) -> None:
        """Write one page anew."""
        head = page.to_bytes(8, "little") + self.writes.to_bytes(8, "little")
        rest = os.urandom(PAGE_BYTES - HEAD_BYTES)
        digest = hashlib.blake2b(head + rest, digest_size=DIGEST_BYTES).digest()
        at = page * PAGE_BYTES
        self.block[at : at + PAGE_BYTES] = head + digest + rest
        self.writes += 1

    def check(self) -> None:
        """Begin to check all pages, unless a check is under way."""
        if self.checking is None:
            self.checking, self.damaged = 0, 0
            self.whole = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def check_from(self, first: int) -> int | None:
        """Check some pages; returns the next one to check, None after the last."""
        last = min(first + STEP_PAGES, self.pages)
        for page in range(first, last):
            data = bytes(self.block[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            self.whole.update(data)
            head, digest, rest = data[:16], data[16:HEAD_BYTES], data[HEAD_BYTES:]
            expected = hashlib.blake2b(head + rest, digest_size=DIGEST_BYTES).digest()
            if digest != expected or int.from_bytes(head[:8], "little") != page:
                self.damaged += 1
        if last < self.pages:
            return last
        self.result = {"memory": self.whole.hexdigest(), "damaged": self.damaged, **self.state()}
        return None

    def found(self) -> dict[str, int | str] | None:
        """What a check that has just ended found; None otherwise."""
        result, self.result = self.result, None
        return result

    def state(self) -> dict[str, int | str]:
        """What is known without looking."""
        return {"pages": self.pages, "writes": self.writes, "rewrite_bytes_s": self.bytes_s}
