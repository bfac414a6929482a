import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from npnet_training.collecting import Collector, CollectSettings, collect
from npnet_training.collecting.cli import main
from npnet_training.collecting.items import items
from npnet_training.errors import DatasetError, SettingsError
from npnet_training.pairs import PairDataset, PairInfo
from npnet_training.pairs.shard import shard_path
from npnet_training.sampling import Denoiser, draw_noise, redenoise
from support.pipelines import PIPELINES

QUICK: dict[str, Any] = {"redenoise": {"steps": 4}, "sample": {"steps": 2, "guidance": 1.0}, "batch": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "sdxl"
    torch.manual_seed(0)
    PIPELINES["sdxl"]().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(model: str, tmp_path: Path) -> CollectSettings:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {letter}" for letter in "abcde"))
    return CollectSettings(
        model=model, prompts=str(prompts), output=tmp_path / "pairs", seeds=2, seed=7, **QUICK
    )


def shards(settings: CollectSettings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (settings.output / "data").glob("*.parquet")}


def with_(settings: CollectSettings, **changes: Any) -> CollectSettings:
    return CollectSettings.model_validate({**settings.model_dump(), **changes})


def test_pairs_are_those_of_the_functions(settings: CollectSettings) -> None:
    progress = collect(settings)
    assert (progress.pairs, progress.kept, progress.new) == (10, 10, 10)
    pairs = PairDataset.open([settings.output])
    assert pairs.prompts == [f"prompt {letter}" for letter in "aabbccddee"]
    assert pairs.seeds == list(range(7, 17))
    denoiser = Denoiser(Collector(settings).pipe)
    noise = draw_noise([7, 8], denoiser.latent_shape)
    target = redenoise(denoiser, noise, denoiser.encode(["prompt a"] * 2), settings.redenoise)
    batch = pairs.batch([0, 1])
    assert (batch.source == noise).all()
    torch.testing.assert_close(batch.target, target, rtol=1e-3, atol=2e-3)  # stored as float16
    assert (batch.target - noise).abs().max() > 1e-3


def test_a_killed_run_goes_on_without_a_trace(settings: CollectSettings) -> None:
    collect(settings)
    whole = {path.name: path.read_bytes() for path in (settings.output / "data").iterdir()}
    assert len(whole) == 3
    # as after kill -9 in the second shard: a temporary file, no shard
    shard_path(settings.output, 1).unlink()
    (settings.output / "data" / ".train-000001.parquet.0.tmp").write_bytes(b"PAR1")
    progress = collect(with_(settings, resume=True))
    assert (progress.pairs, progress.new) == (10, 4)
    assert {p.name: p.read_bytes() for p in (settings.output / "data").glob("*.parquet")} == whole


def memory_files(url: str) -> dict[str, bytes]:
    folder = url.removeprefix("memory:/")
    store = MemoryFileSystem.store
    return {
        name.removeprefix(f"{folder}/"): file.getvalue() for name, file in store.items() if folder in name
    }


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield f"memory://bucket/{tmp_path.name}"
    MemoryFileSystem.store.clear()


def test_an_object_store_holds_what_a_folder_does(
    settings: CollectSettings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npnet_training.collecting.collector.load_scorer", lambda *_, **__: Taste())
    settings = with_(settings, scorers=("taste",), rule="keep all", thumbnails=5)
    collect(settings)
    local = {str(p.relative_to(settings.output)): p.read_bytes() for p in settings.output.rglob("*.*")}
    assert len(local) == 3 + 2 + 5 * 3 + 1
    remote = with_(settings, output=url)
    assert remote.output == url
    assert collect(remote).pairs == 10
    assert memory_files(url) == local
    # killed in the second shard, whose put was never completed
    del MemoryFileSystem.store[f"/bucket/{url.rpartition('/')[2]}/data/train-000001.parquet"]
    with pytest.raises(DatasetError, match=r"memory://bucket/.* holds a dataset: go on with --resume"):
        collect(remote)
    with pytest.raises(DatasetError, match=r"(?s)other settings:.*seed: expected 7, given 8"):
        collect(with_(remote, seed=8, resume=True))
    progress = collect(with_(remote, resume=True))
    assert (progress.pairs, progress.new) == (10, 4)
    assert memory_files(url) == local
    here, there = PairDataset.open([settings.output]), PairDataset.open([url])
    assert here.info == there.info
    assert (here.batch([9, 3]).target == there.batch([9, 3]).target).all()
    assert len(PairDataset.open([settings.output, url])) == 20


def test_a_file_url_is_a_folder(settings: CollectSettings) -> None:
    remote = with_(settings, output=f"file://{settings.output}")
    assert remote.output == settings.output
    assert collect(remote).pairs == 10
    assert len(PairDataset.open([f"file://{settings.output}"])) == 10


def test_a_put_that_fails(settings: CollectSettings, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put = MemoryFileSystem.pipe_file

    def fails(self: Any, path: str, value: bytes, **options: Any) -> None:
        if path.endswith("train-000001.parquet"):
            raise ConnectionResetError("the line is dead")
        put(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fails)
    with pytest.raises(
        DatasetError, match=r"train-000001.parquet: cannot write the pairs .*line is dead.*--resume"
    ):
        collect(with_(settings, output=url))
    assert {name for name in memory_files(url) if "data" in name} == {"data/train-000000.parquet"}
    monkeypatch.undo()
    assert collect(with_(settings, output=url, resume=True)).new == 6


def test_a_killed_process_goes_on_without_a_trace(settings: CollectSettings, tmp_path: Path) -> None:
    Path(settings.prompts).write_text("\n".join(f"prompt {letter}" for letter in "abcdefghijklmnopqrst" * 4))
    collect(settings)
    whole = shards(settings)
    assert len(whole) == 40
    settings = with_(settings, output=tmp_path / "killed")
    (tmp_path / "collect.yaml").write_text(settings.to_yaml())
    code = "import sys; from npnet_training.collecting.cli import main; sys.exit(main())"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "--config", str(tmp_path / "collect.yaml")],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            ends = time.monotonic() + 300
            while not shard_path(settings.output, 3).exists():
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < ends
                time.sleep(0.005)
        finally:
            process.kill()  # SIGKILL
            process.wait()
    assert process.returncode == -signal.SIGKILL
    said = sum(" pairs/s" in line for line in (tmp_path / "log").read_text().splitlines())
    before = shards(settings)
    # each that was written is whole; at most one batch in flight, which had not been said to be done
    assert 4 <= len(before) < 40
    assert said <= len(before) <= said + 1
    assert before == {name: whole[name] for name in sorted(whole)[: len(before)]}
    times = {name: (settings.output / "data" / name).stat().st_mtime_ns for name in before}
    progress = collect(with_(settings, resume=True))
    assert (progress.pairs, progress.new) == (160, 160 - 4 * len(before))
    assert shards(settings) == whole
    assert times == {name: (settings.output / "data" / name).stat().st_mtime_ns for name in before}


def test_memory_does_not_grow_with_the_dataset(
    settings: CollectSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(denoiser: Denoiser, noise: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full((len(noise), 4, 256, 256), 0.5)  # 2 MB a batch, as it is stored

    monkeypatch.setattr("npnet_training.collecting.collector.redenoise", large)
    Path(settings.prompts).write_text("a\n" * 120)
    process, seen = psutil.Process(), list[int]()
    progress = collect(settings, lambda _: seen.append(process.memory_info().rss))
    assert progress.pairs == 240
    assert len(seen) == 60
    assert sum(path.stat().st_size for path in (settings.output / "data").iterdir()) > 60 * 2e6
    # 100 MB were made in between
    assert max(seen[10:]) - max(seen[:10]) < 25e6


def test_a_dataset_whose_last_shard_is_partial(settings: CollectSettings) -> None:
    collect(settings)
    whole = shards(settings)
    shutil.rmtree(settings.output)
    assert collect(with_(settings, max_prompts=3)).pairs == 6  # shards of 4 and 2
    first = shard_path(settings.output, 0).stat().st_mtime_ns
    progress = collect(with_(settings, resume=True))
    assert (progress.pairs, progress.kept, progress.new) == (10, 10, 6)
    assert shards(settings) == whole
    assert shard_path(settings.output, 0).stat().st_mtime_ns == first
    progress = collect(with_(settings, resume=True, max_prompts=1))
    assert (progress.pairs, progress.kept, progress.new) == (2, 2, 0)
    assert shards(settings) == whole


def test_a_shard_of_other_settings(settings: CollectSettings, tmp_path: Path) -> None:
    collect(settings)
    other = with_(settings, output=tmp_path / "other", redenoise={"steps": 4, "guidance": 9.0})
    collect(other)
    shutil.copy(shard_path(other.output, 1), shard_path(settings.output, 1))
    for use in (lambda: collect(with_(settings, resume=True)), lambda: PairDataset.open([settings.output])):
        with pytest.raises(DatasetError, match=r"train-000001.parquet: a shard of another dataset"):
            use()
    shard_path(settings.output, 1).unlink()
    assert collect(with_(settings, resume=True, thumbnails=1)).new == 4


def test_damage_in_what_is_done(settings: CollectSettings) -> None:
    """A byte of the noise, which nothing but reading it finds."""
    collect(settings)
    path = shard_path(settings.output, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert collect(with_(settings, resume=True, check=False)).new == 0
    with pytest.raises(DatasetError, match=r"train-000001.parquet: truncated or damaged .*delete it"):
        collect(with_(settings, resume=True))
    path.unlink()
    assert collect(with_(settings, resume=True)).new == 4


def test_only_what_fits_is_continued(settings: CollectSettings) -> None:
    collect(with_(settings, max_prompts=2))
    with pytest.raises(DatasetError, match="go on with --resume"):
        collect(settings)
    with pytest.raises(DatasetError, match=r"(?s)other settings:.*seed: expected 7, given 8"):
        collect(with_(settings, resume=True, seed=8))
    assert collect(with_(settings, resume=True)).pairs == 10
    Path(settings.prompts).write_text("other prompts")
    with pytest.raises(DatasetError, match="collected from other prompts"):
        collect(with_(settings, resume=True))
    (settings.output / "npnet-pairs.json").unlink()
    with pytest.raises(DatasetError, match="is no dataset of noise pairs"):
        collect(settings)


def test_what_is_not_finite_is_never_kept(settings: CollectSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(denoiser: Denoiser, noise: torch.Tensor, *rest: Any) -> torch.Tensor:
        target = redenoise(denoiser, noise, *rest)
        target[1, 0, 0, 0] = torch.nan
        return target

    monkeypatch.setattr("npnet_training.collecting.collector.redenoise", broken)
    assert collect(settings).kept == 7
    table = pq.read_table(shard_path(settings.output, 0))
    assert table["decision"].to_pylist() == ["keep all", "not finite", "keep all", "keep all"]


def test_samples_of_an_interrupted_shard(settings: CollectSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npnet_training.collecting.collector.load_scorer", lambda *_, **__: Taste())
    settings = with_(settings, scorers=("taste",), rule="keep all", thumbnails=10)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("npnet_training.collecting.collector.write_samples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(settings)
    assert collect(with_(settings, resume=True)).new == 10
    assert (settings.output / "samples" / "index.html").read_text().count("<figure") == 10


def test_samples_that_cannot_be_written(settings: CollectSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npnet_training.collecting.collector.load_scorer", lambda *_, **__: Taste())
    settings.output.mkdir()
    with pytest.raises(DatasetError, match=r"cannot write the samples .*--resume"):
        write = PairInfo.write

        def and_a_file(self: PairInfo, folder: Path) -> None:
            write(self, folder)
            (folder / "samples").touch()

        monkeypatch.setattr(PairInfo, "write", and_a_file)
        collect(with_(settings, scorers=("taste",), thumbnails=1))


class Taste:
    """As good as random, and always the same for the same image."""

    def score(self, prompts: Any, images: Any) -> list[float]:
        return [float(zlib.crc32(image.tobytes())) for image in images]


def test_scores_decide(settings: CollectSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npnet_training.collecting.collector.load_scorer", lambda *_, **__: Taste())
    settings = with_(settings, scorers=("taste",), thumbnails=3, redenoise={"steps": 4, "guidance": 300.0})
    progress = collect(settings)
    assert 0 < progress.kept < progress.pairs
    for number in range(3):
        for row in pq.read_table(shard_path(settings.output, number)).to_pylist():
            assert row["kept"] == (row["redenoised/taste"] > row["plain/taste"])
    assert len(PairDataset.open([settings.output])) == progress.kept
    page = (settings.output / "samples" / "index.html").read_text()
    assert page.count("<figure") == 3
    assert len(list((settings.output / "samples").glob("*.png"))) == 6


def test_items_are_the_same_whatever_ran_before(settings: CollectSettings) -> None:
    first = list(items(settings))
    assert [len(item.prompts) for item in first] == [4, 4, 2]
    assert [item.first for item in first] == [0, 4, 8]
    assert next(items(with_(settings, max_prompts=4))) == first[0]


def test_rule_without_its_scorer(settings: CollectSettings) -> None:
    with pytest.raises(SettingsError, match="add --scorers pickscore"):
        collect(with_(settings, rule="pickscore rises"))
    assert not settings.output.exists()


class TestCommand:
    def run(self, settings: CollectSettings, *more: str) -> int:
        arguments = [
            "--model",
            settings.model,
            "--prompts",
            settings.prompts,
            "--output",
            str(settings.output),
        ]
        return main([*arguments, "--redenoise.steps", "4", "--batch", "4", *more])

    def test_collects(self, settings: CollectSettings, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(settings) == 0
        assert "5 pairs, 5 kept (100.0 %)" in capsys.readouterr().out

    def test_collects_to_a_url(
        self, settings: CollectSettings, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(settings, "--output", url) == 0
        captured = capsys.readouterr()
        assert f"{url}: 5 pairs, 5 kept (100.0 %)" in captured.out
        assert f"output: {url}\n" in captured.err
        assert self.run(settings, "--output", url) == 2
        assert self.run(settings, "--output", url, "--resume") == 0
        assert not settings.output.exists()

    def test_nothing_kept(
        self, settings: CollectSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("npnet_training.collecting.collector.load_scorer", lambda *_, **__: Taste())
        assert self.run(settings, "--scorers", "taste", "--rule", "taste reaches 1e99") == 1
        captured = capsys.readouterr()
        assert "5 pairs, 0 kept (0.0 %)" in captured.out
        assert "no pair was kept: try another --rule" in captured.err
        rates = re.search(r"5 pairs, 0\.0 % kept, ([\d.]+) pairs/s, ([\d.]+) images/s", captured.err)
        assert rates is not None
        assert float(rates[2]) == pytest.approx(2 * float(rates[1]), abs=0.02)

    def test_dry_run(self, settings: CollectSettings, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(settings, "--dry-run") == 0
        assert "5 pairs, about" in capsys.readouterr().out
        assert not settings.output.exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--prompts", "nowhere.txt"], "nowhere.txt"),
            (["--model", "nowhere/at-all", "--offline"], "nor is it one of shapes"),
            (["--scorers", "nicescore"], "unknown scorer 'nicescore'"),
            (["--redenoise.steps", "1"], "--redenoise.steps"),
            (["--batch", "0"], "--batch"),
            (["--workers", "2"], "add --ray local"),
            (["--gpus", "1", "--device", "cuda"], "add --ray local"),
            (["--ray", "local", "--gpus", "1"], "add --device cuda"),
            (["--ray", "local", "--gpus", "1.5", "--device", "cuda"], "whole number or below 1, given 1.5"),
            (
                ["--output", "s4://bucket/x"],
                "--output: s4://bucket/x: expected a folder, or a URL",
            ),
            (["--output", "memory://"], "expected a folder after memory://"),
        ],
    )
    def test_errors(
        self, settings: CollectSettings, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        assert self.run(settings, *more) == 2
        assert message in capsys.readouterr().err
        assert not list(settings.output.rglob("*.parquet"))


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[Any]:
    """A Ray of two CPUs and no GPU, whose workers do not work in the folder of the test."""
    ray = pytest.importorskip("ray")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = Path.cwd()
    os.chdir(elsewhere)
    try:
        ray.init(num_cpus=2, num_gpus=0, log_to_driver=False, include_dashboard=False)
        os.chdir(tmp_path)
        yield ray
    finally:
        ray.shutdown()
        os.chdir(here)


@pytest.mark.slow
def test_two_ray_workers_one_killed(
    ray: Any, settings: CollectSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from npnet_training.collecting import cluster

    Path("own").symlink_to(settings.model)
    settings = with_(settings, model="own", output="pairs", prompts="prompts.txt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives an actor: sums of several threads differ in the last bit
    try:
        collect(settings)
    finally:
        torch.set_num_threads(threads)
    whole, about = shards(settings), PairInfo.read(settings.output)
    shutil.rmtree(settings.output)
    dead = tmp_path / "died"

    class Dies(cluster.Worker):
        def collect(self, item: Any) -> int:
            if item.number == 1 and not dead.exists():
                dead.touch()
                os._exit(1)  # as kill -9
            return super().collect(item)

    monkeypatch.setattr(cluster, "Worker", Dies)
    progress = collect(with_(settings, ray="local", workers=2))
    assert dead.exists()
    assert (progress.pairs, progress.kept) == (10, 10)
    assert shards(settings) == whole
    assert PairInfo.read(settings.output) == about
    with pytest.raises(SettingsError, match=r"3 CPU wanted, 2 there; give fewer --workers"):
        collect(with_(settings, ray="local", workers=3, resume=True))
    monkeypatch.setattr(cluster, "AUTOSCALING_SECONDS", 0.1)
    with (
        pytest.raises(SettingsError, match=r"--ray auto: too little for 1 workers: 1 GPU wanted, 0 there"),
        pytest.warns(UserWarning, match=r"1 GPU wanted, 0 there; waiting 0\.1 s for the cluster to grow"),
    ):
        collect(with_(settings, ray="auto", gpus=1, device="cuda", resume=True))


@pytest.mark.slow
def test_a_machine_is_lost_in_the_middle_of_a_batch(
    settings: CollectSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines with two workers each, of which one machine is taken away: the same bytes come out."""
    import ray as ray_module
    from ray.cluster_utils import Cluster

    from npnet_training.collecting import cluster

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        collect(settings)
    finally:
        torch.set_num_threads(threads)
    whole = shards(settings)
    shutil.rmtree(settings.output)
    busy, lost = tmp_path / "busy", tmp_path / "lost"
    busy.mkdir()

    class Slow(cluster.Worker):
        def collect(self, item: Any) -> int:
            node = ray_module.get_runtime_context().get_node_id()
            (busy / f"{node}-{item.number}").touch()
            while not lost.exists():
                time.sleep(0.05)
            return super().collect(item)

    monkeypatch.setattr(cluster, "Worker", Slow)
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    doomed = machines.add_node(num_cpus=2)
    machines.wait_for_nodes()

    def take_away() -> None:
        while not any(path.name.startswith(doomed.node_id) for path in busy.iterdir()):
            time.sleep(0.05)
        machines.remove_node(doomed, allow_graceful=False)
        lost.touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        progress = collect(with_(settings, ray=machines.address, workers=4))
        thread.join(timeout=60)
        assert lost.exists()
        assert progress.pairs == 10
        assert shards(settings) == whole
    finally:
        lost.touch()
        ray_module.shutdown()
        machines.shutdown()
