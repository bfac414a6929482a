"""HPS v2.1, ImageReward and the aesthetic predictor against straight computations on published names."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from npnet_training.errors import ScorerError
from npnet_training.scorers import load_scorer
from npnet_training.scorers.aesthetic import Aesthetic
from npnet_training.scorers.hpsv2 import HPSv2, prepare
from npnet_training.scorers.imagereward import ImageReward
from npnet_training.scorers.published import open_clip_state, read_state
from support import published_scorers as published
from support.pipelines import PIPELINES

PROMPTS = ["a red circle", "a blue square left of a red circle"]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def pictures() -> list[Image.Image]:
    """Not square, and of different sizes."""
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
        for height, width in ((70, 53), (40, 90))
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from npnet_training.shapes.networks import make_tokenizer

    base = tmp_path_factory.mktemp("scorers")
    return {
        "clip": published.write_clip(base / "clip"),
        "hpsv2": published.write_hpsv2(base / "hpsv2", len(make_tokenizer())),
        "aesthetic": published.write_aesthetic(base / "aesthetic"),
        "imagereward": published.write_image_reward(base / "imagereward"),
    }


def norm(x: Tensor, state: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def open_clip_blocks(x: Tensor, state: dict[str, Tensor], prefix: str, mask: Tensor | None = None) -> Tensor:
    """Residual blocks as open_clip has them, on PyTorch's own attention."""
    for number in range(published.LAYERS):
        block = f"{prefix}transformer.resblocks.{number}."
        attention = nn.MultiheadAttention(published.WIDTH, 2, batch_first=True)
        own = f"{block}attn."
        attention.load_state_dict(
            {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
        )
        y = norm(x, state, f"{block}ln_1")
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = linear(norm(x, state, f"{block}ln_2"), state, f"{block}mlp.c_fc")
        x = x + linear(F.gelu(y), state, f"{block}mlp.c_proj")
    return x


def cosines_of_open_clip(state: dict[str, Tensor], tokens: list[list[int]], pixels: Tensor) -> list[float]:
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=published.PATCH).flatten(2).mT
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = open_clip_blocks(norm(x, state, "visual.ln_pre"), state, "visual.")
    seen = norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"]
    values = []
    for row, ids in enumerate(tokens):  # one by one: no padding
        y = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
        causal = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        y = norm(open_clip_blocks(y[None], state, "", causal), state, "ln_final")
        values.append(F.cosine_similarity(y[0, -1] @ state["text_projection"], seen[row], dim=0).item())
    return values


@torch.no_grad()
def test_hpsv2(folders: dict[str, str]) -> None:
    own: dict[str, Any] = {"weights": folders["hpsv2"], "processor": folders["clip"]}
    scorer = HPSv2(**own)
    from npnet_training.shapes.networks import make_tokenizer

    tokenizer = make_tokenizer()
    state = published.open_clip_state(len(tokenizer))
    pixels = torch.stack([prepare(image, published.SIZE) for image in pictures()])
    expected = cosines_of_open_clip(state, tokenizer(PROMPTS)["input_ids"], pixels)
    assert scorer.score(PROMPTS, pictures()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert scorer.score(PROMPTS[1:], pictures()[1:]) == pytest.approx(expected[1:], rel=1e-4, abs=1e-6)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    assert len(scorer.score(["a red circle " * 20], pictures()[:1])) == 1  # more tokens than it reads


@pytest.mark.parametrize("size", [(70, 53), (40, 90), (32, 32), (20, 11), (1, 500)])
def test_hpsv2_sees_the_whole_image_between_black_bars(size: tuple[int, int]) -> None:
    height, width = size
    array = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    found = prepare(Image.fromarray(array), 32).permute(1, 2, 0).numpy() * STD + MEAN
    scale = 32 / max(size)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    # Pillow's bicubic filter in floating point, as torch's antialiased one.
    resized = np.stack(
        [
            np.asarray(
                Image.fromarray(array[..., channel].astype(np.float32) / 255).resize(
                    (wide, tall), Image.Resampling.BICUBIC
                )
            )
            for channel in range(3)
        ],
        -1,
    )
    top, left = (32 - tall) // 2, (32 - wide) // 2
    expected = np.zeros((32, 32, 3), np.float32)
    expected[top : top + tall, left : left + wide] = resized
    np.testing.assert_allclose(found, expected, atol=2e-5)


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """Shorter side to `size` by Pillow's bicubic filter, the middle of it, normalised; (size, size, 3)."""
    scale = size / min(image.size)
    width, height = (max(size, int(side * scale)) for side in image.size)
    array = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (height - size) // 2, (width - size) // 2
    return (array[top : top + size, left : left + size] - MEAN) / STD


@torch.no_grad()
def test_aesthetic(folders: dict[str, str]) -> None:
    from transformers import CLIPModel

    load: Any = CLIPModel.from_pretrained
    clip = load(folders["clip"])
    pixels = np.stack([centre_crop(image, published.SIZE) for image in pictures()])
    # which are normalised
    x = clip(
        input_ids=torch.tensor([[0, 1]]), pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2)
    ).image_embeds
    state = published.head_state(published.PROJECTION)
    for number in ("0", "2", "4", "6", "7"):
        x = linear(x, state, f"layers.{number}")
    scorer = Aesthetic(weights=folders["aesthetic"], processor=folders["clip"])
    assert scorer.score(PROMPTS, pictures()) == pytest.approx(x[:, 0].tolist(), rel=1e-4)
    assert scorer.score(["x"], pictures()[1:]) == pytest.approx(x[1:, 0].tolist(), rel=1e-4)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(T, width) each, without a mask."""
    q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def reward_of_the_published_code(state: dict[str, Tensor], ids: list[int], pixels: Tensor) -> float:
    """models/vit.py, models/med.py and ImageReward.py, one image and prompt, without padding."""
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    x = F.conv2d(
        pixels[None], state[f"{vision}patch_embed.proj.weight"], state[f"{vision}patch_embed.proj.bias"],
        stride=published.PATCH,
    )  # fmt: skip
    x = torch.cat([state[f"{vision}cls_token"][0], x[0].flatten(1).T]) + state[f"{vision}pos_embed"][0]
    for number in range(published.LAYERS):
        block = f"{vision}blocks.{number}."
        q, k, v = linear(norm(x, state, f"{block}norm1", 1e-6), state, f"{block}attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, 2), state, f"{block}attn.proj")
        y = linear(norm(x, state, f"{block}norm2", 1e-6), state, f"{block}mlp.fc1")
        x = x + linear(F.gelu(y), state, f"{block}mlp.fc2")
    x = norm(x, state, f"{vision}norm", 1e-6)
    words = state[f"{text}embeddings.word_embeddings.weight"][ids]
    places = state[f"{text}embeddings.position_embeddings.weight"][: len(ids)]
    y = norm(words + places, state, f"{text}embeddings.LayerNorm", 1e-12)
    for number in range(published.LAYERS):
        layer = f"{text}encoder.layer.{number}."
        for name, other in (("attention", None), ("crossattention", x)):
            source = y if other is None else other
            q = linear(y, state, f"{layer}{name}.self.query")
            k, v = (linear(source, state, f"{layer}{name}.self.{kind}") for kind in ("key", "value"))
            z = linear(attend(q, k, v, 3), state, f"{layer}{name}.output.dense")
            y = norm(z + y, state, f"{layer}{name}.output.LayerNorm", 1e-12)
        z = linear(F.gelu(linear(y, state, f"{layer}intermediate.dense")), state, f"{layer}output.dense")
        y = norm(z + y, state, f"{layer}output.LayerNorm", 1e-12)
    z = y[0]
    for number in ("0", "2", "4", "6", "7"):
        z = linear(z, state, f"mlp.layers.{number}")
    return ((z - 0.16717362830052426) / 1.0333394966054072).item()


@torch.no_grad()
def test_image_reward(folders: dict[str, str]) -> None:
    state = published.image_reward_state()
    scorer = ImageReward(weights=folders["imagereward"], processor=folders["imagereward"])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *published.WORDS]
    expected = []
    for prompt, image in zip(PROMPTS, pictures(), strict=True):
        ids = [words.index(word) for word in ("[CLS]", *prompt.split(), "[SEP]")]
        pixels = torch.from_numpy(centre_crop(image, published.SIZE)).permute(2, 0, 1)
        expected.append(reward_of_the_published_code(state, ids, pixels))
    assert scorer.score(PROMPTS, pictures()) == pytest.approx(expected, rel=1e-4)
    assert scorer.score(PROMPTS[1:], pictures()[1:]) == pytest.approx(expected[1:], rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    # It reads 35 tokens: 33 words, and no more.
    first, second = (scorer.score([" ".join(["red"] * 33 + [last])], pictures()[:1]) for last in ("a", "of"))
    assert first == second


def test_collect_and_evaluate_take_them(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from npnet_training.collecting.cli import main as collect
    from npnet_training.evaluation import Results
    from npnet_training.evaluation.cli import main as evaluate

    for cls, name, processor in (
        (HPSv2, "hpsv2", "clip"), (ImageReward, "imagereward", "imagereward"),
        (Aesthetic, "aesthetic", "clip"),
    ):  # fmt: skip
        monkeypatch.setattr(cls, "weights", folders[name])
        monkeypatch.setattr(cls, "processor", folders[processor])
    torch.manual_seed(0)
    PIPELINES["sdxl"]().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {letter}" for letter in "abcd"))
    common = [
        "--model", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.txt"), "--batch", "4",
        "--scorers", "hpsv2,imagereward,aesthetic", "--redenoise.steps", "4", "--sample.steps", "2",
        "--offline",
    ]  # fmt: skip
    rule = "hpsv2 rises and imagereward holds and aesthetic reaches -1000"
    pairs = tmp_path / "pairs"
    assert collect([*common, "--output", str(pairs), "--seeds", "4", "--rule", rule]) in (0, 1)
    rows = [row for path in (pairs / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 16
    assert {row["kept"] for row in rows} == {False, True}
    for row in rows:
        rises = row["redenoised/hpsv2"] > row["plain/hpsv2"]
        assert row["kept"] == (rises and row["redenoised/imagereward"] >= row["plain/imagereward"])
    output = tmp_path / "evaluation"
    assert evaluate([*common, "--output", str(output), "--arms", "redenoised,best-of-2:imagereward"]) == 0
    results = Results.read(output)
    assert results.scorers == ["hpsv2", "imagereward", "aesthetic"]
    best, plain = (results.arms[arm]["scores"] for arm in ("best-of-2:imagereward", "plain"))
    assert all(b >= p for b, p in zip(best["imagereward"], plain["imagereward"], strict=True))
    assert np.isfinite([value for values in best.values() for value in values]).all()


class TestBadWeights:
    def test_offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for name in ("hpsv2", "imagereward", "aesthetic"):
            with pytest.raises(
                ScorerError, match=rf"(?s)the scorer {name} cannot be loaded: .*run it once without"
            ):
                load_scorer(name, offline=True)

    def test_missing_file(self, folders: dict[str, str]) -> None:
        with pytest.raises(ScorerError, match=r"HPS_v2.1_compressed.pt of .*No such file"):
            HPSv2(weights=folders["aesthetic"], processor=folders["clip"])

    def test_damaged_file(self, folders: dict[str, str], tmp_path: Path) -> None:
        whole = Path(folders["aesthetic"], Aesthetic.file).read_bytes()
        for part in (b"", whole[:-500], b"<html>not found</html>"):
            (tmp_path / Aesthetic.file).write_bytes(part)
            with pytest.raises(ScorerError, match=r"(?s)expected a PyTorch file of tensors.*delete it"):
                Aesthetic(weights=str(tmp_path), processor=folders["clip"])

    def test_no_code_is_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "run",))

        torch.save({"layers.0.weight": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(ScorerError, match="expected a PyTorch file of tensors"):
            read_state(tmp_path / "evil.pth")
        assert not (tmp_path / "run").exists()

    def test_another_model(self, folders: dict[str, str], tmp_path: Path) -> None:
        state = published.open_clip_state(20)
        with pytest.raises(ScorerError, match="given 'visual.head.weight'"):
            open_clip_state(state | {"visual.head.weight": torch.ones(1)})
        torch.save({"state_dict": state}, tmp_path / HPSv2.file)
        with pytest.raises(ScorerError, match=r"another CLIPModel"):
            HPSv2(weights=str(tmp_path), processor=folders["clip"])
        rewards = published.image_reward_state()
        del rewards["blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"]
        torch.save(rewards, tmp_path / "ImageReward.pt")
        (tmp_path / "med_config.json").write_bytes(
            Path(folders["imagereward"], "med_config.json").read_bytes()
        )
        with pytest.raises(ScorerError, match=r"without encoder.layer.1.crossattention.self.key.bias"):
            ImageReward(weights=str(tmp_path), processor=folders["imagereward"])
        torch.save({"layers.0.weight": torch.ones(3, 4)}, tmp_path / Aesthetic.file)
        with pytest.raises(ScorerError, match="expected a head of"):
            Aesthetic(weights=str(tmp_path), processor=folders["clip"])
