"""The spectral half by the SVD and by a polynomial: `python benchmarks/spectral.py --output results`.

SDXL's sizes and random weights, whose polynomial is allowed any error here: the time of products does not
depend on what is multiplied. What the polynomial costs in accuracy is measured by every export that makes it;
here it must agree with its own reference in float64, or no ratio is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from harness import environment, interleave, write_json
from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest, get_model
from npnet_kernels import latent_to_matrix
from npnet_kernels.linalg.matrix_polynomial import odd_polynomial, odd_polynomial_reference
from npnet_runtime import GoldenNoise
from npnet_runtime.devices import resolve_device
from npnet_runtime.inputs.texts import random_inputs

TOLERANCE = 1e-5  # of the polynomial in float32, relative to the largest value: a few roundings of 256 terms
ANY = 1e6  # error of the fit that is allowed


def main() -> int:
    """Compare, then time; 1 if the polynomial disagrees with its reference."""
    options = _options()
    device = resolve_device(options.device)
    weights = WeightsRequest(get_model(options.model), None, options.seed)
    network, *_ = weights.load()
    golden: dict[str, GoldenNoise] = {}
    with tempfile.TemporaryDirectory() as folder:
        for spectral in ("exact", "polynomial"):
            settings = ExportSettings(
                weights, Path(folder) / spectral, options.model, options.engine, spectral=spectral,
                spectral_tolerance=ANY, device=str(device), verify=False,
            )  # fmt: skip
            golden[spectral] = GoldenNoise(export(settings), device=device)
        polynomial = golden["polynomial"].bundle.manifest.spectral
        rows = []
        for batch in options.batch:
            noise = random_inputs(network.config, range(batch))[0].to(device)
            matrix = latent_to_matrix(noise)
            arguments = (polynomial.coefficients, polynomial.bound) if polynomial else ((), 0.0)
            exact = odd_polynomial_reference(matrix, *arguments)
            error = float((odd_polynomial(matrix, *arguments)[0] - exact).abs().max() / exact.abs().max())
            calls = {name: partial(one.prepare, noise) for name, one in golden.items()}
            times = interleave(calls, options.rounds, device)
            row = {"batch": batch, "error": error, "tolerance": TOLERANCE, "agrees": error <= TOLERANCE}
            row["milliseconds"] = {name: asdict(timing) for name, timing in times.items()}
            if row["agrees"]:
                row["ratio"] = times["exact"].median / times["polynomial"].median
            rows.append(row)
            print(
                f"batch {batch}: " + (f"{row['ratio']:.2f} times as fast" if row["agrees"] else "DISAGREES")
            )
    if options.output:
        content = {
            "what": "the spectral half of golden noise, milliseconds",
            "command": "python benchmarks/spectral.py " + " ".join(sys.argv[1:]),
            "model": options.model,
            "degree": polynomial.degree if polynomial else None,
            "engine": options.engine,
            "rounds": options.rounds,
            "environment": environment(device),
            "rows": rows,
        }
        write_json(options.output / f"spectral-{options.model}-{device.type}.json", content)
    return 0 if all(row["agrees"] for row in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sdxl")
    parser.add_argument("--engine", default="onnxruntime", help="of the spectral head; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", help="default: CUDA if there is any")
    parser.add_argument("--output", "--out", type=Path, help="folder for JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
