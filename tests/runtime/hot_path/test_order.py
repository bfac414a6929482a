"""The order of work on streams, on a stand-in that knows what is sure to come before what.

That the device keeps this order, and holds the graphs, is for `test_graphs_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from npnet_runtime.hot_path import GraphPath, StreamPath, graphed
from npnet_runtime.hot_path.static import Recording
from npnet_runtime.hot_path.streams import overlapped
from support.networks import SMALL, SMALL_ATTENTION, noise_and_prompts
from support.streams import Cuda, Stream, before

CPU = torch.device("cpu")
ROUNDING = 2e-5


class Eager:
    """Runs at every replay what a graph would hold, on the stream of the replay."""

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, compute: Callable[[], Tensor]) -> Recording:
        output = compute()
        return Recording(lambda: output.copy_(compute()), output)


@pytest.fixture
def path(steps, monkeypatch: pytest.MonkeyPatch) -> GraphPath:
    monkeypatch.setattr(graphed, "Capture", Eager)
    return GraphPath(lambda: steps, StreamPath(steps, CPU), SMALL, CPU, 3)


def clocks(steps) -> dict:
    """When each step ran last."""
    return dict(steps.ran)


def run(path, noise: Tensor, prompts: Tensor, early: Tensor | None = None) -> Tensor:
    out = torch.empty_like(noise)
    path.golden(noise, early, prompts, out)
    return out


class TestOverlap:
    def test_side_by_side_then_joined(self, steps, cuda: Cuda, expected) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        start = cuda.current_stream().work()
        given = overlapped(steps, noise, None, prompts, Stream())
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
        overlapped(steps, noise, None, prompts, Stream())
        assert [stream for _, stream in cuda.recorded] == [cuda.current_stream()]
        cuda.recorded.clear()
        cuda.capturing = True
        overlapped(steps, noise, None, prompts, Stream())
        assert not cuda.recorded

    def test_nothing_is_done_twice(self, steps) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        overlapped(steps, noise, torch.zeros_like(noise), prompts, Stream())
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
        streams = [stream for pointer, stream in cuda.recorded if pointer == noise.data_ptr()]
        assert streams
        assert cuda.current_stream() not in streams

    def test_same_bits(self, either) -> None:
        noise, prompts = noise_and_prompts(SMALL, 3)
        early = either.prepare(noise).tensor
        assert torch.equal(run(either, noise, prompts, early), run(either, noise, prompts))


class TestGraphs:
    @pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
    def test_any_batch(self, path: GraphPath, expected, batch: int) -> None:
        noise, prompts = noise_and_prompts(SMALL, batch)
        wanted = expected(noise, prompts)
        torch.testing.assert_close(run(path, noise, prompts), wanted, atol=ROUNDING, rtol=0)
        early = path.prepare(noise).tensor
        torch.testing.assert_close(run(path, noise, prompts, early), wanted, atol=ROUNDING, rtol=0)

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
        assert path.again(noise, prompts, torch.empty_like(noise))
        assert steps.solvers == ["auto"]
        assert "calls repeated without: 1" in path.describe()[0]

    def test_buffers_wait_for_their_last_use_on_another_stream(self, path, steps, cuda: Cuda) -> None:
        run(path, *noise_and_prompts(SMALL, 1))
        first = clocks(steps)["finish"]
        with cuda.stream(Stream()):
            assert not before(first, cuda.current_stream().work())
            run(path, *noise_and_prompts(SMALL, 1))
            assert before(first, clocks(steps)["with"])

    def test_calls_and_preparations_share_nothing(self, path, steps, cuda: Cuda) -> None:
        """They run on different streams, and the graphs of a lane have one memory."""
        noise, prompts = noise_and_prompts(SMALL, 1)
        early = path.prepare(noise).tensor
        busy = clocks(steps)["before"]
        run(path, noise, prompts, early)
        run(path, noise, prompts)
        assert not before(busy, clocks(steps)["with"])
        kinds = [{kind for kind, _ in lane.calls} for lane in (*path._calls._free, *path._preparations._free)]
        assert kinds == [{"noise", "prepared noise"}, {"prepare"}]

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
        assert path.prepare(torch.zeros(1, *SMALL_ATTENTION.latent_shape)) == (None, None)
        assert not steps.ran


def _fail(*_: object) -> Tensor:
    raise RuntimeError("the device is gone")
