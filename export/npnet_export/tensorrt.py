"""Engines of TensorRT and TensorRT for RTX, from the ONNX graphs, by one path over the two modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import torch

from npnet_export.errors import ExportError
from npnet_export.folding import fold, require_polygraphy
from npnet_export.onnx_graphs import graph_bytes
from npnet_export.request import Binding, BuilderOptions, BuildRequest
from npnet_export.tensorrt_cache import read_timing_cache, timing_cache_path, write_timing_cache
from npnet_export.tensorrt_monitor import new_monitor
from npnet_runtime.backends.machine import cuda_capabilities, this_platform
from npnet_runtime.backends.tensorrt_module import SUFFIX, import_tensorrt, new_log
from npnet_runtime.networks.graphs import graphs

BUILD_LOG = "build.log"
# What TensorRT for RTX builds for if it is not told: every kind of GPU from Ampere on.
RTX_TARGETS = ("8.0", "8.6", "8.9", "12.0")
FLOAT32_LAYERS = ("NORMALIZATION", "SOFTMAX")


def check_tensorrt(engine: str, options: BuilderOptions, max_batch: int, device: torch.device) -> None:
    """Everything that can be found wrong before the work starts.

    Raises:
        BackendError: the module is not installed.
        ExportError: an option is out of range, or TensorRT has no GPU to build on.
    """
    trt = import_tensorrt(engine)
    require_polygraphy()
    level, opt = options.optimization_level, options.opt_batch
    if level is not None and not 0 <= level <= 5:
        raise ExportError(f"--optimization-level: expected 0 to 5, given {level}")
    if opt is not None and not 1 <= opt <= max_batch:
        raise ExportError(f"--opt-batch: expected 1 to --max-batch {max_batch}, given {opt}")
    if engine == "tensorrt-rtx":
        for capability in options.compute_capability:
            _rtx_target(trt, capability)
    elif device.type != "cuda":
        raise ExportError(
            f"--engine tensorrt times its kernels on the GPU it builds for, given {device}; "
            f"build where there is one, or use --engine tensorrt-rtx, which needs none to build"
        )


def targets(engine: str, options: BuilderOptions, device: torch.device) -> tuple[str, ...]:
    """Compute capabilities the engine will run on, as the manifest keeps them."""
    if engine == "tensorrt-rtx":
        return options.compute_capability or RTX_TARGETS
    if options.hardware_compatibility == "ampere-plus":
        return ("8.0+",)
    return (cuda_capabilities()[device.index or 0],)


def write_tensorrt(engine: str, request: BuildRequest) -> Binding:
    """Write one engine for each graph of the network, and `build.log`.

    Inputs and outputs are float32, the batch 1 to `max_batch`; the engine is tuned for `opt_batch`.

    Args:
        engine: `tensorrt` or `tensorrt-rtx`.
        request: what to build from.

    Raises:
        ExportError: the parser refuses a graph, a norm or softmax is not float32, or the build failed;
            the message carries the library's own log.
    """
    trt = import_tensorrt(engine)
    log = new_log(trt)
    capabilities = targets(engine, request.options, request.device)
    try:
        for graph, content in graph_bytes(request.network).items():
            name = graph + SUFFIX
            built = build_engine(trt, log, engine, name, fold(content), request)
            (request.folder / name).write_bytes(built)
    finally:
        (request.folder / BUILD_LOG).write_text("\n".join(log.lines) + "\n", encoding="utf-8")
    exact = not request.options.version_compatible
    package, condition = engine, f"{'==' if exact else '~='}{trt.__version__}"
    platform = this_platform()
    del platform["cpu_features"]
    # Engines of TensorRT for RTX are the same for Linux and Windows.
    return Binding({package: condition}, "cuda", capabilities, {} if engine == "tensorrt-rtx" else platform)


def build_engine(
    trt: ModuleType, log: Any, engine: str, name: str, content: bytes, request: BuildRequest
) -> bytes:
    """Build one graph.

    Args:
        trt: the module of the engine.
        log: of that module, see `new_log`.
        engine: `tensorrt` or `tensorrt-rtx`.
        name: of the engine, for stages and errors.
        content: the serialised ONNX graph.
        request: its precision and network are those of the graph.

    Raises:
        ExportError: as in `write_tensorrt`.
    """
    capabilities = targets(engine, request.options, request.device)
    monitor = new_monitor(trt, name, request.stage)
    work = partial(_build, trt, log, engine, name, content, request, capabilities, monitor)
    return _interruptibly(work, monitor)


def _interruptibly(work: Callable[[], bytes], monitor: Any) -> bytes:
    """Work in a thread: a signal can then stop it between two steps, where no exception could pass."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            monitor.cancelled = True
            raise


def _build(
    trt: ModuleType,
    log: Any,
    engine: str,
    name: str,
    graph: bytes,
    request: BuildRequest,
    capabilities: tuple[str, ...],
    monitor: Any,
) -> bytes:
    cache_path = timing_cache_path(engine, trt.__version__, capabilities)
    with request.on_device():
        builder = trt.Builder(log)
        network = parse(trt, log, builder, name, graph)
        config = builder.create_builder_config()
        config.progress_monitor = monitor
        _apply(trt, config, engine, request.options, capabilities)
        config.add_optimization_profile(_profile(builder, network, request))
        # TensorRT for RTX times nothing when it builds, and reads a cache only where there is a GPU.
        cache = read_timing_cache(config, cache_path) if engine == "tensorrt" else None
        built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError(
            f"{trt.__name__} {trt.__version__} could not build {name}:\n{log.tail()}\n"
            f"if it ran out of memory, try a smaller --max-batch or --workspace-mb"
        )
    if cache is not None:
        write_timing_cache(cache, cache_path)
    return bytes(built)


def _profile(builder: Any, network: Any, request: BuildRequest) -> Any:
    """Batches from 1, because the last part of a larger batch may be of any size; tuned for the own sizes."""
    profile = builder.create_optimization_profile()
    known = graphs(request.network.config).values()
    for index in range(network.num_inputs):
        tensor = network.get_input(index).name
        graph = next(graph for graph in known if tensor in graph.inputs)
        least, most = graph.bounds(tensor)
        tuned = (request.options.opt_batch or 1, *graph.inputs[tensor])
        profile.set_shape(tensor, (1, *least), tuned, (request.max_batch, *most))
    return profile


def parse(trt: ModuleType, log: Any, builder: Any, name: str, graph: bytes) -> Any:
    """A strongly typed network from an ONNX graph, its norms and softmaxes found to be float32.

    Raises:
        ExportError: the parser refuses the graph, or it needs a plugin or has a half-precision norm.
    """
    flags = trt.NetworkDefinitionCreationFlag
    typed = getattr(flags, "STRONGLY_TYPED", None)  # the only kind there is where the flag is gone
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        found = (parser.get_error(index) for index in range(parser.num_errors))
        errors = "\n".join(f"  {e.node_operator()} {e.node_name()}: {e.desc()}" for e in found)
        raise ExportError(f"{trt.__name__} cannot parse the graph of {name}:\n{errors or log.tail()}")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = Counter(layer.type.name for layer in layers)
    log.lines.append(f"[NETWORK] {name}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    for layer in layers:
        kind, dtype = layer.type.name, layer.get_input(0).dtype if layer.num_inputs else None
        if kind.startswith("PLUGIN") or (kind in FLOAT32_LAYERS and dtype != trt.float32):
            raise ExportError(
                f"{name}: expected no plugin and float32 norms, given {layer.name}: {kind} of {dtype}"
            )
    return network


def _apply(
    trt: ModuleType, config: Any, engine: str, options: BuilderOptions, capabilities: tuple[str, ...]
) -> None:
    # Products of float32 are float32 products; also what stays float32 in a half-precision engine.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types for the engine inspector
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if engine == "tensorrt-rtx":
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # Memory of the library's own, taken while it runs, could not be part of a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            if not config.set_compute_capability(_rtx_target(trt, capability), index):
                raise ExportError(f"--compute-capability {capability}: refused by {trt.__name__}")
        return
    if options.hardware_compatibility is not None:
        level = options.hardware_compatibility.replace("-", "_").upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _rtx_target(trt: ModuleType, capability: str) -> Any:
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise ExportError(
            f"--compute-capability: {trt.__name__} {trt.__version__} builds for {', '.join(known)}; "
            f"given {capability}"
        )
    return known[capability]
