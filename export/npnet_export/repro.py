"""`npnet-export repro`: a disagreement in a folder, for an engineer who has never seen this project.

The graphs of a bundle, inputs for each, what float32 PyTorch makes of them, and a script of Polygraphy's
commands that compares ONNX Runtime, TensorRT and TensorRT for RTX with it, looks for layers that need more
precision, and cuts a failing graph down. Nothing of this project is needed to run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor

from npnet_export.engines import in_precision
from npnet_export.errors import ExportError
from npnet_export.folding import fold, require_polygraphy
from npnet_export.layers.debug import graph_inputs
from npnet_export.layers.report import THRESHOLDS
from npnet_export.onnx_graphs import graph_bytes
from npnet_runtime.backends.onnxruntime_backend import SUFFIX
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.files import atomic_directory
from npnet_runtime.networks.graphs import graphs
from npnet_runtime.networks.registry import Network

SCRIPT = "compare.sh"
FLOAT32 = "float32"  # of `NAME.float32.onnx`, and the name of the expected results
_TEMPLATES = Path(__file__).parent / "repro_templates"


def write_repro(
    bundle: EngineBundle,
    network: Network,
    output: Path,
    samples: int = 2,
    first_seed: int = 0,
    *,
    force: bool = False,
    stage: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the folder, whole or not at all.

    Args:
        bundle: whose graphs: those of an `onnxruntime` bundle are its own, for any other engine they are
            exported from the weights in the engine's precision, as its exporter does.
        network: float32, on the CPU, with the weights of the bundle.
        output: the folder.
        samples: noises, with a prompt each.
        first_seed: of the first noise.
        force: replace a folder that is there.
        stage: told what happens next.

    Raises:
        BackendError: Polygraphy is missing.
        ExportError: the folder is there, or cannot be written.
    """
    require_polygraphy()
    if output.exists() and not force:
        raise ExportError(f"{output} exists; give another --output, or --force to replace it")
    precision = bundle.manifest.precision
    own = _own_graphs(bundle, network, stage)
    float32 = graph_bytes(network) if precision != "fp32" else {}
    try:
        with atomic_directory(output, replace=force) as folder:
            for name, content in own.items():
                stage(f"folding {name}{SUFFIX}")
                (folder / f"{name}{SUFFIX}").write_bytes(fold(content))
                if name in float32:
                    (folder / f"{name}.{FLOAT32}{SUFFIX}").write_bytes(fold(float32[name]))
            stage(f"inputs and expected outputs of {samples} noises")
            for name, (feeds, results) in _runs(bundle, network, samples, first_seed).items():
                _save(feeds, folder / f"{name}.inputs.json", "inputs")
                _save(results, folder / f"{name}.expected.json", "expected outputs")
            for path, text in _texts(bundle, list(own)).items():
                (folder / path).write_text(text, encoding="utf-8")
            (folder / SCRIPT).chmod(0o755)
    except OSError as error:
        raise ExportError(f"{output}: cannot be written ({error})") from error
    return output


def _own_graphs(bundle: EngineBundle, network: Network, stage: Callable[[str], None]) -> dict[str, bytes]:
    if bundle.manifest.engine == "onnxruntime":
        return {name: bundle.read(name + SUFFIX) for name in graphs(network.config)}
    stage(f"exporting graphs in {bundle.manifest.precision}")
    return graph_bytes(in_precision(network, bundle.manifest.precision))


def _runs(
    bundle: EngineBundle, network: Network, samples: int, first_seed: int
) -> dict[str, tuple[list[dict[str, Any]], Any]]:
    """For each graph: the inputs, batch 1, and Polygraphy's record of what float32 PyTorch gives."""
    from polygraphy.comparator import IterationResult, RunResults

    parts = network.parts()
    found: dict[str, tuple[list[dict[str, Any]], Any]] = {}
    for name, graph in graphs(network.config).items():
        feeds: list[dict[str, Any]] = []
        iterations = []
        for seed in range(first_seed, first_seed + samples):
            inputs = graph_inputs(bundle, network, seed)[name]
            with torch.inference_mode():
                outputs = parts[name](*inputs)
            given = (outputs,) if isinstance(outputs, Tensor) else outputs
            feeds.append(dict(zip(graph.inputs, (tensor.numpy() for tensor in inputs), strict=True)))
            values = dict(zip(graph.outputs, (tensor.numpy() for tensor in given), strict=True))
            iterations.append(IterationResult(outputs=values, runner_name=FLOAT32))
        results = RunResults()
        results.append((FLOAT32, iterations))
        found[name] = feeds, results
    return found


def _save(content: Any, path: Path, description: str) -> None:
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        save_json(content, str(path), description=description)


def _texts(bundle: EngineBundle, names: list[str]) -> dict[str, str]:
    manifest = bundle.manifest
    threshold = THRESHOLDS[manifest.precision]
    requires = ", ".join(f"{name} {condition}" for name, condition in manifest.requires.items())
    values = {
        "graphs": " ".join(names),
        "precision": manifest.precision,
        "debug": {"fp32": "", "fp16": "--fp16", "bf16": "--bf16"}[manifest.precision],
        "decibels": f"{-20 * math.log10(threshold):.1f}",
        "relative": f"{threshold:g}",
        "model": manifest.model,
        "engine": manifest.engine,
        "signs": manifest.signs or "not needed",
        "requires": requires or "nothing in particular",
    }
    return {
        path: Template((_TEMPLATES / path).read_text(encoding="utf-8")).substitute(values)
        for path in (SCRIPT, "README.md")
    }
