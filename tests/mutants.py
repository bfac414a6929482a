"""Do the tests notice when the code is wrong? Mutants of a sample of modules, each run against its tests.

    python tests/mutants.py --per-module 12 --out mutants.json    all of `SAMPLE`, about a quarter of an hour
    python tests/mutants.py --only order.py --per-module 100      all mutants of one module

A mutant is the code with one operator, number, condition or loop changed (by cosmic-ray). It is killed if a
test fails or hangs. Which mutants are drawn depends on the seed only. Everything happens in a copy of the
checkout. One that survives is a gap in the tests, or changes nothing that matters: its reader decides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUNTIME, KERNELS, TRAINING = "npnet_runtime", "kernels/npnet_kernels", "training/npnet_training"
SAMPLE = {  # modules without a device, and the tests that are there for them
    f"{RUNTIME}/files.py": "tests/runtime/test_files.py",
    f"{RUNTIME}/inputs/prompts.py": "tests/runtime/inputs/test_prompts.py -k 'not aoti and not onnxruntime'",
    f"{RUNTIME}/inputs/resolution.py": "tests/runtime/inputs/test_resolution.py -k 'not TestGolden'",
    f"{RUNTIME}/networks/npnet_config.py": "tests/runtime/networks/test_npnet_config.py",
    f"{RUNTIME}/weights/published.py": "tests/runtime/weights/test_checkpoint.py",
    f"{RUNTIME}/backends/pool.py": "tests/runtime/backends/test_pool.py",
    f"{RUNTIME}/hot_path/caches.py": "tests/runtime/hot_path/test_caches.py",
    f"{RUNTIME}/hot_path/static.py": "tests/runtime/hot_path/test_static.py",
    f"{RUNTIME}/hot_path/choice.py": "tests/runtime/hot_path/test_choice.py",
    f"{KERNELS}/backends.py": "tests/kernels/test_operators.py",
    f"{KERNELS}/checks.py": "tests/kernels/test_operators.py",
    f"{KERNELS}/linalg/choice.py": "tests/kernels/test_svd.py -k 'choice or choose or solver'",
    f"{TRAINING}/training/order.py": "tests/training/training/test_order.py",
    f"{TRAINING}/evaluation/statistics.py": "tests/training/evaluation/test_statistics.py",
    f"{TRAINING}/scorers/rules.py": "tests/training/scorers/test_scorers.py",
    f"{TRAINING}/shapes/grammar.py": "tests/training/shapes/test_grammar.py",
}
TIMEOUT_S = 60.0
# `X | None` in an annotation is text. Small integers and literals are one object wherever they are equal:
# identity in place of equality changes nothing.
IGNORED = re.compile("BinaryOperator_BitOr|Operator_(Eq_Is|NotEq_IsNot|Is_Eq|IsNot_NotEq)$")


def main() -> int:
    """Run the mutants; 0 if the share that was killed is at least `--goal`."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="npnet-mutants-") as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "*.egg-info", "engines", "demo")
        shutil.copytree(ROOT, copy, ignore=ignored)
        os.chdir(copy)
        found = [row for module, tests in SAMPLE.items() if options.only in module
                 for row in _mutate(module, tests, options)]  # fmt: skip
    counts = Counter(row["outcome"] for row in found)
    tried = counts["killed"] + counts["survived"]
    share = counts["killed"] / tried if tried else 0.0
    print(f"{counts['killed']} of {tried} mutants killed: {share:.0%}")
    if options.out:
        report = {"seed": options.seed, "per_module": options.per_module, "share": share, "mutants": found}
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if share >= options.goal else 1


def _mutate(module: str, tests: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.mutating import mutate_and_test

    command = f"{sys.executable} -m pytest -n 0 -x -q -p no:cacheprovider {tests}"
    if subprocess.run(shlex.split(command), capture_output=True, check=False, env=_environment()).returncode:
        raise SystemExit(f"{tests} fails without any mutant; mend that first")
    os.environ.update(_environment())
    items = [
        item
        for item in _all_work_items([Path(module)], {})
        if not IGNORED.search(item.mutations[0].operator_name)
    ]
    drawn = random.Random(f"{options.seed} {module}").sample(items, min(options.per_module, len(items)))
    rows = []
    for item in drawn:
        result = mutate_and_test(item.mutations, command, TIMEOUT_S)
        outcome = str(result.test_outcome.value if result.test_outcome else result.worker_outcome.value)
        rows.append({"module": module, "outcome": outcome, "diff": result.diff.splitlines()[2:]})
        if outcome == "survived":
            print(f"survived: {module}\n" + "\n".join(rows[-1]["diff"]), flush=True)
    killed = sum(row["outcome"] == "killed" for row in rows)
    print(f"{killed:3d} of {len(rows):3d}  {module}", flush=True)
    return rows


def _environment() -> dict[str, str]:
    packages = (Path(), Path("kernels"), Path("export"), Path("training"))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(str(path.absolute()) for path in packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--per-module", type=int, default=12, help="mutants of a module; default: %(default)s"
    )
    parser.add_argument("--only", default="", metavar="PART", help="modules whose path holds this")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: %(default)s")
    parser.add_argument("--goal", type=float, default=0.9, help="share to be killed; default: %(default)s")
    parser.add_argument("--out", type=lambda text: Path(text).absolute(), help="write all mutants there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
