"""Batches in pieces that a processor's cache holds."""

from __future__ import annotations

import torch

# Values of a tensor, of which a few fit in the last-level cache: 32 pictures of 80 x 80 (16 and 64 were slower).
CACHED_VALUES = 620_000
# The most that glibc's allocator will keep for reuse.
LARGEST_KEPT = 32 * 2**20


def groups_in_cache(n_pictures: int, n_values: int, device: torch.device) -> list[slice]:
    """Split a batch of pictures, so that what lies between two operations on a group stays in the cache.

    The same pictures always make the same groups. On other devices than the CPU, one group.

    Args:
        n_pictures: Pictures of the batch.
        n_values: Values of one picture.
        device: Where they are.
    """
    size = max(1, CACHED_VALUES // n_values) if device.type == "cpu" else n_pictures
    return [slice(start, min(start + size, n_pictures)) for start in range(0, n_pictures, size)]


def keep_memory() -> None:
    """Let the allocator keep what is freed, instead of asking the system for new pages at every operation.

    glibc raises the size up to which it does so when a block of that size is freed (mallopt(3), M_MMAP_THRESHOLD); this
    one is never touched. On a virtual machine, getting pages took ten times as long as filling them. Other allocators
    are not affected.
    """
    torch.empty(LARGEST_KEPT - 2**16, dtype=torch.uint8)
