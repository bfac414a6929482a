"""What is said where a device, its driver, its memory or a stream is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.devices import cuda_problem, device_errors, resolve_device
from npnet_runtime.errors import BackendError, InputError
from support.networks import SMALL, noise_and_prompts


class TritonError(Exception):
    """Triton's own have no base class but this."""

    __module__ = "triton.runtime.errors"


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update it"


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def old_driver() -> None:
    raise RuntimeError(OLD_DRIVER + "\nmore lines")


class TestNoCuda:
    def test_driver_too_old(self, no_cuda: pytest.MonkeyPatch, small_torch_bundle: EngineBundle) -> None:
        no_cuda.setattr(torch.version, "cuda", "13.0")
        no_cuda.setattr(torch.cuda, "init", old_driver)
        assert cuda_problem() == OLD_DRIVER
        with pytest.raises(BackendError, match=r"does not exist here.*\(The NVIDIA driver on your system"):
            GoldenNoise(small_torch_bundle, device="cuda")

    def test_torch_without_cuda(self, no_cuda: pytest.MonkeyPatch) -> None:
        no_cuda.setattr(torch.version, "cuda", None)
        assert "this torch was built without CUDA" in str(cuda_problem())

    def test_no_device(self, no_cuda: pytest.MonkeyPatch) -> None:
        no_cuda.setattr(torch.version, "cuda", "13.0")
        no_cuda.setattr(torch.cuda, "init", lambda: None)
        assert "CUDA_VISIBLE_DEVICES" in str(cuda_problem())

    @pytest.mark.parametrize("device", [None, "cuda", "cuda:1"])
    def test_fork_after_cuda_was_initialised(
        self, no_cuda: pytest.MonkeyPatch, small_torch_bundle: EngineBundle, device: str | None
    ) -> None:
        """Never the CPU in place of the GPU that the parent uses."""
        no_cuda.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
        with pytest.raises(BackendError, match="initialised before this process was forked.*'spawn'"):
            GoldenNoise(small_torch_bundle, device=device)
        assert resolve_device("cpu") == torch.device("cpu")


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
                "Tried to allocate 2 GiB",
            ),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "a smaller batch"),
            (MemoryError(), "too little memory: MemoryError"),
            (
                RuntimeError("CUDA error: invalid resource handle\nmore"),
                "handle\nIs the current stream.*destroyed",
            ),
            (
                RuntimeError(
                    "Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain."
                ),
                "unsupported toolchain.*\n.*a driver no older than its CUDA.*kernels='torch'",
            ),
            (RuntimeError("Failed to find C compiler. Please specify"), "apt install gcc"),
            (
                TritonError("ptxas fatal : no such architecture"),
                "Triton cannot compile.*no such architecture",
            ),
        ],
    )
    def test_told_of_every_step(
        self, small_torch_bundle: EngineBundle, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever half it comes from; and the next call is none the worse."""
        golden = GoldenNoise(small_torch_bundle, device="cpu")
        noise, prompts = noise_and_prompts(SMALL, 2)
        expected = golden(noise, prompts)

        def fail(*args: object) -> None:
            raise error

        for graph in ("with_prompt", "before_prompt"):
            with monkeypatch.context() as patch:
                patch.setattr(golden._pass, graph, fail)
                with pytest.raises(BackendError, match=said):
                    golden(noise, prompts)
        with monkeypatch.context() as patch:
            patch.setattr(golden._pass, "before_prompt", fail)
            with pytest.raises(BackendError, match=said):
                golden.prepare(noise)
        assert torch.equal(golden(noise, prompts), expected)

    def test_others_pass(self) -> None:
        for error in (RuntimeError("something else"), InputError("noise"), ValueError("out of memory")):
            with pytest.raises(type(error), match=str(error)), device_errors():
                raise error


OUT_OF_MEMORY = """
import resource, sys, torch, npnet_runtime
golden = npnet_runtime.GoldenNoise(sys.argv[1], device="cpu")
config = golden.bundle.manifest.config
noise, prompt = torch.randn(30_000, *config.latent_shape), torch.randn(1, *config.text_shape)
golden(noise[:1], prompt)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (20 << 20), resource.RLIM_INFINITY))
try:
    golden(noise, prompt)
except npnet_runtime.NPNetError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert golden(noise[:1], prompt).isfinite().all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_runs_out(small_torch_bundle: EngineBundle) -> None:
    """For real, in a process of its own, which goes on to work."""
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(small_torch_bundle.path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "too little memory: " in result.stdout
    assert "call with a smaller batch" in result.stdout
