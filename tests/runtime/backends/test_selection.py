"""The choice of a back end is a pure function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npnet_runtime import EngineBundle
from npnet_runtime.backends import Machine, select
from npnet_runtime.backends.machine import PLATFORM, this_platform
from npnet_runtime.backends.selection import runs_on, satisfies
from npnet_runtime.errors import BackendError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PLAIN = Machine({"torch": "2.13.0+cpu", "onnxruntime": "1.32.0"}, (), ("CPUExecutionProvider",))
HOPPER = Machine(
    {"torch": "2.11.0", "onnxruntime": "1.31.0"}, ("9.0",), ("CUDAExecutionProvider", "CPUExecutionProvider")
)


def verdicts(
    bundle: EngineBundle, machine: Machine, device: torch.device, **changes: object
) -> dict[str, str]:
    backend = str(changes.pop("backend", "auto"))
    manifest = replace(bundle.manifest, **changes)
    return {c.backend: "" if c.accepted else c.reason for c in select(manifest, machine, device, backend)}


@pytest.mark.parametrize(("machine", "device"), [(PLAIN, CPU), (HOPPER, CPU), (HOPPER, CUDA)])
@pytest.mark.parametrize("own", ["torch", "onnxruntime"])
def test_accepts_the_engine_of_the_bundle(
    own: str, small_bundles: dict[str, EngineBundle], machine: Machine, device: torch.device
) -> None:
    judged = verdicts(small_bundles[own], machine, device)
    assert judged.pop(own) == ""
    assert all(f"built for {own}" in reason for reason in judged.values())


def test_never_the_cpu_instead_of_cuda(small_bundles: dict[str, EngineBundle]) -> None:
    machine = replace(HOPPER, onnxruntime_providers=("CPUExecutionProvider",))
    reason = verdicts(small_bundles["onnxruntime"], machine, CUDA)["onnxruntime"]
    assert "no CUDA provider" in reason
    assert "device='cpu'" in reason


def test_an_onnxruntime_that_leaves_nodes_on_the_cpu(small_bundles: dict[str, EngineBundle]) -> None:
    for version, accepted in (("1.23.2", False), ("1.24.4", True), ("1.31.1", True)):
        providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        machine = replace(HOPPER, versions={"onnxruntime": version}, onnxruntime_providers=providers)
        reason = verdicts(small_bundles["onnxruntime"], machine, CUDA)["onnxruntime"]
        if accepted:
            assert not reason
        else:
            assert "pip install 'onnxruntime-gpu>=1.24.4'" in reason
        # on the CPU it is as good as any
        assert not verdicts(small_bundles["onnxruntime"], machine, CPU)["onnxruntime"]


def test_reasons(small_bundles: dict[str, EngineBundle]) -> None:
    ours, torch_bundle = small_bundles["onnxruntime"], small_bundles["torch"]
    bare = replace(PLAIN, versions={"torch": "2.13.0"})
    assert "not installed: pip install 'npnet-runtime[cpu]'" in verdicts(ours, bare, CPU)["onnxruntime"]
    old = replace(PLAIN, versions={"onnxruntime": "1.9.0"})
    assert "needs onnxruntime >=1.22, 1.9.0 is installed" in verdicts(ours, old, CPU)["onnxruntime"]
    assert "does not exist here" in verdicts(torch_bundle, PLAIN, CUDA)["torch"]
    assert "does not exist here" in verdicts(torch_bundle, HOPPER, torch.device("cuda", 1))["torch"]
    bound = verdicts(torch_bundle, HOPPER, CUDA, compute_capabilities=("8.6",))["torch"]
    assert "bound to compute capability 8.6, cuda:0 has 9.0" in bound
    assert verdicts(torch_bundle, HOPPER, CUDA, compute_capabilities=("9.0",))["torch"] == ""
    assert "type cpu or cuda" in verdicts(torch_bundle, HOPPER, torch.device("mps"))["torch"]
    asked = verdicts(torch_bundle, PLAIN, CPU, backend="onnxruntime")
    assert "was asked for" in asked["torch"]
    assert "built for torch" in asked["onnxruntime"]


def test_unknown_backend(small_bundle: EngineBundle) -> None:
    with pytest.raises(BackendError, match="expected auto, torch or onnxruntime or .*; given 'tensorrt9'"):
        select(small_bundle.manifest, PLAIN, CPU, "tensorrt9")


@pytest.mark.parametrize(
    ("found", "condition", "expected"),
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("2.11.0rc1", ">=2.11", True),
        ("1.32.0", "==1.32.0", True),
        ("1.32.1", "==1.32.0", False),
        ("1.32.1", "==1.32", True),
        ("2.11.0.dev20260101", ">=2.11", True),
        ("11.5.0", "~=11.4.0", True),
        ("11.3.9", "~=11.4.0", False),
        ("12.0.0", "~=11.4.0", False),
    ],
)
def test_version_conditions(found: str, condition: str, expected: bool) -> None:
    assert satisfies(found, condition) is expected


class TestBoundToItsMachine:
    """An AOTInductor package is machine code: it runs on the kind of machine that made it."""

    @pytest.fixture
    def own(self, small_bundles: dict[str, EngineBundle]) -> Machine:
        return Machine.detect("aoti", small_bundles["aoti"].manifest.requires)

    @pytest.fixture
    def bundle(self, small_bundles: dict[str, EngineBundle]) -> EngineBundle:
        return small_bundles["aoti"]

    def test_this_machine(self, bundle: EngineBundle, own: Machine) -> None:
        assert verdicts(bundle, own, CPU)["aoti"] == ""

    def test_more_instructions_do_no_harm(self, bundle: EngineBundle, own: Machine) -> None:
        more = {**own.platform, "cpu_features": own.platform["cpu_features"] + " avx1024"}
        assert verdicts(bundle, replace(own, platform=more), CPU)["aoti"] == ""

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("system", "Plan9", "bound to Linux, this is Plan9; rebuild it on this machine"),
            ("machine", "riscv64", "this is riscv64"),
            ("cpu_features", "sse2", "which this one lacks; rebuild it on this machine"),
        ],
    )
    def test_another_machine(
        self, bundle: EngineBundle, own: Machine, key: str, value: str, said: str
    ) -> None:
        assert said in verdicts(bundle, replace(own, platform={**own.platform, key: value}), CPU)["aoti"]

    def test_another_kind_of_device(self, bundle: EngineBundle, own: Machine) -> None:
        on_gpu = replace(own, compute_capability=("9.0",))
        assert "bound to cpu, given device='cuda:0'" in verdicts(bundle, on_gpu, CUDA)["aoti"]
        manifest = replace(bundle.manifest, device="cuda", compute_capabilities=("8.6",))
        compiled = replace(bundle, manifest=manifest)
        assert "bound to cuda, given device='cpu'" in verdicts(compiled, own, CPU)["aoti"]
        assert "8.6, cuda:0 has 9.0" in verdicts(compiled, on_gpu, CUDA)["aoti"]

    def test_another_torch(self, bundle: EngineBundle, own: Machine) -> None:
        reason = verdicts(bundle, replace(own, versions={"torch": "2.10.1"}), CPU)["aoti"]
        assert "2.10.1 is installed; rebuild it, or pip install 'torch==" in reason


def test_platform_has_every_key() -> None:
    platform = this_platform()
    assert tuple(platform) == PLATFORM
    assert all(platform.values())


@pytest.mark.parametrize(
    ("capability", "targets", "expected"),
    [
        ("8.9", ("8.6", "8.9"), True),
        ("9.0", ("8.6", "8.9"), False),
        ("9.0", ("8.0+",), True),
        ("12.0", ("8.0+",), True),
        ("7.5", ("8.0+",), False),
        ("7.5", ("7.5", "8.0+"), True),
    ],
)
def test_compute_capabilities(capability: str, targets: tuple[str, ...], expected: bool) -> None:
    assert runs_on(capability, targets) is expected
