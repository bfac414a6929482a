"""What the command line of `npnet-export` takes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from npnet_export.build import SIGN_RULES
from npnet_export.choice import AUTO
from npnet_export.engines import ENGINES
from npnet_export.spectral_fit import SPECTRAL
from npnet_export.spectral_fit import TOLERANCES as POLYNOMIAL_TOLERANCES
from npnet_export.verification import FIRST_SEED
from npnet_export.weights import all_models
from npnet_runtime import __version__
from npnet_runtime.backends.openvino_backend import TARGET_OPTION
from npnet_runtime.bundles.manifest import PRECISIONS

EXAMPLES = """\
examples:
  npnet-export --for Tongyi-MAI/Z-Image-Turbo --random-weights 0
                                                     for any pipeline of diffusers, to try what it costs
  npnet-export --model sdxl                          download the released weights, write engines/sdxl
  npnet-export --model sdxl --weights sdxl.pth       from a checkpoint: .pth or .safetensors
  npnet-export --model sdxl --random-weights 0       without a checkpoint, to try the pipeline
  npnet-export --model shapes                        the small model that is bundled, no download
  npnet-export --model hunyuan-dit --engine torch --precision fp16
  npnet-export inspect engines/sdxl                  print a bundle and check its files
  npnet-export verify engines/sdxl --samples 64      compare a bundle with float32 PyTorch again
  npnet-export verify engines/sdxl --debug-layers    name the first layer at which it diverges
  npnet-export repro engines/sdxl                    a folder to reproduce a disagreement elsewhere

which engine:
  for this machine               auto, which chooses and says why
  for an Intel CPU               openvino, in bf16 if it has AMX or AVX512-BF16, else in fp32
  for another CPU                onnxruntime in fp32; then aoti
  for GeForce and RTX GPUs       tensorrt-rtx (compute capability 7.5 to 8.9 and 12.x), built anywhere
                                 with --no-verify
  for A100, H100, H200, B200     tensorrt, or aoti, built on that kind of GPU (tensorrt-rtx knows no 9.0
                                 and 10.x)
  for any GPU, to begin with     torch or onnxruntime
measured so far: the CPU only (README.md, Results); TensorRT for RTX was built and inspected; no engine has
run on a GPU yet

exit status: 0 done, 1 failed (nothing was written) or disagrees, 2 wrong usage, 130 interrupted
"""


def export_parser() -> argparse.ArgumentParser:
    """Of the command without a word before its options: `npnet-export --model NAME`."""
    parser = argparse.ArgumentParser(
        prog="npnet-export",
        usage="npnet-export --model NAME [options]\n"
        "       npnet-export --for PIPELINE --random-weights SEED [options]\n"
        "       npnet-export inspect DIR\n"
        "       npnet-export verify DIR [options]\n"
        "       npnet-export repro DIR [options]",
        description="Turn NPNet weights into an engine bundle that npnet_runtime.GoldenNoise runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="NAME", help=f"one of {', '.join(all_models())}")
    _add_weights(parser, "the model's")
    _add_pipeline(parser.add_argument_group("engines for any pipeline, with random weights to try them"))
    parser.add_argument(
        "--engine", choices=(*ENGINES, AUTO), default="onnxruntime", help="default: %(default)s"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="default: fp32, or what --engine auto chooses"
    )
    parser.add_argument(
        "--signs", choices=SIGN_RULES, default="canonical", help="of singular vectors; default: %(default)s"
    )
    parser.add_argument(
        "--spectral",
        choices=SPECTRAL,
        default="exact",
        help="the spectral half by the SVD (exact), by a polynomial, which is refused if the weights do not "
        "allow it, or by a polynomial where they do (auto); default: %(default)s",
    )
    parser.add_argument(
        "--spectral-tolerance",
        metavar="X",
        type=_tolerance,
        help="largest error of the polynomial, of the noise's rms; default: "
        + ", ".join(f"{value:g} in {name}" for name, value in POLYNOMIAL_TOLERANCES.items()),
    )
    parser.add_argument("--max-batch", metavar="N", type=_positive, default=8, help="default: %(default)s")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: engines/<model>")
    parser.add_argument("--device", help="where the engine is checked; default: CUDA if there is any")
    parser.add_argument(
        "--no-verify", action="store_true", help="keep the engine without comparing it with float32 PyTorch"
    )
    parser.add_argument(
        "--allow-collapse", action="store_true", help="also of weights whose golden noise is no longer noise"
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--push", metavar="OWNER/NAME", help="then upload it to the Hugging Face hub")
    parser.add_argument("--licence", metavar="ID", help="of the weights, for the model card: apache-2.0 ...")
    parser.add_argument(
        "--evaluation", metavar="DIR", type=Path, help="of npnet-evaluate, for the table of the model card"
    )
    parser.add_argument("--offline", action="store_true", help="take weights from the download cache only")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--list", action="store_true", help="list models and engines")
    parser.add_argument("--version", action="version", version=f"npnet-export {__version__}")
    _add_builder_options(parser.add_argument_group("options of TensorRT and TensorRT for RTX"))
    openvino = parser.add_argument_group("options of OpenVINO")
    openvino.add_argument(
        TARGET_OPTION, metavar="NAME", help="CPU, GPU, GPU.1, NPU: where it computes; default: CPU"
    )
    return parser


def _add_pipeline(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--for", dest="pipeline", metavar="PIPELINE", help="folder, hub repository or model of --list"
    )
    group.add_argument(
        "--network",
        choices=("prompt-attention",),
        default="prompt-attention",
        help="kind of network; default: %(default)s, for any size and prompt",
    )
    group.add_argument(
        "--size", metavar="HxW", type=_size, help="of the images it is tuned for; default: the pipeline's"
    )
    group.add_argument("--least-side", metavar="N", type=_positive, help="smallest side of the noise")
    group.add_argument("--most-side", metavar="N", type=_positive, help="largest side of the noise")
    group.add_argument("--most-tokens", metavar="N", type=_positive, help="most tokens of a prompt")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected height and width such as 832x1216, given {text!r}")
    return int(height), int(width)


def _add_builder_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--opt-batch", metavar="N", type=_positive, help="batch to tune for; default: 1")
    group.add_argument("--optimization-level", metavar="N", type=int, help="effort, 0 to 5; default: 3")
    group.add_argument("--workspace-mb", metavar="MB", type=_positive, help="limit of scratch memory")
    group.add_argument(
        "--compute-capability",
        metavar="X.Y",
        action="append",
        default=[],
        help="GPU to build for, repeatable (tensorrt-rtx); default: 8.0, 8.6, 8.9 and 12.0",
    )
    group.add_argument(
        "--hardware-compatibility",
        choices=("same-compute-capability", "ampere-plus"),
        help="other GPUs the engine may run on (tensorrt); default: only the model it was built on",
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="also run in later versions of the same major release (tensorrt)",
    )


def inspect_parser() -> argparse.ArgumentParser:
    """Of `npnet-export inspect`."""
    parser = argparse.ArgumentParser(
        prog="npnet-export inspect", description="Print an engine bundle and check its files."
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    return parser


def verify_parser() -> argparse.ArgumentParser:
    """Of `npnet-export verify`."""
    parser = argparse.ArgumentParser(
        prog="npnet-export verify",
        description="Compare golden noise of an engine bundle with the float32 PyTorch network.",
        epilog="exit status: 0 agrees, 1 disagrees or could not be run, 2 wrong usage, 130 interrupted",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    _add_weights(parser, "what the manifest names")
    parser.add_argument("--samples", metavar="N", type=_positive, default=16, help="default: %(default)s")
    parser.add_argument(
        "--seed", type=_seed, default=FIRST_SEED, help="of the first noise; default: %(default)s"
    )
    parser.add_argument("--device", help="where the engine runs; default: CUDA if there is any")
    parser.add_argument(
        "--fixture",
        metavar="FILE",
        type=Path,
        help="compare also with golden noise of the original implementation: a safetensors file with noise, "
        "prompt_embeds, golden and the factors U, s, Vh that it found (not for prompt-attention networks)",
    )
    parser.add_argument(
        "--debug-layers",
        action="store_true",
        help="look at the layers on the worst of the noises: name the first one that diverges from float32 "
        "and the first with NaN or infinity. aoti and tensorrt engines are built again for it; onnxruntime "
        "and tensorrt are compared with a float32 ONNX graph, so that an error of the exporter is not found",
    )
    parser.add_argument("--record", action="store_true", help="keep the result in the manifest if it agrees")
    parser.add_argument("--offline", action="store_true", help="take weights from the download cache only")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    return parser


def repro_parser() -> argparse.ArgumentParser:
    """Of `npnet-export repro`."""
    parser = argparse.ArgumentParser(
        prog="npnet-export repro",
        description="Write what an engineer without this project needs to reproduce a disagreement of an "
        "engine: its ONNX graphs, inputs, what float32 PyTorch gives, and a script for Polygraphy.",
        epilog="exit status: 0 done, 1 failed (nothing was written), 2 wrong usage, 130 interrupted",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    _add_weights(parser, "what the manifest names")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="default: <bundle>-repro, here")
    parser.add_argument("--samples", metavar="N", type=_positive, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=_seed, default=0, help="of the first noise; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace a folder that is there")
    parser.add_argument("--offline", action="store_true", help="take weights from the download cache only")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def _add_weights(parser: argparse.ArgumentParser, default: str) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        metavar="PATH_OR_HUB_ID",
        help=f"a checkpoint, or owner/repository[:file]; default: {default}",
    )
    source.add_argument(
        "--random-weights", metavar="SEED", type=_seed, help="make weights from a seed instead"
    )


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, given {text}")
    return value


def _seed(text: str) -> int:
    return _integer(text, 0)


def _positive(text: str) -> int:
    return _integer(text, 1)


def _integer(text: str, smallest: int) -> int:
    if not text.isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"expected a whole number of {smallest} or more, given {text}")
    return int(text)
