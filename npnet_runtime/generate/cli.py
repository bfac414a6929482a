"""The command `npnet-generate`."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import torch

from npnet_runtime import GoldenLora, GoldenNoise, __version__
from npnet_runtime.devices import resolve_device
from npnet_runtime.errors import GenerateError, NPNetError
from npnet_runtime.files import atomic_file
from npnet_runtime.generate.settings import FILENAME, GenerateSettings, parse_seeds
from npnet_runtime.inputs.prompts import TokenPolicy
from npnet_runtime.inputs.resolution import ResolutionPolicy
from npnet_runtime.inputs.strength import check_strength
from npnet_runtime.integrations.diffusers.loading import load, quiet_loading
from npnet_runtime.integrations.diffusers.lora_file import find_lora
from npnet_runtime.interruption import interrupted_status

if TYPE_CHECKING:
    from npnet_runtime.generate.images import Made

EXAMPLES = """\
examples:
  npnet-generate --model stabilityai/stable-diffusion-xl-base-1.0 --engine engines/sdxl \\
      --prompt "a banana on the left of an apple" --seeds 0-7 --compare
  npnet-generate --model ./my-sdxl --engine engines/sdxl --prompt "a red cat" --prompt "two dogs" \\
      --steps 30 --guidance 5.5 --output gallery

Run it again with the same --output to go on where it was interrupted, or to add prompts and seeds.

exit status: 0 done, 1 failed (images made so far are kept), 2 wrong usage, 130 interrupted
"""
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Value = TypeVar("Value", int, float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        _generate(options)
    except (NPNetError, OSError) as error:
        print(f"npnet-generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "npnet-generate: interrupted; images made so far are kept, run it again to go on", file=sys.stderr
        )
        return interrupted_status()
    return 0


def _generate(options: argparse.Namespace) -> None:
    try:
        import diffusers  # noqa: F401
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from npnet_runtime.generate.gallery import write_gallery
        from npnet_runtime.generate.grid import write_grid
        from npnet_runtime.generate.images import make_images
    except ImportError as error:
        raise GenerateError(
            f"npnet-generate needs diffusers, Pillow and rich ({error}): "
            "pip install 'npnet-runtime[pipelines]'"
        ) from error
    if options.quiet:
        quiet_loading()
    golden = _golden(options)
    settings = _settings(options, golden)
    output: Path = options.output
    settings.check_output(output)
    record = asdict(settings) | {"digest": settings.digest(), "npnet_runtime": __version__}

    def begin() -> None:
        with atomic_file(output / FILENAME) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    made: list[Made] = []
    console = Console(stderr=True, quiet=options.quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("images", total=len(settings.images))
        load = functools.partial(load_pipeline, settings, options.offline)
        for image in make_images(settings, output, load, golden, begin):
            made.append(image)
            progress.advance(task)
    write_grid(output / "grid.png", made)
    write_gallery(output / "gallery.html", made, record)
    kept = sum(not image.fresh for image in made)
    console.print(
        f"{len(made)} images{f', {kept} of them from an earlier run' if kept else ''}: "
        f"{output / 'gallery.html'}, {output / 'grid.png'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _golden(options: argparse.Namespace) -> GoldenNoise | GoldenLora:
    if find_lora(options.engine) is not None:
        if (options.long_prompts, options.other_sizes) != ("error", "error"):
            raise GenerateError(
                "--long-prompts and --other-sizes: expected none, as a LoRA reads what its model reads; "
                "leave them out"
            )
        return GoldenLora(options.engine, strength=options.strength)
    return GoldenNoise(
        options.engine,
        device=options.device,
        tokens=options.long_prompts,
        resolution=options.other_sizes,
        strength=options.strength,
    )


def load_pipeline(settings: GenerateSettings, offline: bool = False) -> Any:
    """The pipeline of a run, on its device.

    Raises:
        PipelineError: it cannot be found, fetched or read.
    """
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return load(settings.model, dtype, config=settings.config, offline=offline).to(settings.device)


def _settings(options: argparse.Namespace, golden: GoldenNoise | GoldenLora) -> GenerateSettings:
    device = golden.device if isinstance(golden, GoldenNoise) else resolve_device(options.device)
    dtype = options.dtype or ("fp32" if device.type == "cpu" else "fp16")
    return GenerateSettings(
        model=options.model,
        engine=str(options.engine),
        engine_digest=golden.digest,
        prompts=tuple(dict.fromkeys(options.prompt)),
        seeds=options.seeds,
        compare=options.compare,
        steps=options.steps,
        guidance=options.guidance,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
        dtype=DTYPES[dtype],
        device=str(device),
        tokens=options.long_prompts,
        resolution=options.other_sizes,
        scorer=options.scorer,
        strength=options.strength,
        config=options.config,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npnet-generate",
        description="Make images with golden noise, and with plain noise from the same seeds beside them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="hub id, folder or .safetensors file of any pipeline of diffusers the engine fits",
    )
    add(
        "--config",
        metavar="MODEL",
        help="hub id or folder whose configuration a single file has; default: what its weights look like",
    )
    add(
        "--engine",
        default="engines/sdxl",
        metavar="DIR",
        help="or OWNER/NAME of the hub, or a LoRA of golden noise; default: %(default)s",
    )
    add(
        "--prompt",
        required=True,
        type=_text,
        action="append",
        metavar="TEXT",
        help="may be given several times",
    )
    add("--seeds", type=_seeds, default=(0,), metavar="0-7", help="a range or a list; default: 0")
    add("--compare", action="store_true", help="also from plain noise")
    add("--output", type=Path, default=Path("gallery"), metavar="DIR", help="default: %(default)s")
    add("--steps", type=_at_least(int, 1), metavar="N", help="default: the pipeline's")
    add("--guidance", type=_at_least(float, 0.0), metavar="X", help="default: the pipeline's")
    add("--negative-prompt", type=_text, metavar="TEXT")
    add("--height", type=_at_least(int, 8), metavar="PIXELS", help="default: the pipeline's")
    add("--width", type=_at_least(int, 8), metavar="PIXELS", help="default: the pipeline's")
    add("--dtype", choices=DTYPES, help="default: fp16 on CUDA, fp32 on a CPU")
    add("--device", help="default: CUDA if there is any")
    add("--long-prompts", choices=get_args(TokenPolicy), default="error", help="default: %(default)s")
    add("--other-sizes", choices=get_args(ResolutionPolicy), default="error", help="default: %(default)s")
    add("--strength", type=_strength, default=1.0, metavar="X", help="0 plain to 1 golden; default: 1")
    add("--scorer", metavar="MODULE:FUNCTION", help="function(image, prompt) -> float, shown in the gallery")
    add("--offline", action="store_true", help="use what was downloaded before only")
    add("--quiet", action="store_true", help="print errors only")
    add("--version", action="version", version=f"npnet-runtime {__version__}")
    return parser


def _strength(text: str) -> float:
    try:
        return check_strength(float(text))
    except (ValueError, NPNetError) as error:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, given {text}") from error


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, given {text!r}") from error
    return text


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _at_least(kind: type[Value], least: Value) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number of at least {least}, given {text!r}")
        return value

    return parse
