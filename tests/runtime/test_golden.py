"""`GoldenNoise` on every engine: results, inputs it takes, inputs it refuses, manners."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from npnet_kernels import SVD, latent_to_matrix, svd
from npnet_runtime import EngineBundle, GoldenNoise, NPNet, PreparedNoise
from npnet_runtime.errors import BackendError, InputError, NPNetError
from support.networks import SMALL, noise_and_prompts


@pytest.fixture
def golden(small_bundle: EngineBundle) -> GoldenNoise:
    return GoldenNoise(small_bundle, device="cpu")


def reference(network: NPNet, noise: Tensor, prompts: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(noise, prompts, svd(latent_to_matrix(noise.float())))


FLOAT32 = ("torch-fp32", "onnxruntime-fp32", "aoti-fp32")


class TestFullSize:
    """The acceptance of the whole chain: checkpoint -> export -> bundle -> golden noise."""

    @pytest.mark.parametrize("engine", FLOAT32)
    def test_fixture_end_to_end(
        self, engine: str, sdxl_bundles: dict[str, EngineBundle], fixture: dict[str, Tensor]
    ) -> None:
        golden = GoldenNoise(sdxl_bundles[engine].path, device="cpu")
        given = golden(fixture["noise"], fixture["prompt_embeds"])
        torch.testing.assert_close(given, fixture["golden"], atol=1e-3, rtol=0)

    @pytest.mark.parametrize("engine", FLOAT32)
    def test_fixture_with_its_factors(
        self,
        engine: str,
        sdxl_bundles: dict[str, EngineBundle],
        fixture: dict[str, Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """All but the SVD, which is replaced by what the original found."""
        golden = GoldenNoise(sdxl_bundles[engine].path, device="cpu")  # built before the SVD is replaced
        factors = SVD(fixture["U"], fixture["s"], fixture["Vh"])
        monkeypatch.setattr("npnet_runtime.hot_path.passes.svd", lambda matrix, solver, signs: factors)
        prepared = golden.prepare(fixture["noise"])
        torch.testing.assert_close(prepared.spectral, fixture["spectral"], atol=5e-5, rtol=0)
        given = golden(prepared, fixture["prompt_embeds"])
        torch.testing.assert_close(given, fixture["golden"], atol=5e-5, rtol=0)

    @pytest.mark.parametrize("engine", FLOAT32)
    def test_fixture_prompt_half(
        self, engine: str, sdxl_bundles: dict[str, EngineBundle], fixture: dict[str, Tensor]
    ) -> None:
        golden = GoldenNoise(sdxl_bundles[engine].path, device="cpu")
        with torch.inference_mode():
            scale_shift, residual = golden._pass.with_prompt(fixture["noise"], fixture["prompt_embeds"])
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        text = torch.nn.functional.group_norm(fixture["noise"], 1, eps=1e-6) * (1 + scale) + shift
        torch.testing.assert_close(text, fixture["text_embedding"], atol=5e-5, rtol=0)
        full = torch.nn.functional.interpolate(residual, size=(128, 128))
        torch.testing.assert_close(full, fixture["residual"], atol=5e-5, rtol=0)

    def test_half_precision(self, sdxl_bundles: dict[str, EngineBundle], sdxl_network: NPNet) -> None:
        golden = GoldenNoise(sdxl_bundles["onnxruntime-fp16"].path, device="cpu")
        noise, prompts = noise_and_prompts(sdxl_network.config, 2, seed=9)
        with torch.inference_mode():
            exact = sdxl_network(noise, prompts, svd(latent_to_matrix(noise), signs="as-is"))
        assert 0 < (golden(noise, prompts) - exact).square().mean().sqrt() <= 2e-3

    @pytest.mark.parametrize("engine", ["torch-fp32", "onnxruntime-fp32"])
    def test_loads_within_two_seconds(self, engine: str, sdxl_bundles: dict[str, EngineBundle]) -> None:
        def seconds() -> float:
            start = time.perf_counter()
            GoldenNoise(sdxl_bundles[engine].path, device="cpu")
            return time.perf_counter() - start

        assert min(seconds() for _ in range(3)) <= 2

    def test_sizes(self, sdxl_bundles: dict[str, EngineBundle]) -> None:
        megabytes = {
            name: sum(file.stat().st_size for file in sdxl_bundles[name].path.iterdir()) / 1e6
            for name in ("torch-fp32", "onnxruntime-fp32", "onnxruntime-fp16")
        }
        assert megabytes["torch-fp32"] <= 121
        assert megabytes["onnxruntime-fp32"] <= 121
        assert megabytes["onnxruntime-fp16"] <= 62


class TestResults:
    def test_agrees_with_the_network(self, golden: GoldenNoise, small_network: NPNet) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        torch.testing.assert_close(
            golden(noise, prompts), reference(small_network, noise, prompts), atol=2e-5, rtol=0
        )

    def test_prepared_noise_gives_the_same_bits(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        prepared = golden.prepare(noise)
        assert torch.equal(golden(prepared, prompts), golden(noise, prompts))
        # and serves another prompt
        assert torch.equal(golden(prepared, -prompts), golden(noise, -prompts))

    def test_prepared_noise_is_a_copy(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        expected = golden(noise, prompts)
        prepared = golden.prepare(noise)
        noise.zero_()
        assert torch.equal(golden(prepared, prompts), expected)

    def test_repeats(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        assert torch.equal(golden(noise, prompts), golden(noise, prompts))

    @pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
    def test_batches_beyond_the_engines_maximum(
        self, golden: GoldenNoise, small_network: NPNet, batch: int
    ) -> None:
        noise, prompts = noise_and_prompts(SMALL, batch)
        torch.testing.assert_close(
            golden(noise, prompts), reference(small_network, noise, prompts), atol=2e-5, rtol=0
        )

    def test_one_prompt_for_all(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 4)
        assert torch.equal(golden(noise, prompts[:1]), golden(noise, prompts[:1].expand(4, -1, -1)))

    def test_images_per_prompt(self, golden: GoldenNoise) -> None:
        """As diffusers repeats embeddings: the images of a prompt follow one another."""
        noise, prompts = noise_and_prompts(SMALL, 6)
        by_hand = torch.stack([prompts[0]] * 3 + [prompts[1]] * 3)
        assert torch.equal(golden(noise, prompts[:2]), golden(noise, by_hand))

    @pytest.mark.parametrize(
        ("dtype", "rounding"),
        [(torch.float16, 4e-3), (torch.bfloat16, 3e-2), (torch.float32, 2e-5), (torch.float64, 2e-5)],
    )
    def test_dtypes(
        self, golden: GoldenNoise, small_network: NPNet, dtype: torch.dtype, rounding: float
    ) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        given = golden(noise.to(dtype), prompts.to(dtype))
        assert (given.dtype, given.shape) == (dtype, noise.shape)
        expected = reference(small_network, noise.to(dtype).float(), prompts.to(dtype).float())
        # half an ulp of values up to 8, in the caller's dtype
        torch.testing.assert_close(given.float(), expected, atol=rounding, rtol=0)

    def test_not_contiguous(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        strided = noise.transpose(2, 3).contiguous().transpose(2, 3)
        wide = prompts.repeat_interleave(2, dim=2)[..., ::2]
        given = golden(strided, wide)
        assert given.is_contiguous()
        assert torch.equal(given, golden(noise, prompts))

    def test_as_is_differs_little_from_canonical(self, small_network: NPNet) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        with torch.inference_mode():
            as_is, canonical = (
                small_network(noise, prompts, svd(latent_to_matrix(noise), signs=signs))
                for signs in ("as-is", "canonical")
            )
        assert 0 < (as_is - canonical).abs().max() < 0.1


class TestManners:
    def test_result_may_be_changed_in_place(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 1)
        latents = golden(noise, prompts)
        assert not latents.is_inference()
        latents.mul_(14.6)
        latents.requires_grad_().sum().backward()

    def test_inputs_are_left_alone(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        copies = noise.clone(), prompts.clone()
        golden(noise, prompts)
        assert torch.equal(noise, copies[0])
        assert torch.equal(prompts, copies[1])

    def test_random_state_and_settings_are_left_alone(self, small_bundle: EngineBundle) -> None:
        torch.manual_seed(3)
        before = torch.get_rng_state(), *_settings()
        golden = GoldenNoise(small_bundle, device="cpu")
        golden(*noise_and_prompts(SMALL, 2))
        after = torch.get_rng_state(), *_settings()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
    def test_the_callers_context_changes_nothing(self, golden: GoldenNoise, context: Callable) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        expected = golden(noise, prompts)
        with context():
            assert torch.equal(golden(noise, prompts), expected)
            assert torch.equal(golden(golden.prepare(noise), prompts), expected)

    def test_default_dtype_and_device_change_nothing(self, small_bundle: EngineBundle) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        expected = GoldenNoise(small_bundle, device="cpu")(noise, prompts)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                given = GoldenNoise(small_bundle, device="cpu")(noise, prompts)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(given, expected)

    def test_noise_that_requires_grad(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)
        given = golden(noise.clone().requires_grad_(), prompts.clone().requires_grad_())
        assert not given.requires_grad
        assert torch.equal(given, golden(noise, prompts))

    def test_threads(self, golden: GoldenNoise) -> None:
        inputs = [noise_and_prompts(SMALL, 1 + seed % 3, seed) for seed in range(12)]
        expected = [golden(*pair) for pair in inputs]
        barrier = threading.Barrier(4)

        def work(index: int) -> list[Tensor]:
            barrier.wait()
            return [golden(*pair) for pair in inputs[index::4]]

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, range(4)))
        for index, given in enumerate(results):
            assert all(torch.equal(a, b) for a, b in zip(given, expected[index::4], strict=True))

    def test_memory_stays_flat(self, golden: GoldenNoise) -> None:
        noise, prompts = noise_and_prompts(SMALL, 2)

        def resident() -> int:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        for _ in range(30):
            golden(noise, prompts)
        before = resident()
        for _ in range(200):
            golden(noise, prompts)
        assert resident() - before < 20e6

    def test_warm_up(self, golden: GoldenNoise) -> None:
        golden.warm_up(batches=[1, 3], callers=2)
        golden.warm_up()
        for wrong in ({"batches": [0]}, {"batches": [1.5]}, {"callers": 0}, {"callers": True}):
            with pytest.raises(InputError, match="warm_up: expected positive numbers"):
                golden.warm_up(**wrong)

    def test_report(self, golden: GoldenNoise) -> None:
        report = golden.report()
        assert f"{golden.bundle.manifest.engine} on cpu: accepted" in report
        assert "rejected" in report
        assert "parity when built: golden: max_abs" in report
        assert "canonical-v1" in report
        assert "kernels: torch (" in report
        assert "svd: lapack (" in report

    def test_no_such_kernels(self, small_bundle: EngineBundle) -> None:
        with pytest.raises(BackendError, match="auto, torch, triton; given 'coffee'"):
            GoldenNoise(small_bundle, device="cpu", kernels="coffee")  # type: ignore[arg-type]
        with pytest.raises(BackendError, match="compiled for CUDA|not installed"):
            GoldenNoise(small_bundle, device="cpu", kernels="triton")


def _settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_device(),
    )


NOISE, PROMPTS = noise_and_prompts(SMALL, 2)


def broken(tensor: Tensor, value: float) -> Tensor:
    copy = tensor.clone()
    copy.view(-1)[7] = value
    return copy


@pytest.mark.parametrize(
    ("noise", "prompts", "said"),
    [
        (NOISE[0], PROMPTS, r"noise: expected shape \(batch, 4, 16, 16\).*given \(4, 16, 16\)"),
        (NOISE[:, :3], PROMPTS, r"given \(2, 3, 16, 16\)"),
        (NOISE[..., :8], PROMPTS, r"given \(2, 4, 16, 8\)"),
        (NOISE[:0], PROMPTS, "noise: expected a batch of at least 1"),
        (NOISE.int(), PROMPTS, "noise: expected a dtype of float16.*given torch.int32"),
        (NOISE.to(torch.complex64), PROMPTS, "given torch.complex64"),
        (broken(NOISE, torch.nan), PROMPTS, "noise: expected finite values, given 1"),
        (broken(NOISE, torch.inf), PROMPTS, "noise: expected finite values, given 1"),
        (NOISE.double() * 1e300, PROMPTS, "NaN, infinite or too large"),
        (NOISE.to_sparse(), PROMPTS, "expected a dense tensor, given one of layout torch.sparse_coo"),
        (torch.nested.nested_tensor(list(NOISE)), PROMPTS, "expected a dense tensor, given a nested one"),
        (NOISE.numpy(), PROMPTS, "noise: expected a torch.Tensor, given ndarray"),
        (NOISE.to("meta"), PROMPTS, r"expected a tensor on cpu.*given one on meta.*\.to\('cpu'\)"),
        (NOISE, PROMPTS[:, :4], r"prompt_embeds: expected shape \(batch, 5, 12\).*given \(2, 4, 12\)"),
        (NOISE, PROMPTS[..., :11], r"prompt_embeds.*given \(2, 5, 11\)"),
        (NOISE, PROMPTS.flatten(1), r"prompt_embeds.*given \(2, 60\)"),
        (NOISE, PROMPTS[:0], "prompt_embeds: expected a batch of at least 1"),
        (NOISE, PROMPTS[:1].repeat(3, 1, 1), "1 prompt, 2 prompts or a divisor of 2 for 2 noises, given 3"),
        (NOISE, PROMPTS.long(), "prompt_embeds: expected a dtype"),
        (NOISE, broken(PROMPTS, torch.nan), "prompt_embeds: expected finite values, given 1"),
        (NOISE, None, "prompt_embeds: expected a torch.Tensor, given NoneType"),
    ],
)
def test_refused(small_bundles: dict[str, EngineBundle], noise: object, prompts: object, said: str) -> None:
    golden = GoldenNoise(small_bundles["torch"], device="cpu")
    with pytest.raises(InputError, match=said):
        golden(noise, prompts)  # type: ignore[arg-type]
    if "prompt" not in said:
        with pytest.raises(InputError, match=said):
            golden.prepare(noise)  # type: ignore[arg-type]


def test_prepared_for_another_engine(small_bundles: dict[str, EngineBundle]) -> None:
    first, second = (GoldenNoise(small_bundles[name], device="cpu") for name in ("torch", "onnxruntime"))
    with pytest.raises(InputError, match="prepared by another engine"):
        second(first.prepare(NOISE), PROMPTS)


def test_errors_share_a_base() -> None:
    assert issubclass(InputError, NPNetError)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("device", ["warp", 1.5, "cuda:x"])
def test_no_such_device(small_bundle: EngineBundle, device: object) -> None:
    with pytest.raises(BackendError, match="expected cpu, cuda or cuda:N"):
        GoldenNoise(small_bundle, device=device)  # type: ignore[arg-type]


def test_cpu_by_index(small_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_bundle, device="cpu:0")
    assert torch.equal(golden(NOISE, PROMPTS), GoldenNoise(small_bundle, device="cpu")(NOISE, PROMPTS))


def test_result_that_overflows(small_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_bundle, device="cpu")
    with pytest.raises(InputError, match="golden noise is not finite in torch.float16"):
        golden(NOISE.half(), PROMPTS * 1e7)


def test_after_a_fork(small_bundle: EngineBundle) -> None:
    """Threads do not survive a fork: an error, where the call would wait for ever."""
    golden = GoldenNoise(small_bundle, device="cpu")
    golden(NOISE, PROMPTS)
    child = os.fork()
    if child == 0:
        try:
            golden(NOISE, PROMPTS)
        except BackendError as error:
            os._exit(0 if "make it after the fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_copies(small_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_bundle, device="cpu")
    assert copy.deepcopy(golden) is golden
    again = pickle.loads(pickle.dumps(golden))
    assert torch.equal(again(NOISE, PROMPTS), golden(NOISE, PROMPTS))
    assert repr(golden) == f"<GoldenNoise small, {small_bundle.manifest.engine} fp32 on cpu>"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_cuda_asked_for_without_cuda(small_bundle: EngineBundle) -> None:
    with pytest.raises(BackendError, match="cuda:0 does not exist here"):
        GoldenNoise(small_bundle, device="cuda")


def test_prepared_noise_is_public() -> None:
    assert PreparedNoise.__doc__


def test_cuda_graphs_on_a_cpu(small_torch_bundle: EngineBundle) -> None:
    with pytest.raises(BackendError, match="the engine runs on the cpu. Leave cuda_graphs out"):
        GoldenNoise(small_torch_bundle, device="cpu", cuda_graphs=True)
    assert "CUDA graphs: off: the engine" in GoldenNoise(small_torch_bundle, device="cpu").report()


def test_the_halves_run_side_by_side(
    small_torch_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half waits for the other to have begun: one after the other would never end."""
    golden = GoldenNoise(small_torch_bundle, device="cpu")
    expected = golden(NOISE, PROMPTS)
    both = threading.Barrier(2)
    for half in ("before_prompt", "with_prompt"):
        original = getattr(golden._pass, half)

        def wait(*args: object, _original: Callable = original, **kwargs: object) -> object:
            both.wait(timeout=10)
            return _original(*args, **kwargs)

        monkeypatch.setattr(golden._pass, half, wait)
    assert torch.equal(golden(NOISE, PROMPTS), expected)


def test_options_survive_pickling(small_torch_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_torch_bundle, device="cpu", cuda_graphs=False, cache_size=3, tokens="average")
    again = pickle.loads(pickle.dumps(golden))
    assert "cuda_graphs=False was asked for" in again.report()
    assert "0 of 3 prepared noises" in again.report()
    assert again._tokens == "average"
