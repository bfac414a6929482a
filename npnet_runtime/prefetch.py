"""A ring of noise prepared ahead of requests, for servers that draw their own seeds."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from npnet_runtime.errors import InputError, PrefetchError
from npnet_runtime.golden import GoldenNoise, PreparedNoise

S = TypeVar("S")


class Prefetched(NamedTuple, Generic[S]):
    """A seed, and its noise with the work done that needs no prompt."""

    seed: S
    noise: PreparedNoise


class Prefetcher(Generic[S]):
    """Draws and prepares noise on a thread of its own, a few ahead of whoever takes it.

    ```python
    with Prefetcher(golden, depth=8) as prefetcher:
        seed, prepared = next(prefetcher)
        latents = golden(prepared, prompt_embeds)
    ```

    The result is that of preparing the same noise on demand, to the last bit, in the order of the seeds. Any
    number of threads may take from it; each noise is given once.

    Args:
        golden: the engine.
        seeds: in the order of use, drawn lazily, finite or endless; by default endless random 63-bit numbers
            from the operating system.
        draw: the noise (B, C, H, W) of a seed; by default one noise in float32 from PyTorch's CPU generator,
            as diffusers draws it when it is given one.
        depth: how many noises to keep ready, at least 1.

    Raises:
        InputError: no such depth.
    """

    def __init__(
        self,
        golden: GoldenNoise,
        seeds: Iterable[S] | None = None,
        draw: Callable[[S], Tensor] | None = None,
        *,
        depth: int = 4,
    ) -> None:
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
            raise InputError(f"depth: expected a number of noises, at least 1, given {depth!r}")
        self._process = os.getpid()
        self._ring: _Ring[S] = _Ring(depth)
        chosen = iter(random_seeds() if seeds is None else seeds)
        drawn = draw or (lambda seed: draw_noise(golden, seed))
        # The thread holds the ring but not the prefetcher, so that one that is forgotten stops as well. It is
        # a daemon because other threads are waited for before `finalize` is run at the interpreter's end.
        thread = threading.Thread(
            target=_work, args=(self._ring, golden, chosen, drawn), name="npnet-prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, _stop, self._ring, thread, os.getpid())
        thread.start()

    def __iter__(self) -> Iterator[Prefetched[S]]:
        return self

    def __next__(self) -> Prefetched[S]:
        """The next seed and its noise, waiting for it if need be.

        Raises:
            StopIteration: the seeds have come to an end.
            PrefetchError: the prefetcher was closed, or made before a fork.
            Exception: what drawing or preparing this noise raised; there are no more after it.
        """
        if os.getpid() != self._process:
            raise PrefetchError(
                "this Prefetcher was made in another process, whose threads a fork does not copy; make it, "
                "and its GoldenNoise, after the fork"
            )
        return self._ring.take()

    def close(self) -> None:
        """Stop, and drop what is ready. Waits for the noise that is being prepared; may be called twice."""
        self._finalizer()

    def __enter__(self) -> Prefetcher[S]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Ring(Generic[S]):
    """What the thread and its consumers share."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._ready: deque[Prefetched[S]] = deque()
        self._changed = threading.Condition()
        self._end: BaseException | None = None
        self.closed = False

    def room(self) -> bool:
        """Wait for room for one more; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._ready) < self._depth)
            return not self.closed

    def put(self, item: Prefetched[S]) -> None:
        with self._changed:
            if not self.closed:
                self._ready.append(item)
            self._changed.notify_all()

    def finish(self, end: BaseException) -> None:
        """Nothing comes after what is ready; whoever asks for more gets `end`."""
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def take(self) -> Prefetched[S]:
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._ready or self._end is not None)
            if self.closed:
                raise PrefetchError("expected an open Prefetcher, given one that was closed; make another")
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if isinstance(self._end, StopIteration):
                raise StopIteration
            raise self._end  # type: ignore[misc]

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._ready.clear()
            self._changed.notify_all()


def random_seeds() -> Iterator[int]:
    """Endless 63-bit numbers from the operating system; no random state of Python or torch is touched."""
    while True:
        yield secrets.randbits(63)


def draw_noise(golden: GoldenNoise, seed: object) -> Tensor:
    """One noise (1, C, H, W) float32 from the CPU generator, on the engine's device.

    Raises:
        InputError: the seed is no integer.
    """
    if not isinstance(seed, int):
        raise InputError(f"seeds: expected integers, given {seed!r}; or pass a draw that takes it")
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, *golden.bundle.manifest.config.latent_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return noise.to(golden.device)


def _work(ring: _Ring[S], golden: GoldenNoise, seeds: Iterator[S], draw: Callable[[S], Tensor]) -> None:
    cuda = golden.device.type == "cuda"
    # Not on the default stream, which the pipeline works on.
    with torch.cuda.stream(torch.cuda.Stream(golden.device)) if cuda else nullcontext():
        while ring.room():
            try:
                seed = next(seeds)
                ring.put(Prefetched(seed, golden.prepare(draw(seed))))
            except BaseException as error:  # StopIteration among them: it reaches the consumer in its turn
                ring.finish(error)
                return


def _stop(ring: _Ring[S], thread: threading.Thread, process: int) -> None:
    if os.getpid() != process:
        return  # a forked copy: the thread is not here, and its locks may never be released
    ring.close()
    if thread is not threading.current_thread():
        thread.join()
