"""A shortened study, on the bundled model and networks."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from npnet_kernels import SVD
from npnet_runtime.integrations.diffusers.lora_file import LoraConfig, write_lora
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.registry import network_for
from npnet_runtime.weights import checkpoint
from npnet_training.embedded import SCENES, SHAPES
from npnet_training.evaluation import Results
from npnet_training.sampling import Conditioning
from npnet_training.study import arms
from npnet_training.study.__main__ import main
from npnet_training.study.conditions import CONDITIONS
from npnet_training.study.report import table
from npnet_training.study.run import folder_of, scorers_of

NETWORKS = SHAPES.folder / "golden"
STRICT = scorers_of("shapes")[1]
BASE = CONDITIONS["shapes"]["base"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study") / "study"
    options = ["--prompts", "8", "--batch", "4", "--resamples", "200"]
    conditions = ["--conditions", "base,diversity"]
    assert main(["--networks", str(NETWORKS), "--output", str(output), *options, *conditions]) == 0
    return output


def test_every_row_is_what_its_evaluation_says(studied: Path) -> None:
    document = json.loads((studied / "study.json").read_text())
    assert list(document["conditions"]) == ["base", "diversity"]
    for name, condition in document["conditions"].items():
        results = Results.read(folder_of(studied, name))
        assert condition["images"] == 8
        for row in condition["rows"]:
            measured = results.arms[row["arm"]]["scores"][STRICT]
            assert row["strict"] == measured.mean()
            if row["arm"] != "plain":
                plain = results.arms["plain"]["scores"][STRICT]
                found = row["against_plain"]
                assert found["difference"] == pytest.approx((measured - plain).mean())
                assert found["wins"] == (measured > plain).sum()
                assert found["low"] <= found["difference"] <= found["high"]


def test_rows_of_base_are_those_that_are_documented(studied: Path) -> None:
    document = json.loads((studied / "study.json").read_text())
    names = [row["arm"] for row in document["conditions"]["base"]["rows"]]
    expected = {"plain", "redenoised", "best-of-2:shapes", "best-of-4:shapes", "npnet", "prompt-attention"}
    expected |= {
        f"npnet, {part}" for part in ("spectral only", "residual only", "text off", "signs at random")
    }
    assert expected <= set(names)
    cost = {row["arm"]: row["images_sampled"] for row in document["conditions"]["base"]["rows"]}
    assert (cost["plain"], cost["npnet"], cost["best-of-4:shapes"]) == (1, 1, 4)


def test_diversity_is_only_where_a_prompt_has_several_seeds(studied: Path) -> None:
    document = json.loads((studied / "study.json").read_text())
    base, diversity = (document["conditions"][name]["rows"] for name in ("base", "diversity"))
    assert all("diversity" not in row for row in base)
    assert all(row["diversity"] > 0 for row in diversity)
    assert "diversity_against_plain" in diversity[1]


def test_table_and_figure(studied: Path) -> None:
    document = json.loads((studied / "study.json").read_text())
    text = (studied / "study.md").read_text()
    assert text == table(document)
    row = document["conditions"]["base"]["rows"][0]
    assert f"| plain | {100 * row['strict']:.1f} % |" in text
    assert (studied / "study.png").read_bytes().startswith(b"\x89PNG")


def test_goes_on_with_resume_only(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["--networks", str(NETWORKS), "--output", str(studied), "--prompts", "8", "--batch", "4"]
    again += ["--conditions", "diversity", "--resamples", "200"]
    assert main(again) == 2
    assert "--resume" in capsys.readouterr().err
    before = json.loads((studied / "study.json").read_text())
    assert main([*again, "--resume"]) == 0
    after = json.loads((studied / "study.json").read_text())
    assert list(after["conditions"]) == ["base", "diversity"]  # what was not measured again remains
    assert after == before


def test_another_study_is_not_mixed_in(
    studied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = shutil.copytree(NETWORKS, tmp_path / "networks")
    shutil.copy(networks / "npnet.safetensors", networks / "another.safetensors")
    before = (studied / "study.json").read_bytes()
    command = ["--networks", str(networks), "--output", str(studied), "--prompts", "8", "--batch", "4"]
    command += ["--resamples", "200", "--resume", "--conditions", "guidance 3"]
    assert main(command) == 2
    assert "another: expected None" in capsys.readouterr().err
    assert (studied / "study.json").read_bytes() == before
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "study.json").write_text("{")
    assert main([*command[:2], "--output", str(damaged), "--conditions", "guidance 3"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_says_which_denoiser(studied: Path) -> None:
    document = json.loads((studied / "study.json").read_text())
    listed = json.loads((SHAPES.folder / "assets.json").read_text())["files"]
    weights = listed["unet/diffusion_pytorch_model.safetensors"]["sha256"]
    assert document["conditions"]["base"]["denoiser"] == weights


def test_bad_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "study")]
    assert main(["--networks", str(tmp_path), *output]) == 2
    assert "npnet.safetensors" in capsys.readouterr().err
    assert main(["--networks", str(NETWORKS), "--best", "nobody", *output]) == 2
    assert "expected one of" in capsys.readouterr().err
    assert main(["--networks", str(NETWORKS), "--conditions", "nowhere", *output]) == 2
    assert "guidance 3" in capsys.readouterr().err
    few = ["--conditions", "few-step model"]
    assert "few-step model" in CONDITIONS["shapes"]
    assert main(["--networks", str(NETWORKS), *few, *output]) == 2
    assert "--few-step" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_signs_at_random_change_the_factors_and_not_the_matrix() -> None:
    matrix = torch.randn(3, 8, 8)
    u, s, vh = torch.linalg.svd(matrix)
    flipped = arms._random_signs(SVD(u, s, vh))
    torch.testing.assert_close(flipped.u @ torch.diag_embed(flipped.s) @ flipped.vh, matrix)
    assert not torch.equal(flipped.u, u)


def test_an_arm_is_its_network() -> None:
    network = checkpoint.read(NETWORKS / "prompt-attention.safetensors").network()
    made = {arm.name: arm for arm in arms.make_arms(arms.read_networks(NETWORKS), BASE, "prompt-attention")}
    noise, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 64)
    change = made["prompt-attention"].change
    assert change is not None
    with torch.no_grad():
        torch.testing.assert_close(
            change(noise, Conditioning({"prompt_embeds": embeds})), network(noise, embeds)
        )
        others = made["prompt-attention, prompts of others"].change
        assert others is not None
        torch.testing.assert_close(
            others(noise, Conditioning({"prompt_embeds": embeds})), network(noise, embeds.flip(0))
        )


def test_a_network_of_one_size_is_left_out_of_another() -> None:
    fixed = arms.read_networks(NETWORKS)
    torch.manual_seed(0)
    network = network_for(AnySizeConfig(16, 8, 8, 16, 96, 4, 16, 16, pooled_dim=64)).eval()
    wide = CONDITIONS["scenes"]["64x48"]
    made = arms.make_arms({**fixed, "prompt-attention": network}, wide, "prompt-attention")
    assert [arm.name for arm in made] == ["prompt-attention"]
    change = made[0].change
    assert change is not None
    texts = {"prompt_embeds": torch.randn(2, 16, 96), "pooled_prompt_embeds": torch.randn(2, 64)}
    golden = change(torch.randn(2, 16, 8, 6), Conditioning(texts))
    assert golden.shape == (2, 16, 8, 6)


def test_loras_are_arms_of_their_own(tmp_path: Path) -> None:
    networks = shutil.copytree(NETWORKS, tmp_path / "networks")
    config = LoraConfig("scenes", "transformer", "FluxTransformer2DModel", 16, 1, "proj_out", 1000.0)
    weights = {f"proj_out.lora_{name}.weight": torch.zeros(1, 1) for name in "AB"}
    write_lora(networks / "lora.safetensors", weights, config)
    assert arms.lora_arms(networks) == {f"golden:{networks / 'lora.safetensors'}": "lora"}
    assert sorted(arms.read_networks(networks)) == ["npnet", "prompt-attention"]


def test_the_second_world_in_short(tmp_path: Path) -> None:
    output = tmp_path / "study"
    options = ["--prompts", "4", "--batch", "4", "--resamples", "200", "--conditions", "few-step model,64x48"]
    networks = ["--world", "scenes", "--networks", str(SCENES.folder / "golden")]
    assert main([*networks, "--output", str(output), *options]) == 0
    document = json.loads((output / "study.json").read_text())
    for name, arms_of in (("few-step model", {"npnet", "prompt-attention"}), ("64x48", {"prompt-attention"})):
        rows = {row["arm"]: row for row in document["conditions"][name]["rows"]}
        expected = {"plain", "redenoised:guidance", "redenoised:text-mix", "best-of-2:scenes"}
        assert set(rows) == expected | arms_of | ({"best-of-4:scenes"} if name == "few-step model" else set())
        assert "against_plain" in rows["prompt-attention"]["second_judge"]
    assert "64x48 pixels" in (output / "study.md").read_text()


def test_both_judges_are_in_the_table() -> None:
    compared = {"difference": 0.1, "low": 0.05, "high": 0.15, "wins": 3, "ties": 6, "losses": 1}
    row = {"arm": "prompt-attention", "strict": 0.6, "noise": {"change": 0.5}, "against_plain": compared}
    row["second_judge"] = {"strict": 0.7, "against_plain": compared | {"difference": 0.2}}
    sample = {"steps": 10, "scheduler": None, "guidance": 1.0}
    condition = {"images": 10, "model": "scenes", "sample": sample, "size": "64x48", "rows": [row]}
    text = table({"conditions": {"wide": condition}})
    assert "64x48 pixels" in text
    assert "| 60.0 % | +10.0" in text
    assert "| 70.0 % | +20.0" in text
    head, rule, line = text.splitlines()[4:7]
    assert head.count("|") == rule.count("|") == line.count("|")
