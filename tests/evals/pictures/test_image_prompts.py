from __future__ import annotations

from pathlib import Path

import pytest

from regaze.evals.pictures import prompts
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.sandbox.painting.prompts import parse


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red fox\n\n  a  blue bird \n", encoding="utf-8")
    assert prompts.read(path) == [Prompt("0000", "a red fox"), Prompt("0001", "a blue bird")]


def test_json_lines_may_name_ids_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a", "id": "x", "group": "g"}\n{"prompt": "b", "tag": "counting"}\n'
    )
    assert prompts.read(path) == [Prompt("x", "a", "g"), Prompt("0001", "b", "counting")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("{", r"line 1 is not JSON"),
        ('{"prompt": " "}', r'line 1 has no "prompt"'),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}', r"lines 1 and 2 .* same id '1'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prompts.read(path)


def test_the_painting_world_gives_prompts_its_checker_reads() -> None:
    found = prompts.painting_world("test", ["pair", "composition"], 3)
    assert [prompt.group for prompt in found] == ["pair"] * 3 + ["composition"] * 3
    assert len({prompt.id for prompt in found}) == 6
    for prompt in found:
        parse(prompt.text)


def test_a_prompt_that_the_painting_world_draws_again_is_painted_once() -> None:
    texts = [prompt.text for prompt in prompts.painting_world("test", ["single"], 60)]
    assert len(texts) == len(set(texts)) <= 20
