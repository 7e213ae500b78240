"""What the C library keeps of the memory that is freed: blocks for messages, but no copies of weights.

By default it raises its threshold up to 32 MB while a model loads, and then keeps copies of weights
that nobody uses: 35 or 62 MB of a VGG-16's convolutions, by chance. With the least threshold, each
buffer of a message is new, and the kernel clears all its pages: most of the CPU that a message takes.
"""

from __future__ import annotations

import contextlib
import ctypes

LOADING_BYTES = 128 * 1024
# More than any message with the copies that are made of it: 2.5 MB into a slice and out of it take 11
# instead of 28 ms of CPU.
SERVING_BYTES = 16 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def give_back(from_bytes: int) -> None:
    """Give back what is free now, and from now on blocks of this size when they are freed."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(_M_MMAP_THRESHOLD, from_bytes)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * from_bytes)  # a message and what is made of it
