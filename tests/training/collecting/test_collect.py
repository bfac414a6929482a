import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from npnet_training.collecting import Collector, CollectSettings, collect
from npnet_training.collecting.cli import main
from npnet_training.collecting.items import items
from npnet_training.errors import DatasetError, SettingsError
from npnet_training.pairs import PairDataset
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

    def test_dry_run(self, settings: CollectSettings, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(settings, "--dry-run") == 0
        assert "5 pairs, about" in capsys.readouterr().out
        assert not settings.output.exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--prompts", "nowhere.txt"], "nowhere.txt"),
            (["--model", "nowhere/at-all", "--offline"], "expected a diffusers folder"),
            (["--scorers", "nicescore"], "unknown scorer 'nicescore'"),
            (["--redenoise.steps", "1"], "--redenoise.steps"),
            (["--batch", "0"], "--batch"),
            (
                ["--output", "s4://bucket/x"],
                "--output: Value error, s4://bucket/x: expected a folder, or a URL",
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


def test_two_ray_workers_one_killed(settings: CollectSettings, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from npnet_training.collecting import cluster

    collect(settings)
    whole = [pq.read_table(path) for path in sorted((settings.output / "data").iterdir())]
    shutil.rmtree(settings.output)
    dead = tmp_path / "died"

    class Dies(cluster.Worker):
        def collect(self, item: Any) -> int:
            import os

            if item.number == 1 and not dead.exists():
                dead.touch()
                os._exit(1)  # as kill -9
            return super().collect(item)

    original = cluster.Worker
    cluster.Worker = Dies  # type: ignore[misc]
    try:
        progress = collect(with_(settings, ray="local", workers=2))
    finally:
        cluster.Worker = original  # type: ignore[misc]
        ray.shutdown()
    assert dead.exists()
    assert (progress.pairs, progress.kept) == (10, 10)
    found = [pq.read_table(path) for path in sorted((settings.output / "data").glob("*.parquet"))]
    for own, other in zip(found, whole, strict=True):
        assert own.drop_columns(["target"]) == other.drop_columns(["target"])
        # Ray gives an actor one thread, and sums of one thread and of several differ in the last bit.
        ours, theirs = (np.array(table["target"].to_pylist(), np.float32) for table in (own, other))
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=4e-3)
