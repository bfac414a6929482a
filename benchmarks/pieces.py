"""The pieces of `run_all.py`: what each answers, its command, and how long it may take."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]  # commands are run there, and name files from there
LONGEST_S = 180
DIFFUSERS = ("diffusers", "transformers", "accelerate")
NEEDS = {  # of the benchmarks: by script
    "latency.py": ("rich", "matplotlib", "onnx", "onnxscript"),
    "kernels.py": ("triton", "matplotlib"),
    "pipeline_overhead.py": ("rich", *DIFFUSERS),
    "training.py": ("rich", *DIFFUSERS, "pydantic"),
}
# Options of pyproject.toml that a machine without pytest-xdist does not know are left out.
PYTEST = ("-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers", "-q", "-rs", "--tb=short")


@dataclass(frozen=True)
class Piece:
    """A process of its own.

    Attributes:
        name: for `--only` and `--from`.
        question: what it answers.
        arguments: of the Python that runs this.
        needs: modules without which it cannot run.
        limit_s: seconds after which it is stopped.
    """

    name: str
    question: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    limit_s: int = LONGEST_S

    def command(self) -> list[str]:
        """What to start."""
        return [sys.executable, *self.arguments]

    def missing(self) -> list[str]:
        """Modules of `needs` that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]

    def __str__(self) -> str:
        return shlex.join(["python", *self.arguments])


def plan(cuda: bool, out: Path) -> tuple[Piece, ...]:
    """The pieces for a machine, in order.

    Args:
        cuda: it has a CUDA device.
        out: folder for the results.
    """
    return _on_a_gpu(out) if cuda else _on_a_cpu(out)


def _on_a_gpu(out: Path) -> tuple[Piece, ...]:
    return (
        _tests("test-kernels", "Do the compiled kernels and solvers compute what their references do?",
               "tests/kernels/test_cuda.py"),
        _triton("jacobi"),  # a kernel whose programs wait for one another: it has to end
        _triton("prompt_half"),
        _tests("test-torch", "Is golden noise of the torch engine right, in three precisions?",
               "tests/runtime/test_gpu.py", "-k", "not aoti- and not onnxruntime- and not tensorrt-"),
        _latency(out, "torch", "fp16", "How fast is golden noise, in half precision?", 1, 4),
        _tests("test-graphs", "Are graphs, streams and threads in order?",
               "tests/runtime/hot_path", "-k", "not aoti and not tensorrt"),
        _benchmark("kernels-svd", "How fast is the SVD, beside its rivals?", "kernels.py",
                   "--operator", "svd", "--seconds", "20", "--out", _named(out / "kernels-svd")),
        _benchmark("kernels-prompt-half", "How fast is the prompt half, beside PyTorch's layers?",
                   "kernels.py", "--operator", "prompt_half", "--seconds", "20",
                   "--out", _named(out / "kernels-prompt-half")),
        _latency(out, "aoti", "fp16", "How much do kernels compiled ahead of time gain?", 1, 4),
        _tests("test-aoti", "Is golden noise of the AOTInductor engine right?",
               "tests/runtime/test_gpu.py", "-k", "aoti-"),
        _latency(out, "torch", "fp32", "How fast is float32?", 1, 4),
        _latency(out, "torch", "fp16", "How does the time grow with the batch?", 16, 64, tag="-large"),
        *(
            _benchmark(f"kernels-{operator}", f"How far from the device's ceiling is {operator}?",
                       "kernels.py", "--operator", operator, "--seconds", "10",
                       "--out", _named(out / f"kernels-{operator}"))
            for operator in ("combine", "reconstruct", "text_affine", "window_attention", "fused_linear")
        ),
        _benchmark("pipeline", "What does golden noise add to a call of SDXL?", "pipeline_overhead.py",
                   "--rounds", "5", "--steps", "4", "30", "--size", "full", "--output", _named(out)),
        _latency(out, "onnxruntime", "fp16", "How fast is ONNX Runtime?", 1, 4),
        _tests("test-onnxruntime", "Is golden noise of ONNX Runtime right?",
               "tests/runtime/test_gpu.py", "-k", "onnxruntime-"),
        _latency(out, "tensorrt", "fp16", "How fast is TensorRT?", 1, 4),
        _latency(out, "tensorrt-rtx", "fp16", "How fast is TensorRT for RTX?", 1, 4),
        _tests("test-tensorrt", "Is golden noise of TensorRT right?",
               "tests/runtime/test_gpu.py", "-k", "tensorrt-"),
        *(
            _triton(path.stem.removeprefix("test_"))
            for path in sorted((ROOT / "tests/kernels/on_triton").glob("test_*.py"))
            if path.stem not in ("test_jacobi", "test_prompt_half")
        ),
        _tests("test-other-graphs", "Do graphs of the other engines work?",
               "tests/runtime/hot_path", "-k", "aoti or tensorrt"),
        _tests("test-attach", "Do pipelines start from golden noise on a GPU?", "tests/integrations",
               needs=DIFFUSERS),
        _tests("test-export", "Do layers agree, one by one?", "tests/export", "-k", "not aoti",
               needs=("onnx", "rich")),
        _tests("test-export-aoti", "Do they in AOTInductor?", "tests/export", "-k", "aoti",
               needs=("onnx", "rich")),
        _benchmark("training", "How fast is a training step?", "training.py", "--batch", "32", "--output",
                   _named(out)),
        _tests("test-training", "Does training run on the device?", "tests/training",
               needs=(*DIFFUSERS, "pyarrow", "pydantic", "scipy")),
    )  # fmt: skip


def _on_a_cpu(out: Path) -> tuple[Piece, ...]:
    return (
        _latency(out, "onnxruntime", "fp32", "How fast is golden noise on a CPU?", 1, 4),
        _latency(out, "torch", "fp32", "How fast is it without any engine?", 1, 4),
        _latency(out, "aoti", "fp32", "How fast is code compiled ahead of time?", 1, 4),
        _benchmark("kernels", "Are the kernels right, interpreted?", "kernels.py", "--interpret", "--out",
                   _named(out / "kernels")),
        _benchmark("pipeline", "What does golden noise add to a small pipeline?", "pipeline_overhead.py",
                   "--rounds", "5", "--size", "small", "--output", _named(out)),
        _benchmark("training", "How fast is a training step?", "training.py", "--batch", "4", "--output",
                   _named(out)),
    )  # fmt: skip


def _tests(name: str, question: str, *arguments: str, needs: tuple[str, ...] = ()) -> Piece:
    return Piece(name, question, (*PYTEST, "-m", "gpu", *arguments), ("pytest", *needs))


def _triton(name: str) -> Piece:
    question = "Does a kernel pass on the device what it passes in the interpreter?"
    return _tests(f"test-triton-{name}", question, f"tests/kernels/on_triton/test_{name}.py")


def _latency(out: Path, engine: str, precision: str, question: str, *batches: int, tag: str = "") -> Piece:
    name = f"{engine}-{precision}{tag}"
    arguments = ("--engine", f"{engine}:{precision}", "--batch", *map(str, batches), "--rounds", "50",
                 "--seconds", "25", "--tag", name, "--output", _named(out))  # fmt: skip
    module = engine.replace("-", "_")
    needs = (*NEEDS["latency.py"], *([] if engine in ("torch", "aoti") else [module]))
    return Piece(f"latency-{name}", question, (_script("latency.py"), *arguments), needs)


def _benchmark(name: str, question: str, script: str, *arguments: str) -> Piece:
    return Piece(name, question, (_script(script), *arguments), NEEDS[script])


def _script(name: str) -> str:
    return f"benchmarks/{name}"


def _named(path: Path) -> str:
    """A path from the root where it lies below it, so that records name no machine's folders."""
    absolute = path.resolve()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute)
