"""Memory that the disk can read into and write from directly: whole pages that begin at a page, without torch."""

from __future__ import annotations

import ctypes
import mmap

from ttt_moshi.checkpoint.files import PAGE

HUGE_PAGE = 2 << 20


def aligned_memory(size: int) -> memoryview:
    """Zeroed bytes, `size` rounded up to whole pages, already touched.

    They begin where a huge page may: on a virtual machine direct reading into small pages took three times as long.
    """
    length = max(-(-size // PAGE) * PAGE, PAGE)
    area = mmap.mmap(-1, length + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(area)) % HUGE_PAGE
    memory = memoryview(area)[begin : begin + length]
    memory[::PAGE] = bytes(length // PAGE)
    return memory
