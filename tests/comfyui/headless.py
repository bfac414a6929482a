"""Install a given checkout of ComfyUI with these nodes and run the examples in it, without a window.

    python tests/comfyui/headless.py ~/ComfyUI --work /tmp/comfy [--torch torch==2.9.1 torchvision torchaudio]

What the documents say is done as they say it, in an environment of its own: the checkout is only read. It has
to have random weights of SDXL in memory (24 GB are enough) and takes some minutes on a CPU; nothing but the
packages is downloaded. Run again with the same `--work`, it goes on with what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "npnet_runtime" / "integrations" / "comfyui"
NAMES = ("golden_noise_sdxl", "golden_noise_side_by_side")
FOLDERS = ("custom_nodes", "models/checkpoints", "models/golden_noise", "input", "output", "temp", "user")
WRITE_WEIGHTS = """
import sys
from safetensors.torch import save_file
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights.models import MODELS
from npnet_runtime.weights.published import published_name
state = random_state(MODELS["sdxl"].config, 0)
save_file({published_name(name): tensor.contiguous().reshape(-1) if name in ("alpha", "beta") else
           tensor.contiguous() for name, tensor in state.items()}, sys.argv[1])
"""
TORCH = "from importlib.metadata import version; print(version('torch'))"


class Server:
    """ComfyUI on a port of this machine, and what the checks ask it."""

    def __init__(self, python: str, comfyui: Path, base: Path, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self.log = base / "comfyui.log"
        command = [python, str(comfyui / "main.py"), "--cpu", "--base-directory", str(base)]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
        database = f"sqlite:///{base / 'user' / 'comfyui.db'}"
        self._process = subprocess.Popen(
            [*command, "--database-url", database], stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def ready(self, seconds: float = 300) -> None:
        """Wait until it answers."""
        for _ in range(int(seconds)):
            if self._process.poll() is not None:
                raise SystemExit(f"ComfyUI ended:\n{self.log.read_text()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(1)
        raise SystemExit("ComfyUI did not start")

    def get(self, path: str) -> Any:
        """JSON of a page."""
        with urllib.request.urlopen(self._address + path, timeout=30) as answer:
            return json.load(answer)

    def run(self, graph: dict[str, Any], seconds: float = 1500) -> dict[str, Any]:
        """Queue a graph in the API's format; what becomes of it: `outputs`, `refused` or `failed`."""
        request = urllib.request.Request(
            f"{self._address}/prompt",
            json.dumps({"prompt": graph}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                name = json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            return {"refused": error.read().decode()}
        for _ in range(int(seconds)):
            history = self.get(f"/history/{name}")
            if name in history:
                entry = history[name]
                failed = [m for kind, m in entry["status"]["messages"] if kind == "execution_error"]
                if failed:
                    return {"failed": failed[0]["exception_message"], "node": failed[0]["node_id"]}
                return {"outputs": entry["outputs"]}
            time.sleep(1)
        raise SystemExit(f"a graph took longer than {seconds} s")


def prepare(options: argparse.Namespace) -> tuple[str, Path]:
    """Environment, folders, engine and weights, by the commands of `docs/comfyui.md`."""
    work: Path = options.work.resolve()
    base = work / "base"
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    python = options.python or str(work / "venv" / "bin" / "python")
    if not Path(python).exists():
        run(sys.executable, "-m", "venv", str(work / "venv"))
        # ComfyUI 0.8 imports `requests`, which its requirements do not name.
        requirements = ["-r", str(options.comfyui / "requirements.txt"), "requests"]
        run(python, "-m", "pip", "install", "-q", *options.torch, *requirements)
    before = run(python, "-c", TORCH)
    if options.clone:
        target = base / "custom_nodes" / "npnet-runtime"
        run("git", "clone", "-q", str(ROOT), str(target))
        run(python, "-m", "pip", "install", "-q", "-r", str(target / "requirements.txt"))
        export = [python, "-m", "npnet_export"]
        os.environ["PYTHONPATH"] = os.pathsep.join(
            str(target / name) for name in ("", "kernels", "export", "training")
        )
    else:
        run(python, "-m", "pip", "install", "-q", f"{ROOT}[comfyui]", f"torch=={before}")
        run(python, "-m", "npnet_runtime.integrations.comfyui", str(base))
        export = [python, "-m", "npnet_export"]
    after = run(python, "-c", TORCH)
    check(f"the installation left torch {before} as it was", after == before, after)
    engine = base / "models" / "golden_noise" / "sdxl"
    if not engine.exists():
        arguments = ["--model", "sdxl", "--random-weights", "0", "--engine", "auto", "--output", str(engine)]
        print(run(*export, *arguments))
    weights = base / "models" / "golden_noise" / "sdxl.safetensors"
    if not weights.exists():
        run(python, "-c", WRITE_WEIGHTS, str(weights))
    os.environ.pop("PYTHONPATH", None)
    checkpoint = base / "models" / "checkpoints" / "sd_xl_base_1.0.safetensors"
    if not checkpoint.exists():
        writer = str(Path(__file__).parent / "random_sdxl.py")
        run(python, writer, str(options.comfyui), str(checkpoint))
    return python, base


def examine(server: Server, base: Path, size: tuple[int, int]) -> None:
    """Everything that is claimed of the nodes."""
    import numpy as np
    from PIL import Image

    nodes = server.get("/object_info")
    shown = {name: node for name, node in nodes.items() if name.startswith("NPNet")}
    check(
        "seven nodes, two of them old and hidden",
        sum(n.get("deprecated", False) for n in shown.values()) == 2,
    )
    place = nodes["RandomNoise"]["category"]
    check("they are beside RandomNoise", all(n["category"].startswith(place) for n in shown.values()), place)
    listed = shown["NPNetRuntimeLoadEngine"]["input"]["required"]["engine"][0]
    check("the engine is in the drop-down", "sdxl" in listed, listed)
    templates = server.get("/workflow_templates").get("npnet-runtime", [])
    check("the template browser lists the examples", set(NAMES) <= set(templates), templates)
    for name in NAMES:
        served = server.get(f"/api/workflow_templates/npnet-runtime/{name}.json")
        own = json.loads((WORKFLOWS / "example_workflows" / f"{name}.json").read_text())
        check(f"it serves {name}", served == own)

    graphs = {name: json.loads((WORKFLOWS / "api_workflows" / f"{name}.json").read_text()) for name in NAMES}
    single, pair = (graphs[name] for name in NAMES)
    for graph in graphs.values():  # smaller and shorter, or it takes an hour
        graph["10"]["inputs"]["steps"] = 1
        graph["4"]["inputs"] |= {"width": size[0], "height": size[1]}

    def picture(graph: dict[str, Any]) -> Any:
        done = server.run(graph)
        check("a graph ran", "outputs" in done, done)
        image = done["outputs"]["13"]["images"][0]
        with Image.open(base / "output" / image["subfolder"] / image["filename"]) as opened:
            return np.asarray(opened.convert("RGB"))

    def changed(graph: dict[str, Any], **nodes: dict[str, Any]) -> dict[str, Any]:
        other = deepcopy(graph)
        for node, inputs in nodes.items():
            other[node.lstrip("n")]["inputs"] |= inputs
        return other

    golden = picture(single)
    plain = picture(changed(single, n11={"noise": ["5", 0]}))
    check("golden noise makes another image", not np.array_equal(golden, plain))
    none = picture(changed(single, n7={"strength": 0.0}))
    check("strength 0 is the plain image", np.array_equal(none, plain))
    other = picture(changed(single, n7={"strength": 0.5}))
    check("another strength makes another image", not np.array_equal(other, golden))
    loaded = server.log.read_text().count("Golden Noise: sdxl: ")
    check("other widgets do not load the engine again", loaded == 1, loaded)
    both = picture(pair)
    width = size[0]
    check("side by side", both.shape == (size[1], 2 * width + 8, 3), both.shape)
    near(np, "the left one is the plain image", both[:, :width], plain)
    near(np, "the right one is the golden image", both[:, width + 8 :], golden)
    long = "a banana on the left of an apple, " * 14
    check("a long prompt", picture(changed(single, n2={"text": long})).shape == golden.shape)
    weights = deepcopy(single)
    weights["6"] = {
        "class_type": "NPNetRuntimeLoadWeights",
        "inputs": {
            "weights": "sdxl.safetensors",
            "model": "auto",
            "kind": "torch",
            "precision": "auto",
            "device": "auto",
        },
    }
    near(np, "the weights themselves give the same image", picture(weights), golden)

    refused: list[tuple[str, dict[str, Any], str]] = [
        ("other_sizes error", changed(single, n7={"other_sizes": "error"}), "set other_sizes to transfer"),
        (
            "long_prompts error",
            changed(single, n2={"text": long}, n7={"long_prompts": "error"}),
            "long_prompts",
        ),
        ("no such engine", changed(single, n6={"engine": "absent"}), "absent"),
        ("an engine outside", changed(single, n6={"engine": "../../x"}), ".."),
        ("no engine", changed(single, n6={"engine": ""}), "nothing is chosen"),
    ]
    for name, graph, said in refused:
        done = server.run(graph)
        words = str(done.get("refused") or done.get("failed"))
        check(f"refused: {name}", said in words and "outputs" not in done, words[:300])
        check(f"refused at the node: {name}", done.get("node", "7") == "7", done)


def near(np: Any, name: str, given: Any, wanted: Any) -> None:
    """Batches of another size, and engines of another kind, round otherwise."""
    error = np.abs(given.astype(int) - wanted.astype(int)).mean()
    check(f"{name} (mean difference {error:.3f} of 255)", error < 4)


def check(name: str, right: bool, found: object = "") -> None:
    """Say what was found, and stop at what is wrong."""
    print(
        f"{'ok' if right else 'WRONG'}: {name}{f': {found}' if found != '' and not right else ''}", flush=True
    )
    if not right:
        raise SystemExit(1)


def run(*command: str) -> str:
    """Run a command; its output."""
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def main(parse: Callable[..., argparse.Namespace] | None = None) -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=Path, help="a checkout")
    parser.add_argument("--work", type=Path, required=True, help="folder for the environment and all files")
    parser.add_argument("--python", help="an environment that ComfyUI runs in; default: a new one")
    parser.add_argument(
        "--torch", nargs="*", default=[], help="versions of torch, torchvision and torchaudio"
    )
    parser.add_argument("--clone", action="store_true", help="the nodes as a clone, not as a package")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 640), help="of the images")
    parser.add_argument("--port", type=int, default=8199)
    options = parser.parse_args()
    options.comfyui = options.comfyui.resolve()
    python, base = prepare(options)
    server = Server(python, options.comfyui, base, options.port)
    try:
        server.ready()
        examine(server, base, tuple(options.size))
    finally:
        server.stop()
    print("all is well")


if __name__ == "__main__":
    main()
