"""What is wrong with an image."""

from chunkstore.errors import StoreError


class ImageInvalid(StoreError):
    """An image is damaged, cut off, or of a sort that is not read; `offset` is the byte of its file where that shows.

    Imports never raise it: what has no layout is cut by content.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"at byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


class ImageUnsupported(ImageInvalid):
    """Nothing is wrong with the image, but a feature that it uses hides where its content lies."""
