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


def test_json_lines_may_have_negative_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a kitchen", "negative": " a  fridge "}\n{"prompt": "b"}\n')
    assert prompts.read(path) == [
        Prompt("0000", "a kitchen", negative="a fridge"), Prompt("0001", "b"),
    ]  # fmt: skip


def test_negation_is_asked_for_with_a_negative_prompt() -> None:
    found = prompts.painting_world("validation", ["pair", "negation"], 4)
    pair, negation = found[0], found[-1]
    assert (pair.asked, pair.negative) == ("", "")
    assert negation.group == "negation"
    assert negation.asked == negation.text.replace(" and ", ", ").replace(" without ", " and ")
    assert negation.text.endswith(f" without {negation.negative}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("{", r"jsonl:1: malformed JSON"),
        ('{"prompt": " "}', r"jsonl:1 has the prompt ' '"),
        ('{"prompt": null}', r"jsonl:1 has the prompt None"),
        ('{"prompt": "a"}\n{"prompt": ["a", "b"]}', r"jsonl:2 has the prompt \['a', 'b'\]"),
        ('{"prompt": 5}', r"jsonl:1 has the prompt 5"),
        ('{"text": "a"}', r"jsonl:1 has no prompt"),
        ('{"prompt": "a", "prompt": "b"}', r"jsonl:1: the key 'prompt' occurs twice"),
        ('{"prompt": "a", "id": [1]}', r"jsonl:1: id must be text or a number, not \[1\]"),
        ('{"prompt": "a", "negative": 5}', r"jsonl:1: negative must be text, not 5"),
        ("[" * 100_000, r"jsonl:1: malformed JSON: nested too deeply"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}', r":1 and .*:2 .* same id '1'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prompts.read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.JSONL", "p.json"])
def test_prompts_are_read_as_questions_are(tmp_path: Path, name: str, encoding: str) -> None:
    rows = {
        "p.txt": "a\u2028b café\r\nc\n",
        "p.json": '[{"prompt": "a\u2028b café"}, {"prompt": "c"}]',
    }
    lines = '{"prompt": "a\u2028b café"}\n{"prompt": "c"}\n'
    (tmp_path / name).write_bytes(rows.get(name, lines).encode(encoding))
    assert [prompt.text for prompt in prompts.read(tmp_path / name)] == ["a b café", "c"]


def test_text_in_another_encoding_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("a fox\ncafé".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path}:2: byte 0xe9 is no utf-8"):
        prompts.read(path)


@pytest.mark.parametrize(
    "text", ['{"prompt": "a"}\n', '[{"prompt": "a"}]', '[\n{"prompt": "a"}\n]']
)
def test_json_in_a_text_file_is_not_painted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"holds JSON: name it \.jsonl"):
        prompts.read(path)


def test_geneval_2_is_grouped_by_its_atoms(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "atom_count": 3}\n{"prompt": "b", "atom_count": 10}')
    assert [prompt.group for prompt in prompts.read(path)] == ["3 atoms", "10 atoms"]


def test_the_painting_world_gives_prompts_its_checker_reads() -> None:
    found = prompts.painting_world("test", ["pair", "composition"], 3)
    assert [prompt.group for prompt in found] == ["pair"] * 3 + ["composition"] * 3
    assert len({prompt.id for prompt in found}) == 6
    for prompt in found:
        parse(prompt.text)


def test_a_prompt_that_the_painting_world_draws_again_is_painted_once() -> None:
    texts = [prompt.text for prompt in prompts.painting_world("test", ["single"], 60)]
    assert len(texts) == len(set(texts)) <= 20
