"""A blob as a stream: exactly the bytes from an offset to the descriptor's size, over as many connections as it takes.

One at first, and one after the other where they break (:mod:`lamella.registry.stretch`); several at once where that is faster
(:mod:`lamella.registry.ahead`). The digest is for the reader to check: the pipeline hashes the bytes anyway.
"""

from __future__ import annotations

from lamella.oci import Descriptor
from lamella.registry.ahead import Ahead
from lamella.registry.stretch import Stretch, Way


class BlobStream:
    """Reads one blob; a context manager. One thread reads, any other may :meth:`interrupt`."""

    def __init__(self, descriptor: Descriptor, offset: int, way: Way) -> None:
        self.descriptor = descriptor
        self.offset = offset

        def stretch(start: int, end: int) -> Stretch:
            return Stretch(descriptor, start, end, way, ranged=True)

        limits = way.transport.limits
        self._own = Stretch(descriptor, offset, descriptor.size, way)
        self._share = limits.share(self._own.check)
        try:
            self._own.connect()
        except BaseException:
            self._share.close()
            raise
        self._ahead = Ahead(descriptor.size, stretch, self._share, limits, self._own.close)

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BlobStream({self.descriptor.digest}, {self.offset} of {self.descriptor.size} bytes)"

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Put what there is at the start of ``buffer`` and give the count of bytes; 0 at the end of the blob.

        It waits only where there is nothing, so that progress and interruption stay lively on a slow connection.

        Errors: DataLoss when the registry has another blob than the descriptor says, Unavailable when it cannot be
        had to its end, Cancelled.
        """
        own, ahead = self._own, self._ahead
        own.check()
        view = memoryview(buffer)
        count = ahead.take(self.offset, view, own.check)
        if count:  # what its own connection would bring next is here already
            self.offset = own.offset = self.offset + count
            ahead.look(self.offset, 0.0, 0)
        else:
            waited = own.waited
            count = own.readinto(view[: ahead.gap(self.offset)])
            self.offset = own.offset
            ahead.look(self.offset, own.waited - waited, count)
        if self.offset == self.descriptor.size:
            self.close()
        return count

    def interrupt(self) -> None:
        """Make a read in another thread, and every later one, raise Cancelled. Harmless twice."""
        self._own.interrupt()
        self._ahead.interrupt()

    def close(self) -> None:
        """Give the connections back, or close those that were not read to their end. Harmless twice."""
        self._own.close()
        self._ahead.close()
        self._share.close()
