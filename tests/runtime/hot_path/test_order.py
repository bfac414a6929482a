"""The order of work on streams, on a stand-in that knows what is sure to come before what.

That the device keeps this order, and holds the graphs, is for `test_graphs_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from npnet_runtime.hot_path import Early, GraphPath, StreamPath, graphed
from npnet_runtime.hot_path.static import Recording
from npnet_runtime.hot_path.streams import overlapped
from support.networks import SMALL, SMALL_ATTENTION, noise_and_prompts
from support.streams import Cuda, Stream, before

CPU = torch.device("cpu")
ROUNDING = 2e-5
T = TypeVar("T")


class Eager:
    """Runs at every replay what a graph would hold, on the stream of the replay."""

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, compute: Callable[[], T]) -> Recording[T]:
        output = compute()

        def replay() -> None:
            for kept, fresh in zip(_tensors(output), _tensors(compute()), strict=True):
                kept.copy_(fresh)

        return Recording(replay, output)


def _tensors(output: Tensor | graphed.Golden) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else (output.noise, torch.from_numpy(output.peaks))


@pytest.fixture
def path(steps, monkeypatch: pytest.MonkeyPatch) -> GraphPath:
    monkeypatch.setattr(graphed, "Capture", Eager)
    return GraphPath(lambda: steps, StreamPath(steps, CPU), SMALL, CPU, 3)


def clocks(steps) -> dict:
    """When each step ran last."""
    return dict(steps.ran)


def run(path, noise: Tensor, prompts: Tensor, early: Early | None = None) -> Tensor:
    out = torch.empty_like(noise)
    assert path.golden(noise, early, (prompts,), out)
    return out


class TestOverlap:
    def test_side_by_side_then_joined(self, steps, cuda: Cuda, expected) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        start = cuda.current_stream().work()
        given, _ = overlapped(steps, noise, None, (prompts,), Stream())
        at = clocks(steps)
        assert before(start, at["before"])
        assert before(start, at["with"])
        assert not before(at["before"], at["with"])
        assert not before(at["with"], at["before"])
        assert before(at["before"], at["finish"])
        assert before(at["with"], at["finish"])
        assert torch.equal(given, expected(noise, prompts))

    def test_what_the_side_stream_made_outlives_the_last_step(self, steps, cuda: Cuda) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        overlapped(steps, noise, None, (prompts,), Stream())
        assert [stream for _, stream in cuda.recorded] == [cuda.current_stream()]
        cuda.recorded.clear()
        cuda.capturing = True
        overlapped(steps, noise, None, (prompts,), Stream())
        assert not cuda.recorded

    def test_nothing_is_done_twice(self, steps) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        overlapped(steps, noise, torch.zeros_like(noise), (prompts,), Stream())
        assert [step for step, _ in steps.ran] == ["with", "finish"]


@pytest.fixture(params=["streams", "graphs"])
def either(request: pytest.FixtureRequest, path: GraphPath, steps):
    return path if request.param == "graphs" else StreamPath(steps, CPU)


class TestPrepare:
    def test_runs_beside_what_comes_next(self, either, steps, cuda: Cuda) -> None:
        noise, _ = noise_and_prompts(SMALL, 2)
        drawn = cuda.current_stream().work()
        early = either.prepare(noise)
        at = clocks(steps)
        following = cuda.current_stream().work()
        assert before(drawn, at["before"])
        assert not before(at["before"], following)
        assert early.ready is not None
        cuda.current_stream().wait_event(early.ready)
        assert before(at["before"], cuda.current_stream().work())

    def test_its_input_outlives_it(self, either, cuda: Cuda) -> None:
        noise, _ = noise_and_prompts(SMALL, 2)
        either.prepare(noise)
        streams = [stream for _, stream in cuda.recorded]  # of the noise, or of its copy
        assert streams
        assert cuda.current_stream() not in streams

    def test_a_call_on_another_stream_waits_for_it(
        self, cuda: Cuda, steps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also for the copy of the noise, where there is nothing else to prepare."""
        monkeypatch.setattr(graphed, "Capture", Eager)
        path = GraphPath(lambda: steps, StreamPath(steps, CPU), SMALL_ATTENTION, CPU, 3)
        monkeypatch.setattr(type(steps), "before_prompt", lambda *_: None)
        monkeypatch.setattr(type(steps), "finish", lambda self, *_: (self.note("finish"), _fail()))
        copied = cuda.current_stream().work()
        early = path.prepare(torch.zeros(1, *SMALL_ATTENTION.latent_shape))
        with cuda.stream(Stream()), pytest.raises(RuntimeError):
            run(path, *noise_and_prompts(SMALL, 1), early)
        assert before(copied, clocks(steps)["with"])

    def test_same_bits(self, either) -> None:
        noise, prompts = noise_and_prompts(SMALL, 3)
        early = either.prepare(noise)
        assert torch.equal(run(either, noise, prompts, early), run(either, noise, prompts))


class TestGraphs:
    @pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
    def test_any_batch(self, path: GraphPath, expected, batch: int) -> None:
        noise, prompts = noise_and_prompts(SMALL, batch)
        wanted = expected(noise, prompts)
        torch.testing.assert_close(run(path, noise, prompts), wanted, atol=ROUNDING, rtol=0)
        early = path.prepare(noise)
        torch.testing.assert_close(run(path, noise, prompts, early), wanted, atol=ROUNDING, rtol=0)

    def test_warm_up_captures_all_there_will_be(self, path: GraphPath) -> None:
        path.warm_up([1, 2, 3], 2, (SMALL.latent_shape, SMALL.text_shape))
        assert path.describe()[0].startswith(
            "graphs captured: 6 for noise, 6 for prepared noise, 6 for prepare"
        )
        said = path.describe()
        for batch in (1, 2, 3):
            noise, prompts = noise_and_prompts(SMALL, batch)
            with path._calls.borrow(), path._preparations.borrow():  # somebody else's
                run(path, noise, prompts, path.prepare(noise))
                run(path, noise, prompts)
        assert path.describe() == said

    def test_one_graph_a_size(self, path: GraphPath) -> None:
        for batch in (1, 2, 3, 2, 1, 3):
            run(path, *noise_and_prompts(SMALL, batch))
        assert "graphs captured: 3 for noise, svd by jacobi" in path.describe()[0]

    def test_the_solver_that_a_graph_can_hold(self, path: GraphPath, steps) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        run(path, noise, prompts)
        path.prepare(noise)
        assert set(steps.solvers) == {"jacobi"}
        steps.solvers.clear()
        assert path.again(noise, (prompts,), torch.empty_like(noise))
        assert steps.solvers == ["auto"]
        assert "calls repeated without: 1" in path.describe()[0]

    def test_the_host_waits_before_buffers_are_lent_again(
        self, path: GraphPath, steps, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever stream the next caller is on; and what the call read may be dropped."""
        free: list[int] = []
        wait = Stream.synchronize

        def synchronize(stream: Stream) -> None:
            free.append(len(path._calls._free))
            wait(stream)

        monkeypatch.setattr(Stream, "synchronize", synchronize)
        run(path, *noise_and_prompts(SMALL, 1))
        assert free == [0]
        assert before(clocks(steps)["finish"], Stream().work())

    def test_calls_and_preparations_share_nothing(self, path, steps, cuda: Cuda) -> None:
        """They run on different streams, and the graphs of a lane have one memory."""
        noise, prompts = noise_and_prompts(SMALL, 1)
        early = path.prepare(noise)
        busy = clocks(steps)["before"]
        run(path, noise, prompts)
        assert not before(busy, clocks(steps)["with"])
        run(path, noise, prompts, early)
        kinds = [
            {kind for kind, *_ in lane.calls} for lane in (*path._calls._free, *path._preparations._free)
        ]
        assert kinds == [{"noise", "prepared noise"}, {"prepare"}]

    def test_many_prepared_noises_in_any_order(self, path: GraphPath, expected) -> None:
        _, prompts = noise_and_prompts(SMALL, 2)
        noises = [noise_and_prompts(SMALL, 2, seed)[0] for seed in range(4)]
        prepared = [path.prepare(noise) for noise in noises]
        for index in (2, 0, 3, 3, 1, 0, 2):
            wanted = expected(noises[index], prompts)
            given = run(path, noises[index], prompts, prepared[index])
            torch.testing.assert_close(given, wanted, atol=ROUNDING, rtol=0)

    def test_what_was_prepared_without_graphs(self, path: GraphPath, steps, cuda: Cuda) -> None:
        """By another object of the same engine."""
        noise, prompts = noise_and_prompts(SMALL, 2)
        early = StreamPath(steps, CPU).prepare(noise)
        made = clocks(steps)["before"]
        assert torch.equal(run(path, noise, prompts, early), run(path, noise, prompts))
        assert before(made, clocks(steps)["finish"])

    @pytest.mark.parametrize("batch", [2, 5])
    def test_says_what_is_not_finite(self, either, batch: int) -> None:
        """In every part of a batch beyond the engine's largest, of rows in use only."""
        noise, prompts = noise_and_prompts(SMALL, batch)
        out = torch.empty_like(noise)
        for row in range(batch):
            broken = prompts.clone()
            broken[row, 0, 0] = torch.nan
            assert not either.golden(noise, None, (broken,), out)
            assert out[row].isnan().all()
        assert either.golden(noise, None, (prompts,), out)
        assert either.golden(noise[:1], None, (prompts[:1],), out[:1])

    def test_too_large_for_the_callers_dtype(self, either) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        large = prompts * 1e6  # the scale follows
        assert either.golden(noise, None, (large,), torch.empty_like(noise))
        out = torch.empty_like(noise, dtype=torch.float16)
        assert not either.golden(noise, None, (large,), out)
        assert out.isinf().any()

    def test_an_error_waits_for_the_device(self, either, steps, cuda: Cuda, monkeypatch) -> None:
        """What it queued may read what the caller drops."""
        monkeypatch.setattr(type(steps), "finish", _fail)
        with pytest.raises(RuntimeError, match="the device is gone"):
            run(either, *noise_and_prompts(SMALL, 1))
        assert cuda.waits == 1

    def test_an_error_costs_the_buffers_only(self, path: GraphPath, steps, monkeypatch) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        wanted = run(path, noise, prompts)
        with monkeypatch.context() as patch:
            patch.setattr(type(steps), "finish", _fail)
            with pytest.raises(RuntimeError, match="the device is gone"):
                run(path, noise, prompts)
        assert torch.equal(run(path, noise, prompts), wanted)

    def test_a_network_with_nothing_to_prepare(self, steps, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graphed, "Capture", Eager)
        path = GraphPath(lambda: steps, StreamPath(steps, CPU), SMALL_ATTENTION, CPU, 3)
        early = path.prepare(torch.zeros(1, *SMALL_ATTENTION.latent_shape))
        assert early.tensor is None
        assert not steps.ran


def _fail(*_: object) -> Tensor:
    raise RuntimeError("the device is gone")
