"""The operators on the CPU: registration, export, choice of back-end, arguments, references."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import npnet_kernels
import npnet_kernels.operators
from npnet_kernels import (
    BackendUnavailableError,
    KernelInputError,
    choose_backend,
    combine,
    latent_to_matrix,
    matrix_to_latent,
    reconstruct,
    spectral_correction,
    text_affine,
)
from npnet_kernels.linalg import signs

Draw = Callable[..., torch.Tensor]
WEIGHTS = {"text_weight": 0.3, "residual_weight": 0.05}


def reconstruction_inputs(draw: Draw, batch: int = 2) -> dict[str, torch.Tensor]:
    return {
        "noise": draw(batch, 4, 16, 12), "u": draw(batch, 32, 24, seed=1), "f": draw(batch, 24, seed=2),
        "vh": draw(batch, 24, 24, seed=3), "scale_shift": draw(batch, 8, seed=4),
        "residual": draw(batch, 4, 7, 12, seed=5),
    }  # fmt: skip


def operator_calls(draw: Draw) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    i = reconstruction_inputs(draw)
    factors, branches = (i["u"], i["f"], i["vh"]), (i["scale_shift"], i["residual"])
    ops = torch.ops.npnet
    index, norm = torch.arange(8).int(), (draw(6), draw(6))
    rows, product = draw(2, 8, 6), (draw(5, 6), draw(5), *norm)
    return {
        "svd": (ops.svd, (draw(2, 16, 16), "lapack")),
        "svd gram": (ops.svd, (draw(2, 16, 16), "gram")),
        "svd wide": (ops.svd, (draw(2, 3, 7, 4), "torch")),
        "canonical_signs": (ops.canonical_signs, (draw(2, 5, 4), draw(2, 4, 6))),
        "spectral_correction": (ops.spectral_correction, (i["noise"], *factors, "torch")),
        "combine": (ops.combine, (i["noise"], i["noise"].half(), *branches, 0.3, 0.05, "torch")),
        "combine_with_peak": (
            ops.combine_with_peak,
            (i["noise"], i["noise"].half(), *branches, 0.3, 0.05, "torch"),
        ),
        "reconstruct": (ops.reconstruct, (i["noise"], *factors, *branches, 0.3, 0.05, "torch")),
        "text_affine": (ops.text_affine, (draw(2, 3, 4), draw(8, 12), draw(8), "torch")),
        "window_attention": (
            ops.window_attention,
            (rows, index, *norm, draw(18, 6), draw(18), draw(2, 3, 4, 4), 1e-5, "torch"),
        ),
        "fused_linear": (
            ops.fused_linear,
            (rows, *product, None, draw(2, 8, 5), index, True, 1e-5, "torch"),
        ),
        "fused_linear alone": (
            ops.fused_linear,
            (rows, draw(5, 6), None, None, None, None, None, None, False, 1e-5, "torch"),
        ),
        "embed_patches": (
            ops.embed_patches,
            (
                draw(2, 4, 3, 5),
                draw(2, 8),
                index,
                draw(6, 16),
                draw(6),
                *norm,
                1e-6,
                1e-5,
                torch.half,
                "torch",
            ),
        ),
        "residual_map": (
            ops.residual_map,
            (draw(2, 4, 6), index[:4].clone(), *norm, index[:3].clone(), draw(7, 2), draw(7), 1e-5, "torch"),
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "svd",
        "svd gram",
        "svd wide",
        "canonical_signs",
        "spectral_correction",
        "combine",
        "combine_with_peak",
        "reconstruct",
        "text_affine",
        "window_attention",
        "fused_linear",
        "fused_linear alone",
        "embed_patches",
        "residual_map",
    ],
)
def test_registration(name: str, gaussian: Draw) -> None:
    operator, arguments = operator_calls(gaussian)[name]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator.default, arguments, test_utils=tests)


class Everything(torch.nn.Module):
    def forward(
        self,
        noise: torch.Tensor,
        f: torch.Tensor,
        residual: torch.Tensor,
        prompt: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        u, _, vh = npnet_kernels.svd(latent_to_matrix(noise), solver="lapack")
        scale_shift = text_affine(prompt, weight, weight[:, 0])
        return reconstruct(noise, u, f, vh, scale_shift, residual, **WEIGHTS)


def test_export_with_any_batch(gaussian: Draw) -> None:
    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        return (
            gaussian(batch, 4, 16, 16), gaussian(batch, 32), gaussian(batch, 4, 7, 16), gaussian(batch, 5, 6),
            gaussian(8, 30),
        )  # fmt: skip

    any_batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(Everything(), inputs(3), dynamic_shapes=(any_batch,) * 4 + (None,))
    targets = {str(node.target) for node in program.graph.nodes}
    expected = {"svd", "canonical_signs", "reconstruct", "text_affine"}
    assert {f"npnet.{name}.default" for name in expected} <= targets
    torch.testing.assert_close(program.module()(*inputs(5)), Everything()(*inputs(5)))


def test_kernels_are_visible_to_the_compiler(gaussian: Draw) -> None:
    """`triton_op` decomposes into launches that AOTInductor can package."""
    pytest.importorskip("triton")
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[str] = []

    def record(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., list[torch.Tensor]]:
        graphs.append(graph.code)
        return graph.forward

    def run(weight: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        golden = torch.ops.npnet.reconstruct(*inputs.values(), 0.3, 0.05, "triton")
        return golden + torch.ops.npnet.text_affine(golden[:, 0], weight, weight[:, 0], "triton").mean()

    compiled = torch.compile(run, backend=aot_autograd(fw_compiler=record))
    with torch.no_grad(), contextlib.suppress(RuntimeError):  # no driver: the launch itself has to fail
        compiled(gaussian(8, 16 * 12), **reconstruction_inputs(gaussian))
    assert graphs[0].count("triton_kernel_wrapper_functional(") == 4


def test_compiled(gaussian: Draw) -> None:
    i = reconstruction_inputs(gaussian)
    compiled = torch.compile(lambda inputs: reconstruct(**inputs, **WEIGHTS), backend="aot_eager")
    torch.testing.assert_close(compiled(i), reconstruct(**i, **WEIGHTS))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "surroundings",
    [lambda: torch.autocast("cpu"), lambda: default_dtype(torch.float64), lambda: torch.device("meta")],
    ids=["autocast", "default dtype", "default device"],
)
def test_untouched_by_the_callers_settings(
    surroundings: Callable[[], contextlib.AbstractContextManager[object]], gaussian: Draw
) -> None:
    i, matrix = reconstruction_inputs(gaussian), gaussian(2, 33, 33)
    prompt, weight = gaussian(2, 3, 40), gaussian(8, 120)

    def everything() -> list[torch.Tensor]:
        solvers = ("lapack", "gram", "jacobi", "torch")
        factors = [x for solver in solvers for x in npnet_kernels.svd(matrix, solver=solver)]
        return [*factors, reconstruct(**i, **WEIGHTS), text_affine(prompt, weight, weight[:, 0])]

    expected = everything()
    signs._reference_vector.cache_clear()
    with surroundings():
        actual = everything()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_two_stages_equal_one(gaussian: Draw) -> None:
    i = reconstruction_inputs(gaussian)
    spectral = spectral_correction(i["noise"], i["u"], i["f"], i["vh"])
    staged = combine(spectral, i["noise"], i["scale_shift"], i["residual"], **WEIGHTS)
    assert torch.equal(staged, reconstruct(**i, **WEIGHTS))


def test_correction_is_the_shifted_svd(gaussian: Draw) -> None:
    noise, f = gaussian(2, 4, 16, 16), gaussian(2, 32, seed=1)
    u, s, vh = npnet_kernels.svd(latent_to_matrix(noise))
    shifted = matrix_to_latent((u * (s + f).unsqueeze(1)) @ vh, 4)
    torch.testing.assert_close(spectral_correction(noise, u, f, vh), shifted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_grid_layout(channels: int, gaussian: Draw) -> None:
    latent = gaussian(2, channels, 3, 5)
    g = round(channels**0.5)
    rows = [torch.cat(list(latent[:, a * g : (a + 1) * g].unbind(1)), -1) for a in range(g)]
    assert torch.equal(latent_to_matrix(latent), torch.cat(rows, -2))
    assert torch.equal(matrix_to_latent(latent_to_matrix(latent), channels), latent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": torch.zeros(2, 4, 16)}, r"noise: expected shape \(B, C, H, W\)"),
        ({"noise": torch.zeros(2, 3, 16, 12)}, "square number"),
        ({"noise": torch.zeros(2, 4, 16, 12, dtype=torch.float64)}, "noise: expected torch.float32"),
        ({"u": torch.zeros(2, 32, 23)}, r"u: expected shape \(2, 32, 24\)"),
        ({"vh": torch.zeros(2, 24, 24, dtype=torch.float16)}, "vh: expected torch.float32"),
        ({"f": torch.zeros(1, 24)}, r"f: expected shape \(2, 24\)"),
        ({"f": torch.zeros(3, 24)}, r"f: expected shape \(2, 24\)"),
        ({"f": torch.zeros(2, 25)}, r"f: expected shape \(2, 24\)"),
        ({"scale_shift": torch.zeros(2, 4)}, "scale_shift"),
        ({"residual": torch.zeros(2, 4, 17, 12)}, "between 1 and 16 rows"),
        ({"residual": torch.zeros(2, 4, 7, 12, device="meta")}, "residual: expected on cpu"),
        ({"backend": "magic"}, "backend"),
    ],
)
def test_wrong_reconstruction_arguments(change: dict[str, Any], message: str, gaussian: Draw) -> None:
    with pytest.raises(KernelInputError, match=message):
        reconstruct(**{**reconstruction_inputs(gaussian), **WEIGHTS, **change})


@pytest.mark.parametrize(
    ("prompt", "weight", "bias", "message"),
    [
        ((2, 3), (8, 3), (8,), "prompt_embeds: expected shape"),
        ((2, 3, 4), (8, 11), (8,), r"weight: expected shape \(8, 12\)"),
        ((2, 3, 4), (8, 12), (7,), r"bias: expected shape \(8,\)"),
        ((2, 3, 4), (200, 12), (200,), "1 to 128 rows"),
    ],
)
def test_wrong_affine_arguments(
    prompt: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...], message: str
) -> None:
    with pytest.raises(KernelInputError, match=message):
        text_affine(torch.zeros(prompt), torch.zeros(weight), torch.zeros(bias))


@pytest.mark.parametrize(
    ("requested", "device", "has_triton", "interpreting", "expected"),
    [
        ("auto", "cuda", True, False, "triton"),
        ("auto", "cuda", False, False, "torch"),
        ("auto", "cpu", True, False, "torch"),
        ("auto", "cpu", True, True, "torch"),
        ("torch", "cuda", True, False, "torch"),
        ("triton", "cpu", True, True, "triton"),
    ],
)
def test_backend_choice(
    requested: str, device: str, has_triton: bool, interpreting: bool, expected: str
) -> None:
    choice = choose_backend(requested, device=device, has_triton=has_triton, interpreting=interpreting)
    assert choice.backend == expected
    assert choice.reason in str(choice)


def test_backend_that_cannot_run() -> None:
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        choose_backend("triton", device="cpu", has_triton=True)
    with pytest.raises(BackendUnavailableError, match="Triton 3.6 or newer is not installed"):
        choose_backend("triton", device="cuda", has_triton=False)


def run_python(code: str) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_works_without_triton() -> None:
    run_python("""
import sys
sys.modules["triton"] = None
import torch, npnet_kernels as nk
assert nk.svd(torch.randn(2, 32, 32)).s.shape == (2, 32)
assert nk.text_affine(torch.randn(1, 2, 3), torch.randn(8, 6), torch.zeros(8)).shape == (1, 8)
""")


def test_import_is_light() -> None:
    run_python("import sys, npnet_kernels; sys.exit(bool({'triton', 'torch._dynamo'} & sys.modules.keys()))")
