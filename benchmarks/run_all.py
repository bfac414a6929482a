"""Everything measured, in pieces of at most three minutes each: `python benchmarks/run_all.py --out results`.

    python benchmarks/run_all.py --list                     the pieces and what each of them answers
    python benchmarks/run_all.py --out DIR --budget 540     begin no piece that may not end in nine minutes
    python benchmarks/run_all.py --out DIR --from latency-aoti
    python benchmarks/run_all.py --out DIR --only kernels-svd latency-torch

On a CUDA device the pieces are the tests of `pytest -m gpu` and the benchmarks, the most important question
first. Each piece is a process of its own: one that fails, lacks a package, hangs or is killed stops no other,
and leaves what it had written. `run_all.json` says after every piece what became of it. A piece that is
recorded there as done is not run again; `--again` runs it. `first_run.md` is the plan for a new GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from harness import environment, write_json
from pieces import ROOT, Piece, plan

RECORD = "run_all.json"
GRACE_S = 10  # from being asked to stop to being killed
TAIL = 4000  # characters of a piece's output that are kept in the record


def main(arguments: list[str] | None = None) -> int:
    """Run the pieces; 1 if one of them failed or did not run for want of time."""
    options = _options(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pieces = _chosen(plan(device.type == "cuda", options.out), options)
    if options.list:
        for piece in pieces:
            print(f"{piece.name} (at most {piece.limit_s} s): {piece.question}\n    {piece}")
        return 0
    record = _read(options.out / RECORD)
    record["environment"] = environment(device)
    done: dict[str, Any] = record.setdefault("pieces", {})
    began, missing = time.monotonic(), []
    for piece in pieces:
        if not options.again and done.get(piece.name, {}).get("outcome") == "done":
            print(f"== {piece.name}: done before; --again runs it again", flush=True)
            continue
        left = options.budget - (time.monotonic() - began)
        if piece.limit_s > left:
            missing.append(piece.name)
            continue
        print(f"== {piece.name}: {piece.question}\n   {piece}", flush=True)
        done[piece.name] = {"question": piece.question, "command": str(piece), **run(piece)}
        write_json(options.out / RECORD, record)
        print(f"   {done[piece.name]['outcome']} after {done[piece.name]['seconds']:.0f} s", flush=True)
    outcomes = {p.name: done.get(p.name, {}).get("outcome", "") for p in pieces}
    failed = [n for n, outcome in outcomes.items() if outcome and outcome != "done" and not _skipped(outcome)]
    if missing:
        print(f"no time left for: {' '.join(missing)}\ngo on with: --from {missing[0]}")
    print(f"failed: {', '.join(failed)}" if failed else "all that ran is done")
    return 1 if failed or missing else 0


def _skipped(outcome: str) -> bool:
    return outcome.startswith("skipped")


def run(piece: Piece) -> dict[str, Any]:
    """Run a piece in a process group of its own, and end it at its limit; what became of it."""
    if missing := piece.missing():
        reason = f"{', '.join(missing)} not installed: pip install '.[test]', or see first_run.md"
        return {"outcome": f"skipped: {reason}", "seconds": 0.0, "output": ""}
    start = time.monotonic()
    process = subprocess.Popen(
        piece.command(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        output, _ = process.communicate(timeout=piece.limit_s)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        output, status = _stop(process), None
    except BaseException:  # Ctrl-C: the piece has a session of its own, and would go on
        _stop(process)
        raise
    print(output[-TAIL:], end="" if output.endswith("\n") else "\n", flush=True)
    if status is None:
        outcome = f"stopped after {piece.limit_s} s"
    elif status < 0:
        outcome = f"killed by signal {-status}"
    else:
        outcome = f"exit status {status}" if status else "done"
    return {"outcome": outcome, "seconds": time.monotonic() - start, "output": output[-TAIL:]}


def _stop(process: subprocess.Popen[str]) -> str:
    for request in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, request)
            return process.communicate(timeout=GRACE_S)[0]
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    return process.communicate()[0]


def _chosen(pieces: tuple[Piece, ...], options: argparse.Namespace) -> tuple[Piece, ...]:
    names = [piece.name for piece in pieces]
    for name in [*(options.only or []), *([options.start] if options.start else [])]:
        if name not in names:
            raise SystemExit(f"expected one of {', '.join(names)}; given {name!r}")
    if options.only:
        return tuple(piece for piece in pieces if piece.name in options.only)
    return pieces[names.index(options.start) :] if options.start else pieces


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path}: expected a record of earlier pieces, given: {error}; move it") from error
    return found if isinstance(found, dict) else {}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=default, help="folder for JSON, CSV and PNG")
    parser.add_argument("--list", action="store_true", help="print the pieces and run none")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pieces")
    parser.add_argument("--from", dest="start", metavar="NAME", help="this piece and those after it")
    parser.add_argument("--again", action="store_true", help="also what is recorded as done")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="S", help="begin no piece that may end later"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
