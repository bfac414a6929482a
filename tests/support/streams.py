"""A stand-in for `torch.cuda` that keeps account of order: which work is sure to run after which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

Clock = Counter  # how many pieces of work of each stream are sure to be done
_host: Clock = Clock()  # what the host has waited for: all that it queues later comes after it


class Event:
    """A point in the work of a stream."""

    def __init__(self) -> None:
        self.clock: Clock = Clock()

    def record(self, stream: Stream) -> None:
        self.clock = Clock(stream.clock)


class Stream:
    """Work in order. Every piece is sure to run after what the stream waited for."""

    def __init__(self, device: object = None) -> None:
        self.clock: Clock = Clock()

    def work(self) -> Clock:
        self.clock |= _host
        self.clock[id(self)] += 1
        return Clock(self.clock)

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.clock |= event.clock

    def wait_stream(self, other: Stream) -> None:
        self.clock |= other.clock

    def synchronize(self) -> None:
        _host.update(self.clock - _host)


class Cuda:
    """What the paths use of `torch.cuda`."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        _host.clear()
        self._current = Stream()
        self.waits = 0  # of the host for everything
        self.capturing = False
        self.recorded: list[tuple[int, Stream]] = []  # address and stream, of `Tensor.record_stream`

    def device(self, device: object) -> nullcontext:
        return nullcontext()

    def current_stream(self, device: object = None) -> Stream:
        return self._current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def current_device(self) -> int:
        return 0

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def synchronize(self, device: object = None) -> None:
        self.waits += 1


def before(first: Clock, second: Clock) -> bool:
    """Whether the first work is sure to be done when the second begins."""
    return first <= second
