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
from npnet_export.engines import ENGINES
from npnet_export.errors import ExportError
from npnet_export.inspection import inspect
from npnet_export.stages import Stages
from npnet_export.weights import WeightsRequest
from npnet_runtime import __version__
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import NPNetError
from npnet_runtime.models import MODELS, get_model

EXAMPLES = """\
examples:
  npnet-export --model sdxl                          download the released weights, write engines/sdxl
  npnet-export --model sdxl --weights sdxl.pth       from a checkpoint: .pth or .safetensors
  npnet-export --model sdxl --random-weights 0       without a checkpoint, to try the pipeline
  npnet-export --model hunyuan-dit --engine torch --precision fp16
  npnet-export inspect engines/sdxl                  print a bundle and check its files

exit status: 0 done, 1 failed (nothing was written), 2 wrong usage, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _interruptible() as interrupted:
        try:
            return _inspect(arguments[1:]) if arguments[:1] == ["inspect"] else _export(arguments)
        except (Exception, KeyboardInterrupt) as error:
            # Libraries may turn the interruption into an error of theirs.
            if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
                print("npnet-export: interrupted; nothing was written", file=sys.stderr)
                return 130
            if isinstance(error, BrokenPipeError):  # `npnet-export --list | head -1`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            if isinstance(error, (NPNetError, OSError)):
                print(f"npnet-export: {error}", file=sys.stderr)
                return 1
            raise


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM unwind, so that the temporary folder is removed, and remember that they came."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield interrupted
        return
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _export(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list()
        return 0
    settings = _settings(parser, options)
    if options.dry_run:
        print(_plan(settings))
        check(settings)
        return 0
    stages = Stages(quiet=options.quiet)
    bundle = export(settings, stages)
    for row in bundle.manifest.parity:
        allowed = "" if row.tolerance is None else f" (tolerance {row.tolerance:g})"
        stages(f"  {row.quantity}: {row.statistic} {row.value:.2g}{allowed}")
    return 0


def _inspect(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="npnet-export inspect", description="Print an engine bundle and check its files."
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    options = parser.parse_args(arguments)
    # markup off: names in square brackets are names
    return 0 if inspect(EngineBundle.open(options.bundle), Console(markup=False)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npnet-export",
        usage="npnet-export --model NAME [options]\n       npnet-export inspect DIR",
        description="Turn NPNet weights into an engine bundle that npnet_runtime.GoldenNoise runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        metavar="PATH_OR_HUB_ID",
        help="a checkpoint, or owner/repository[:file]; default: the model's",
    )
    source.add_argument(
        "--random-weights", metavar="SEED", type=_seed, help="make weights from a seed instead"
    )
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime", help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s"
    )
    parser.add_argument(
        "--signs", choices=SIGN_RULES, default="canonical", help="of singular vectors; default: %(default)s"
    )
    parser.add_argument("--max-batch", metavar="N", type=_positive, default=8, help="default: %(default)s")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: engines/<model>")
    parser.add_argument("--device", help="where the engine is checked; default: CUDA if there is any")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--offline", action="store_true", help="take weights from the download cache only")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--list", action="store_true", help="list models and engines")
    parser.add_argument("--version", action="version", version=f"npnet-export {__version__}")
    return parser


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> ExportSettings:
    if options.model is None and options.weights is None:
        parser.error("--model is required (see --list), or --weights with a checkpoint that says its shapes")
    model = get_model(options.model) if options.model else None
    name = model.name if model else Path(options.weights).stem
    if options.precision not in ENGINES[options.engine].precisions:
        raise ExportError(f"--engine {options.engine} cannot be built in {options.precision}")
    return ExportSettings(
        weights=WeightsRequest(model, options.weights, options.random_weights, options.offline),
        output=(options.output or Path("engines") / name).expanduser(),
        name=name,
        engine=options.engine,
        precision=options.precision,
        signs=options.signs,
        max_batch=options.max_batch,
        device=options.device,
        force=options.force,
    )


def _plan(settings: ExportSettings) -> str:
    return (
        f"would load {settings.weights.description}\n"
        f"would build a {settings.engine} engine in {settings.precision} for batches up to "
        f"{settings.max_batch}, singular vector signs {SIGN_RULES[settings.signs]}\n"
        f"would compare it with float32 PyTorch\n"
        f"would write {_size(settings)} to {settings.output}"
    )


def _size(settings: ExportSettings) -> str:
    size = settings.estimated_bytes()
    return f"about {size / 1e6:.0f} MB" if size else "a bundle of a size that is not known before the weights"


def _list() -> None:
    print("models:")
    for spec in MODELS.values():
        noise, prompt = (
            "x".join(map(str, shape)) for shape in (spec.config.latent_shape, spec.config.text_shape)
        )
        print(
            f"  {spec.name}\n"
            f"      weights  {spec.repository}:{spec.filename}\n"
            f"      for      {spec.base_model} ({spec.pipeline_class}), guidance {spec.guidance_scale}\n"
            f"      noise    {noise}, prompt {prompt}"
        )
    print("engines:")
    for name, kind in ENGINES.items():
        print(f"  {name:<12} {kind.description} ({', '.join(kind.precisions)})")


def _seed(text: str) -> int:
    return _integer(text, 0)


def _positive(text: str) -> int:
    return _integer(text, 1)


def _integer(text: str, smallest: int) -> int:
    if not text.isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"expected a whole number of {smallest} or more, given {text}")
    return int(text)
