"""A bounded cache of what was computed for a noise, found again by the noise itself."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from npnet_runtime.errors import InputError

T = TypeVar("T")


class Cache(Generic[T]):
    """Keeps what was used last. Safe to use from several threads.

    Args:
        size: how many things are kept; 0 keeps none.

    Raises:
        InputError: `size` is no such number.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"cache_size: expected 0 or the number of noises to keep, given {size!r}")
        self.size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = self._dropped = 0

    def get(self, key: Hashable | None, make: Callable[[], T]) -> T:
        """What is kept under a key, or else what `make` gives, which is then kept.

        Two threads that miss one key at the same time both make it. An error of `make` keeps nothing.

        Args:
            key: None for what cannot be kept.
            make: called without a lock.
        """
        if not self.size or key is None:
            return make()
        with self._lock:
            if key in self._kept:
                self._hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            self._misses += 1
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
                self._dropped += 1
        return made

    def __str__(self) -> str:
        if not self.size:
            return "cache: off; GoldenNoise(..., cache_size=N) keeps the last N prepared noises"
        return (
            f"cache: {len(self._kept)} of {self.size} prepared noises, {self._hits} hits, "
            f"{self._misses} misses, {self._dropped} dropped"
        )


def content_key(tensor: Tensor) -> Hashable:
    """A key that two CPU tensors share only if they are of one shape and dtype, and equal to the last bit."""
    octets = tensor.detach().resolve_neg().contiguous().view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), tensor.dtype, hashlib.blake2b(octets, digest_size=32).digest()
