"""How the TensorRT back end shares contexts and orders streams, on a stand-in for the library and for CUDA.

The real thing is run by `pytest -m gpu`.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from npnet_runtime.backends import tensorrt_backend
from npnet_runtime.backends.tensorrt_backend import MAX_CONTEXTS, LoadedEngine, _Captured
from npnet_runtime.errors import BackendError
from npnet_runtime.networks.graphs import Graph

DEVICE = torch.device("cuda", 0)


class Stream:
    """Remembers what it was told to wait for."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.cuda_stream = id(self)
        self.waited: list[object] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)

    def wait_event(self, event: object) -> None:
        self.waited.append(event)


class Context:
    """Doubles its input."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.runs: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape[0] <= 3

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.runs.append(stream)
        return True


class Cuda:
    """One caller's stream, and every context that the engine made."""

    def __init__(self) -> None:
        self.default, self.current = Stream(), Stream()
        self.contexts: list[Context] = []
        self.refuse = False
        self.synchronized = threading.Event()

    def create_execution_context(self) -> Context | None:
        if self.refuse:
            return None
        self.contexts.append(Context())
        return self.contexts[-1]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    state = Cuda()
    stand_in = SimpleNamespace(
        device=lambda device: nullcontext(),
        Stream=Stream,
        Event=lambda: SimpleNamespace(record=lambda stream: None, synchronize=state.synchronized.set),
        current_stream=lambda: state.current,
        default_stream=lambda: state.default,
    )
    monkeypatch.setattr(tensorrt_backend.torch, "cuda", stand_in)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return state


@pytest.fixture
def engine(cuda: Cuda) -> LoadedEngine:
    log = SimpleNamespace(tail=lambda: "  what the library said")
    return LoadedEngine(SimpleNamespace(__name__="tensorrt"), cuda, log, DEVICE)  # type: ignore[arg-type]


def run(engine: LoadedEngine, batch: int = 1) -> None:
    engine.run({"x": torch.zeros(batch, 2)}, {"y": torch.empty(batch, 2)})


def test_one_context_until_two_are_needed(engine: LoadedEngine, cuda: Cuda) -> None:
    for _ in range(5):
        run(engine)
    assert len(cuda.contexts) == 1
    assert cuda.contexts[0].addresses.keys() == {"x", "y"}
    assert cuda.contexts[0].runs == [cuda.current.cuda_stream] * 5


def test_never_more_contexts_than_allowed(engine: LoadedEngine, cuda: Cuda, monkeypatch) -> None:
    together = threading.Barrier(MAX_CONTEXTS)

    def wait(context: Context, stream: int) -> bool:
        together.wait(timeout=10)
        return True

    monkeypatch.setattr(Context, "execute_async_v3", wait)
    with ThreadPoolExecutor(3 * MAX_CONTEXTS) as pool:
        list(pool.map(lambda _: run(engine), range(3 * MAX_CONTEXTS)))
    assert len(cuda.contexts) == MAX_CONTEXTS


def test_a_context_waits_for_its_last_run_on_another_stream(engine: LoadedEngine, cuda: Cuda) -> None:
    run(engine)
    first, cuda.current = cuda.current, Stream()
    run(engine)
    assert len(cuda.current.waited) == 1
    run(engine)
    assert len(cuda.current.waited) == 1  # the same stream again: in order as it is
    assert cuda.contexts[0].runs == [first.cuda_stream, *[cuda.current.cuda_stream] * 2]


def test_leaves_the_default_stream(engine: LoadedEngine, cuda: Cuda) -> None:
    cuda.current = cuda.default
    run(engine)
    (own,) = cuda.default.waited
    assert isinstance(own, Stream)
    assert own.waited[0] is cuda.default
    assert cuda.contexts[0].runs == [own.cuda_stream]


def test_batch_that_the_profile_does_not_cover(engine: LoadedEngine, cuda: Cuda) -> None:
    with pytest.raises(BackendError, match=r"tensorrt: x: no profile for the shape \(4, 2\):\n  what the"):
        run(engine, batch=4)
    run(engine)
    assert len(cuda.contexts) == 2  # the first is in an unknown state
    assert cuda.synchronized.is_set()  # and was given up when nothing ran in it any more


def test_failed_run(engine: LoadedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "execute_async_v3", lambda context, stream: False)
    for _ in range(2 * MAX_CONTEXTS):  # errors do not use up the turns
        with pytest.raises(BackendError, match=r"could not be queued:\n  what the library said"):
            run(engine)


def test_too_little_memory(cuda: Cuda) -> None:
    cuda.refuse = True
    log = SimpleNamespace(tail=lambda: "  out of memory")
    with pytest.raises(BackendError, match=r"free GPU memory, or build with a smaller --max-batch:\n  out"):
        LoadedEngine(SimpleNamespace(__name__="tensorrt"), cuda, log, DEVICE)  # type: ignore[arg-type]


class TestForCapture:
    """What a CUDA graph is to hold: one context for each engine, the current stream, no events."""

    @pytest.fixture
    def captured(self, engine: LoadedEngine) -> _Captured:
        return _Captured(DEVICE, {"g": Graph({"x": (2,)}, {"y": (2,)})}, {"g": engine})

    def test_one_context_of_its_own(self, captured: _Captured, engine: LoadedEngine, cuda: Cuda) -> None:
        x = torch.zeros(3, 2)
        (y,) = [captured.run("g", x) for _ in range(3)][-1]
        assert not cuda.current.waited  # an event from outside would end the capture
        run(engine)
        shared, own = cuda.contexts
        assert (len(shared.runs), own.runs) == (1, [cuda.current.cuda_stream] * 3)
        assert own.addresses == {"x": x.data_ptr(), "y": y.data_ptr()}
        captured.for_capture().run("g", x)
        assert len(cuda.contexts) == 3

    def test_told_before_the_capture_that_it_cannot_be(
        self, captured: _Captured, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        monkeypatch.setattr(
            Context, "is_stream_capturable", lambda context, stream: asked.append(stream), raising=False
        )
        with pytest.raises(BackendError, match=r"g cannot be captured.*pass cuda_graphs=False:\n  what the"):
            captured.run("g", torch.zeros(1, 2))
        assert asked == [cuda.current.cuda_stream]
