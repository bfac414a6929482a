"""The command `npnet-export`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from npnet_export.build import SIGN_RULES, ExportSettings, check, export
from npnet_export.choice import AUTO, choose_engine_here
from npnet_export.cli_options import export_parser, inspect_parser, repro_parser, verify_parser
from npnet_export.engines import ENGINES
from npnet_export.errors import ExportError
from npnet_export.fixture import Fixture, FixtureResult, verify_fixture
from npnet_export.for_pipeline import Sizes, config_for, load_for_probe
from npnet_export.inspection import inspect
from npnet_export.layers import debug_layers
from npnet_export.needs import check_needs
from npnet_export.publishing import check_push, push
from npnet_export.records import evaluation_table
from npnet_export.repro import SCRIPT, write_repro
from npnet_export.request import BuilderOptions
from npnet_export.stages import Stages
from npnet_export.verification import Verification, record, reference_network, verify
from npnet_export.weights import WeightsRequest, all_models, get_model
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import FILENAME
from npnet_runtime.devices import resolve_device
from npnet_runtime.errors import NPNetError
from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_runtime.interruption import STOPPING, handling, interrupted_status
from npnet_runtime.weights.checkpoint import own_config
from npnet_runtime.weights.hub import hide_progress
from npnet_runtime.weights.models import ModelSpec
from npnet_runtime.weights.packaged import PackagedModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _interruptible() as interrupted:
        try:
            commands = {"inspect": _inspect, "verify": _verify, "repro": _repro}
            command = commands.get(arguments[0]) if arguments else None
            return command(arguments[1:]) if command else _export(arguments)
        except (Exception, KeyboardInterrupt) as error:
            # Libraries may turn the interruption into an error of theirs.
            if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
                print("npnet-export: interrupted; nothing was written", file=sys.stderr)
                return interrupted_status()
            if isinstance(error, BrokenPipeError):  # `npnet-export --list | head -1`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            if isinstance(error, (NPNetError, OSError)):
                print(f"npnet-export: {error}", file=sys.stderr)
                return 1
            raise


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C and `STOPPING` unwind, so that the temporary folder is removed, and remember that."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    with handling(interrupt, signal.SIGINT, *STOPPING):
        yield interrupted


def _export(arguments: list[str]) -> int:
    parser = export_parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list()
        return 0
    settings = _settings(parser, options)
    if options.push is not None:
        check_push(options.push)
    elif options.evaluation is not None:
        parser.error("--evaluation belongs to --push OWNER/NAME")
    if options.evaluation is not None:
        evaluation_table(options.evaluation, "")  # whatever is wrong with it, before the engine is built
    if options.dry_run:
        print(_plan(settings))
        check(settings)
        return 0
    if options.quiet:
        hide_progress()
    stages = Stages(quiet=options.quiet)
    if settings.chosen:
        stages(settings.chosen)
    bundle = export(settings, stages)
    for row in bundle.manifest.parity:
        allowed = "" if row.tolerance is None else f" (tolerance {row.tolerance:g})"
        stages(f"  {row.quantity}: {row.statistic} {row.value:.2g}{allowed}")
    if options.push is not None:
        stages(f"uploading to {options.push}")
        found = options.evaluation and evaluation_table(options.evaluation, bundle.digest)
        stages(f"pushed: {options.push}@{push(bundle, options.push, options.licence, found)}")
    return 0


def _inspect(arguments: list[str]) -> int:
    options = inspect_parser().parse_args(arguments)
    # markup off: names in square brackets are names
    return 0 if inspect(EngineBundle.open(options.bundle), Console(markup=False)) else 1


def _verify(arguments: list[str]) -> int:
    options = verify_parser().parse_args(arguments)
    bundle = EngineBundle.open(options.bundle)
    device = resolve_device(options.device)
    if options.fixture and bundle.manifest.spectral is not None:
        raise ExportError(
            f"--fixture: {options.bundle} has a polynomial in place of the factors that a fixture gives; "
            f"export the weights with --spectral exact to compare them"
        )
    fixture = Fixture.read(options.fixture, bundle.manifest.config) if options.fixture else None
    stages = Stages(quiet=options.quiet)
    stages("loading the weights the bundle was made from")
    network = reference_network(bundle, options.weights, options.random_weights, offline=options.offline)
    stages(f"comparing {options.samples} noises with float32 PyTorch on {device}")
    results: list[Verification | FixtureResult] = [
        fresh := verify(bundle, network, device, options.samples, options.seed)
    ]
    print(fresh)
    if fixture is not None:
        stages(f"comparing with the fixture {fixture.name}")
        results.append(verify_fixture(bundle, network, device, fixture))
        print(results[-1])
    if options.debug_layers:
        for report in debug_layers(bundle, network, device, fresh.worst.seed, stages):
            print(report)
    for result in results:
        result.require()
    if options.record:
        record(bundle, tuple(row for result in results for row in result.rows))
        stages(f"recorded in {bundle.path / FILENAME}")
    return 0


def _repro(arguments: list[str]) -> int:
    options = repro_parser().parse_args(arguments)
    bundle = EngineBundle.open(options.bundle)
    stages = Stages(quiet=options.quiet)
    output = (options.output or Path(f"{bundle.path.name}-repro")).expanduser()
    stages("loading the weights the bundle was made from")
    network = reference_network(bundle, options.weights, options.random_weights, offline=options.offline)
    write_repro(bundle, network, output, options.samples, options.seed, force=options.force, stage=stages)
    stages(f"wrote {output}; next: {output / SCRIPT} onnxruntime")
    return 0


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> ExportSettings:
    _check_pipeline_options(parser, options)
    if options.model is None and options.weights is None and options.pipeline is None:
        parser.error("--model is required (see --list), or --weights with a checkpoint that says its shapes")
    model = get_model(options.model) if options.model else None
    name = model.name if model else Path(options.weights or options.pipeline).stem
    engine, precision, why = options.engine, options.precision or "fp32", None
    if engine == AUTO:
        choice = choose_engine_here(resolve_device(options.device), options.precision)
        engine, precision, why = choice.engine, choice.precision, str(choice)
    weights = WeightsRequest(model, options.weights, options.random_weights, options.offline)
    if options.pipeline is not None:
        weights = _for_pipeline(options)
    return ExportSettings(
        weights=weights,
        output=(options.output or Path("engines") / name).expanduser(),
        name=name,
        engine=engine,
        precision=precision,
        signs=options.signs,
        max_batch=options.max_batch,
        device=options.device,
        force=options.force,
        options=BuilderOptions(
            opt_batch=options.opt_batch,
            optimization_level=options.optimization_level,
            workspace_mb=options.workspace_mb,
            compute_capability=tuple(options.compute_capability),
            hardware_compatibility=options.hardware_compatibility,
            openvino_device=options.openvino_device,
            version_compatible=options.version_compatible,
        ),
        verify=not options.no_verify,
        spectral=options.spectral,
        spectral_tolerance=options.spectral_tolerance,
        chosen=why,
        allow_collapse=options.allow_collapse,
    )


def _check_pipeline_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.pipeline is None:
        own = ("size", "least_side", "most_side", "most_tokens")
        given = [f"--{name.replace('_', '-')}" for name in own if getattr(options, name) is not None]
        if given:
            parser.error(f"{given[0]} belongs to --for PIPELINE")
    elif options.model is not None or options.weights is not None:
        parser.error("--for looks at a pipeline and makes shapes; leave out --model and --weights")
    elif options.random_weights is None:
        parser.error(
            "--for makes shapes, and there are no weights of them: add --random-weights 0 to try the engine, "
            "or train some with npnet-train and give them as --weights"
        )


def _for_pipeline(options: argparse.Namespace) -> WeightsRequest:
    sizes = Sizes(options.size, options.least_side, options.most_side, options.most_tokens)
    engine = "torch" if options.engine == AUTO else options.engine
    check_needs(engine, verify=not options.no_verify, downloads=False)
    Stages(quiet=options.quiet)(f"looking at {options.pipeline}")
    pipe = load_for_probe(options.pipeline, offline=options.offline)
    config, reads = config_for(pipe, sizes)
    return WeightsRequest(
        None,
        random_seed=options.random_weights,
        offline=options.offline,
        shapes=config,
        reads=reads,
        latent_space=latent_space_of(pipe),
        made_for={"for": options.pipeline} | ({"size": "x".join(map(str, sizes.size))} if sizes.size else {}),
    )


def _plan(settings: ExportSettings) -> str:
    chosen = f"{settings.chosen}\n" if settings.chosen else ""
    return chosen + (
        f"would load {settings.weights.description}\n"
        f"would build a {settings.engine} engine in {settings.precision} for batches up to "
        f"{settings.max_batch}, singular vector signs {SIGN_RULES[settings.signs]}, "
        f"spectral half {settings.spectral}\n"
        f"would {'' if settings.verify else 'NOT '}compare it with float32 PyTorch\n"
        f"would write {_size(settings)} to {settings.output}"
    )


def _size(settings: ExportSettings) -> str:
    size = settings.estimated_bytes()
    return f"about {size / 1e6:.0f} MB" if size else "a bundle of a size that is not known before the weights"


def _shapes(spec: ModelSpec | PackagedModel) -> str:
    try:
        config = spec.config if isinstance(spec, ModelSpec) else own_config(spec.path())
    except NPNetError as error:  # one broken checkpoint must not hide the other models
        return f"not known: {error}"
    if config is None:
        return "not known: its checkpoint does not say"
    noise, prompt = ("x".join(map(str, shape)) for shape in (config.latent_shape, config.text_shape))
    return f"{noise}, prompt {prompt}"


def _list() -> None:
    print("models:")
    for spec in all_models().values():
        print(
            f"  {spec.name}\n"
            f"      weights  {spec.description}\n"
            f"      for      {spec.base_model} ({spec.pipeline_class}), guidance {spec.guidance_scale}"
        )
        print(f"      noise    {_shapes(spec)}")
    print("engines, each in fp32, fp16 or bf16:")
    for name, kind in ENGINES.items():
        print(f"  {name:<12} {kind.description}")
