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
