"""GenEval 2's Soft-TIFA, on hand-made answers and on a tiny model with random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny
from tiny_painter import folder as painter

from regaze.evals.asking.models import Loaded
from regaze.evals.pictures import scorers
from regaze.evals.pictures.scorers import GenEval2, Scorer, geneval2
from regaze.evals.pictures.scorers.geneval2 import (
    Atom,
    answer_probability,
    read_atoms,
    soft_tifa,
)

PROMPT = "four white bicycles in front of a cow"
ROW: dict[str, Any] = {
    "prompt": PROMPT,
    "atom_count": 4,
    "vqa_list": [
        ["How many bicycles are in the image?", "four"],
        ["Are the bicycles white?", "Yes"],
        ["Are the bicycles in front of the cow?", "Yes"],
        ["How many cows are in the image?", "one"],
    ],
    "skills": ["count", "attribute", "position", "count"],
}
BLANK = Image.new("RGB", (8, 8))


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def atoms(folder: Path) -> list[Atom]:
    return read_atoms(write(folder, ROW))[PROMPT]


def test_the_spellings_are_those_of_the_paper_s_code(tmp_path: Path) -> None:
    count, colour, *_ = atoms(tmp_path)
    assert set(count.spellings) == {"four", "Four", " four", " Four", "4", " 4"}
    assert set(colour.spellings) == {"Yes", "yes", " yes", " Yes"}


def test_both_means_and_the_skills_of_hand_made_answers(tmp_path: Path) -> None:
    given = {"bicycles are": 0.5, "white": 0.9, "front": 0.2, "cows": 0.1}
    asked = []

    def probability(image: Image.Image, question: str, spellings: Sequence[str]) -> float:
        asked.append(question)
        return next(value for word, value in given.items() if word in question)

    found = soft_tifa(BLANK, atoms(tmp_path), probability)
    assert asked[0] == "How many bicycles are in the image? Answer in one word."
    assert found["soft_tifa_am"] == pytest.approx(1.7 / 4)
    assert found["soft_tifa_gm"] == pytest.approx((0.5 * 0.9 * 0.2 * 0.1) ** 0.25)
    assert found["count_sum"] == pytest.approx(0.6)
    assert found["count_atoms"] == 2
    assert (found["object_sum"], found["object_atoms"]) == (0, 0)
    sums = {key: np.array([2 * value]) for key, value in {**found, "images": 1.0}.items()}
    scorer = GenEval2(data="x")
    metrics = {name: float(value[0]) for name, value in scorer.metrics(sums).items()}
    assert metrics["tifa_count"] == pytest.approx(0.3)
    assert metrics["soft_tifa_gm"] == pytest.approx(found["soft_tifa_gm"])
    assert math.isnan(metrics["tifa_verb"])
    assert scorer.value(found) == found["soft_tifa_gm"]
    assert scorer.told(found) == ("Soft-TIFA GM 0.308 (attribute 0.90, count 0.30, position 0.20)")


def test_an_atom_that_is_surely_missing_takes_the_geometric_mean_with_it(tmp_path: Path) -> None:
    found = soft_tifa(BLANK, atoms(tmp_path), lambda i, question, s: float("white" in question))
    assert (found["soft_tifa_gm"], found["soft_tifa_am"]) == (0.0, 0.25)


class Spelt:
    """A tokenizer of whole words, in which ``4`` and `` 4`` begin alike."""

    unk_token_id = 0

    def encode(self, word: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        known = {"yes": 1, "Yes": 2, " yes": 3, "four": 4, "4": 5, " 4": 5}
        return [known.get(word, 0), 9]


def test_probabilities_of_first_tokens_add_up_and_none_counts_twice() -> None:
    logits = torch.tensor([[[0.0] * 6, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]])

    class Inputs(dict[str, Any]):
        def to(self, *where: Any) -> Inputs:
            return self

    processor = SimpleNamespace(
        tokenizer=Spelt(), apply_chat_template=lambda messages, **options: Inputs()
    )
    model: Any = type(
        "Model", (), {"device": "cpu", "dtype": torch.float32,
                      "__call__": lambda self, **k: SimpleNamespace(logits=logits)},
    )()  # fmt: skip
    probability = answer_probability(model, processor)
    whole = logits[0, -1].exp().sum()
    yes = probability(BLANK, "?", ["Yes", "yes", " yes", " Yes"])
    assert yes == pytest.approx(float(logits[0, -1, 1:4].exp().sum() / whole))
    four = probability(BLANK, "?", ["four", "Four", "4", " 4"])
    assert four == pytest.approx(float(logits[0, -1, 4:6].exp().sum() / whole))
    with pytest.raises(ValueError, match="tokenizer knows no way to write 'nine'"):
        probability(BLANK, "?", ["nine", " nine"])


def test_a_model_is_asked_as_it_would_be_to_generate() -> None:
    judge = tiny("qwen3_vl")
    probability = answer_probability(judge.model, judge.processor)
    image = judge.picture(0)
    ids = {judge.processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in "ab"}
    inputs = judge.inputs(["a dog Answer in one word."], [[image]])
    out = judge.model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    wanted = out.scores[0].softmax(-1)[0, sorted(ids)].sum()
    found = probability(image, "a dog Answer in one word.", list("ab"))
    assert found == pytest.approx(float(wanted), rel=1e-5)
    assert found != probability(judge.picture(1), "a dog Answer in one word.", list("ab"))


def test_the_scorer_knows_its_data_and_its_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = tiny("qwen3_vl")
    monkeypatch.setattr(
        geneval2,
        "load",
        lambda name, **k: Loaded(judge.model, judge.processor, {"name": name, **k}),
    )
    monkeypatch.setattr(Atom, "spellings", ["a", "b"])
    path = write(tmp_path, ROW)
    scorer = scorers.parse(f"geneval2:data={path},model=DIR")
    assert isinstance(scorer, Scorer)
    ready = scorer.load("cpu")
    pictures = [judge.picture(seed) for seed in (0, 1)]
    one, other = ready.score(pictures, [PROMPT, PROMPT], pictures)
    assert one != other
    assert 0 < one["soft_tifa_gm"] <= one["soft_tifa_am"] < 1
    assert ready.identity["judge"] == {"name": "DIR", "dtype": "auto", "device": "cpu"}
    before = ready.identity["data_sha256"]
    write(tmp_path, {**ROW, "atom_count": 5})
    assert scorer.load("cpu").identity["data_sha256"] != before


def test_what_cannot_be_scored_is_refused_before_anything_is_painted(tmp_path: Path) -> None:
    from command_line import on_tiny, one_line

    path = write(tmp_path, ROW)
    run = tmp_path / "run"
    asked = ("--prompt", "a dog", "--prompt", "a cat", "--out", str(run))
    result = on_tiny("eval images", *asked, "--scorer", f"geneval2:data={path},model={painter()}")
    assert result.exit_code == 2
    assert f"{path} has no questions about 'a dog'" in one_line(result)
    assert not run.exists()
    result = on_tiny("eval images", *asked, "--scorer", "geneval2")
    assert "geneval2 needs its questions: --score geneval2:data=" in one_line(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vqa_list": []}, "no line of GenEval 2"),
        ({"prompt": 3}, "no line of GenEval 2"),
        ({"skills": ["count"]}, "skills must name the skill of each of 4 questions"),
        ({"skills": ["count", "shape", "count", "count"]}, "unknown skill 'shape'"),
        ({"vqa_list": [["How many?", "eleven"]], "skills": ["count"]}, "a number from one to ten"),
        ({"vqa_list": [["Is it?", "No"]], "skills": ["count"]}, "must be Yes, not 'No'"),
        ({"vqa_list": [["Is it?"]], "skills": ["count"]}, "expected a question and its answer"),
        ({"vqa_list": [["Is it?", 1]], "skills": ["count"]}, "expected a question and its answer"),
    ],
)
def test_odd_lines_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**ROW, "prompt": "x"}, {**ROW, **change})
    with pytest.raises(ValueError, match=f"{path}:2.*{message}"):
        read_atoms(path)


def test_a_prompt_may_not_have_two_lists_of_questions(tmp_path: Path) -> None:
    other = {**ROW, "vqa_list": ROW["vqa_list"][:1], "skills": ["count"]}
    with pytest.raises(ValueError, match=":2: the prompt .* has other questions further up"):
        read_atoms(write(tmp_path, ROW, other))
    with pytest.raises(ValueError, match="holds no prompts of GenEval 2"):
        read_atoms(write(tmp_path))


def test_the_published_file_is_read(data_dir: Path) -> None:
    path = data_dir / "geneval2" / "geneval2_data.jsonl"
    if not path.is_file():
        pytest.skip("REGAZE_DATA has no geneval2/geneval2_data.jsonl")
    found = read_atoms(path)
    assert len(found) == 800
    assert sum(atom.skill == "verb" for each in found.values() for atom in each) == 86
