import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from npnet_training.errors import PromptsError
from npnet_training.prompts import read_prompts


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\ufeffa cat\n\na dog, big\r\n"),
        ("a.csv", 'category,prompt\nx,a cat\ny,"a dog, big"\n'),
        ("a.jsonl", '{"tag": "x", "prompt": "a cat"}\n\n{"prompt": "a dog, big"}\n'),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(str(tmp_path / name))] == ["a cat", "a dog, big"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.CSV", "prompt\na cat\na dog, big\n"),  # one column: commas and all
        ("a.csv", 'prompt\na cat\n"a dog, big"\n'),
        ("a.tsv", "prompt\tcategory\na cat\tx\na dog, big\ty\n"),
        ("a.json", '["a cat", "a dog, big"]'),
        ("a.json", '[\n{"prompt": "a cat"},\n{"prompt": "a dog, big"}\n]'),
        ("a.json", '{"prompt": "a cat"}\n{"prompt": "a dog, big"}'),
        ("a.jsonl", '"a cat"\n"a dog, big"\n'),
        ("a.txt", '{"prompt": "a cat"}\n{"prompt": "a dog, big"}'),
        ("prompts", '\n["a cat",\n"a dog, big"]'),
    ],
)
@pytest.mark.parametrize("zipped", ["", ".gz", "by content"])
def test_whatever_its_name(tmp_path: Path, name: str, text: str, zipped: str) -> None:
    path = tmp_path / (name + zipped if zipped == ".gz" else name)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if zipped else text.encode())
    assert [prompt.text for prompt in read_prompts(str(path))] == ["a cat", "a dog, big"]


def test_text_that_only_begins_like_json(tmp_path: Path) -> None:
    lines = ["[cat] in a box", "{a dog}", "a cow"]
    for kept in (lines, lines[1:]):
        (tmp_path / "a.txt").write_text("\n".join(kept))
        assert [prompt.text for prompt in read_prompts(str(tmp_path / "a.txt"))] == kept


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a cat")
    assert next(read_prompts("~/a.txt")).text == "a cat"


def test_a_pipe(tmp_path: Path) -> None:
    """It can be read once only."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        written = pool.submit((tmp_path / "pipe").write_text, "a cat\na dog")
        assert [prompt.text for prompt in read_prompts(str(tmp_path / "pipe"))] == ["a cat", "a dog"]
        written.result()


def test_other_fields_are_kept(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text('{"tag": "two_object", "prompt": "a cat"}')
    assert next(read_prompts(str(tmp_path / "g.jsonl"))).fields == {"tag": "two_object"}


def test_shapes() -> None:
    first = [prompt.text for prompt in read_prompts("shapes:held-out:5:3")]
    assert first == [prompt.text for prompt in read_prompts("shapes:held-out:9:3")][:5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "at least one prompt"),
        ("a.txt", b"\xff\xfe\xfa", "UTF-8"),
        ("a.txt", b"x" * 20_000, "at most 10000 characters"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt"', "a.jsonl:2: expected a JSON object"),
        ("a.jsonl", b"[1]", "expected a text in prompt or caption or text"),
        ("a.json", b'["a", {"x": 1}]', "a.json, item 2: expected a text in prompt"),
        ("a.json", b'["a", "b"', "a.json:1: expected a JSON object"),
        ("a.json", b"a cat", "a.json:1: expected a JSON object"),
        ("a.csv", b"prompt,tag\na dog, big,x\n", "a.csv:2: expected 2 values, .* given 3: .*in quotes"),
        ("a.csv", b"tag,prompt\nx,a cat\ny,a dog, big\n", "a.csv:3: expected 2 values"),
        ("a.txt.gz", b"\x1f\x8b\x08\x00cut", "UTF-8"),
        ("a.txt.gz", gzip.compress(b"a cat", mtime=0)[:-4], "UTF-8"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "UTF-8"),
        ("a.bin", b"\0\0\0\0", "not text"),
        ("a.csv", b"x,y\n1,2\n", "a.csv:2: expected a text in prompt or caption or text"),
        ("a.csv", b'prompt\na cat\n"a dog\na cow\n', "a.csv:3: expected .* quotes closed"),
        ("a.csv", b'prompt\na cat\n"a" dog\na cow\n', "a.csv:3: expected .* quotes closed"),
        ("a.csv", b'"prompt\na cat\n', "a.csv:1: expected .* quotes closed"),
        ("a.jsonl", b'{"prompt": "a \\ud800"}', "half a surrogate pair"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptsError, match=message):
        list(read_prompts(str(tmp_path / name)))


@pytest.mark.parametrize("source", ["nowhere.txt", "shapes:held-out", "shapes:test:5", "shapes:train:0"])
def test_bad_sources(source: str) -> None:
    with pytest.raises(PromptsError, match=r"nowhere|COUNT|at least one"):
        list(read_prompts(source))
