"""Every benchmark, from what a command line says to its task."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hubs import fake_hub
from PIL import Image

from regaze.evals.benchmarks.kinds import looks_like
from regaze.evals.benchmarks.registry import BENCHMARKS, find
from regaze.evals.benchmarks.source import Source
from regaze.evals.runs import store

COCO = {"image": "1.jpg", "question_id": 1, "text": "Is there a dog?", "label": "yes"}
AOKVQA = {
    **{"question_id": "q", "image_id": 1, "question": "What?", "choices": list("abcd")},
    **{"correct_choice_idx": 1, "direct_answers": ["b"] * 10, "difficult_direct_answer": False},
}
TEXTVQA = {"question_id": 1, "image_id": "1", "question": "What?", "answers": ["x"] * 10}
VSTAR = {
    **{"image": "direct_attributes/1.jpg", "text": "What?\n(A) a\n(B) b", "label": "B"},
    **{"category": "direct_attributes", "question_id": "0"},
}
VSTAR_LIKELY = {"target_object": ["x"], "question": "What?", "options": ["a", "b"]}
MMHAL = {
    **{"question_type": "counting", "image_src": "http://x/1.jpg", "image_content": ["cat"]},
    **{"question": "What?", "gt_answer": "a", "model_answer": ""},
}
HALLUSION = {
    **{"category": "VD", "subcategory": "chart", "set_id": "0", "figure_id": "1"},
    **{"question_id": "0", "visual_input": "1", "question": "Is it?", "gt_answer": "1"},
}
MMVP = {"Index": 1, "Question": "?", "Options": "(a) x (b) y", "Correct Answer": "(a)"}
NATURAL = {
    **{"Question_0": "Is it?", "Question_1": "Is it not?", "Image_0": "1.jpg", "Image_1": "2.jpg"},
    **{"Image_0_Question_0": "Yes", "Image_1_Question_0": "No", "Image_0_Question_1": "No"},
    **{"Image_1_Question_1": "Yes", "Question_Type": "yes_no"},
}
OPOPE = {"image": "1.jpg", "objects": ["dog", "cat", "cup"]}
ROWS: dict[str, dict[str, Any]] = {
    **{"POPE": COCO, "A-OKVQA": AOKVQA, "TextVQA": TEXTVQA, "V*Bench (letters)": VSTAR},
    **{"V*Bench (likelihood)": VSTAR_LIKELY, "MMHal-Bench": MMHAL, "HallusionBench": HALLUSION},
    **{"MMVP": MMVP, "OPOPE": OPOPE, "AMBER": {"id": 1, "image": "1.jpg", "query": "?"}},
    "MME": {"question_id": "1", "category": "count", "question": "?", "answer": "Yes"},
    "NaturalBench": NATURAL,
    "CHAIR (COCO)": {"images": [], "annotations": []},
}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), 9).save(path)


def text(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def files(name: str, folder: Path) -> Source:
    """Smallest files of a benchmark, as released."""
    images = folder / "images"
    for place in ("1.jpg", "2.jpg", "000000000001.jpg", "VD/chart/0_1.png"):
        picture(images / place)
    if name == "opope":
        rows = [OPOPE, {"image": "2.jpg", "objects": ["car", "bus", "cow"]}]
        data = text(folder / "segmentation.json", "\n".join(map(json.dumps, rows)))
        return Source(name, (data,), str(images), n_images=2)
    if name == "amber":
        annotation = {"id": 1, "type": "discriminative-relation", "truth": "yes"}
        text(folder / "data" / "annotations.json", [annotation])
        query = [{"id": 1, "image": "1.jpg", "query": "Is it?"}]
        text(folder / "data" / "query" / "query_all.json", query)
        return Source(name, (str(folder / "data"),), str(images))
    if name == "mme":
        text(folder / "MME" / "count" / "1.txt", "Is it?\tYes\nIs it not?\tNo\n")
        picture(folder / "MME" / "count" / "1.jpg")
        return Source(name, (str(folder / "MME"),))
    if name == "mmvp":
        table: list[list[Any]] = [[*MMVP], [*MMVP.values()], [2, *list(MMVP.values())[1:]]]
        lines = "\n".join(",".join(f'"{cell}"' for cell in row) for row in table)
        return Source(name, (text(folder / "Questions.csv", lines),), str(images))
    if name == "vstar":
        text(folder / "vstar" / "test_questions.jsonl", VSTAR)
        picture(folder / "vstar" / "direct_attributes" / "1.jpg")
        text(folder / "vstar" / "direct_attributes" / "1.json", VSTAR_LIKELY)
        return Source(name, (str(folder / "vstar"),))
    content = {
        "pope": [COCO],
        "hallusionbench": [HALLUSION],
        "naturalbench": [NATURAL],
        "textvqa": {"data": [TEXTVQA]},
        "aokvqa": [AOKVQA],
        "mmhal": [MMHAL],
    }[name]
    return Source(name, (text(folder / f"{name}.json", content),), str(images))


IN_FILES = [name for name in BENCHMARKS if name not in ("chair", "amber-generative")]


@pytest.mark.parametrize("name", IN_FILES)
def test_each_benchmark_is_built_from_its_files_under_its_usual_profiles(
    name: str, tmp_path: Path
) -> None:
    source = files(name, tmp_path)
    tasks = source.tasks()
    assert [task.profile for task in tasks] == list(find(name).profiles)
    assert {task.name for task in tasks} == {name}
    for task in tasks:
        assert task.items == tasks[0].items or name == "mmvp"  # Its labels depend on the profile.
        assert task.headline
        assert set(task.headline) <= set(task.directions)
        # Thresholds are told beside it.
        assert "accuracy" in task.directions or not task.yes_no
        for item in task.items:
            assert task.load_image(item).mode == "RGB"
            task.counts(item, "yes")
    noted = json.loads(json.dumps(source.noted()))
    noted.pop("sha256")
    assert store.restored(tmp_path, Source, noted) == source


def test_every_profile_of_v_star_and_aokvqa_can_be_asked_for(tmp_path: Path) -> None:
    for name, profile in (("vstar", "likelihood"), ("aokvqa", "official"), ("aokvqa", "direct")):
        source = files(name, tmp_path)
        asked = Source(name, source.data, source.images, profiles=(profile,)).tasks()
        assert [task.profile for task in asked] == [profile]


HUB_ROWS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "pope": {"test": [{"question_id": 1, "question": "Is it?", "answer": "yes", "category": "x"}]},
    "mme": {
        "test": [
            {"question_id": "1.jpg", "category": "count", "question": "?", "answer": answer}
            for answer in ("Yes", "No")
        ]
    },
    "mmvp": {"train": [MMVP, {**MMVP, "Index": 2}]},
    "hallusionbench": {
        "image": [HALLUSION],
        "non_image": [{**HALLUSION, "category": "VS", "visual_input": "0", "figure_id": "0"}],
    },
    "textvqa": {"validation": [TEXTVQA]},
    "aokvqa": {"validation": [{**AOKVQA, "direct_answers": str(["b"] * 10)}]},
    "vstar": {"test": [VSTAR]},
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_benchmarks_of_the_hub_are_built_from_its_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {
        split: [
            {k: v for k, v in row.items() if k not in ("image", "image_id") or name == "textvqa"}
            | {"image": None if split == "non_image" else Image.new("L", (2, 2), 5)}
            for row in rows
        ]
        for split, rows in HUB_ROWS[name].items()
    }
    asked = fake_hub(monkeypatch, splits)
    (task, *_) = Source(name, ("someone/copy",)).tasks()
    assert {place for place, _ in asked} == {"someone/copy"}
    assert len(task.items) == sum(map(len, splits.values()))
    for item in task.items:
        if item.image is not None:
            assert task.load_image(item).getpixel((0, 0)) == (5, 5, 5)


def test_what_is_not_on_the_hub_says_so() -> None:
    with pytest.raises(ValueError, match="no file or folder x/amber, and AMBER isn't read from"):
        Source("amber", ("x/amber",)).tasks()
    with pytest.raises(ValueError, match=r"no file or folder x/amber\.json"):
        Source("amber", ("x/amber.json",)).tasks()


def test_only_benchmarks_with_scenes_run_without_data() -> None:
    for name, benchmark in BENCHMARKS.items():
        if benchmark.sandbox:
            assert Source(name, n_images=2).tasks()
        else:
            wanted = re.escape(f"where are the files of {benchmark.title}?")
            with pytest.raises(ValueError, match=wanted):
                Source(name).tasks()


def test_titles_are_written_as_their_authors_do(tmp_path: Path) -> None:
    assert files("vstar", tmp_path).title == "V*Bench"
    assert Source("pope").title == "POPE on prior-free scenes"


def test_the_hash_of_question_files_is_noted(tmp_path: Path) -> None:
    source = files("pope", tmp_path)
    wanted = hashlib.sha256(Path(source.data[0]).read_bytes()).hexdigest()
    assert source.noted()["sha256"] == {"pope.json": wanted}
    assert list(files("vstar", tmp_path).noted()["sha256"]) == ["test_questions.jsonl"]


def test_options_that_do_nothing_are_refused(tmp_path: Path) -> None:
    source = files("textvqa", tmp_path)
    with pytest.raises(ValueError, match="the questions of TextVQA take --limit"):
        Source("textvqa", source.data, source.images, n_images=3).tasks()
    with pytest.raises(ValueError, match="--data takes one file or folder of A-OKVQA, not 2"):
        Source("aokvqa", source.data * 2, source.images).tasks()
    with pytest.raises(ValueError, match="needs --images"):
        Source("textvqa", source.data).tasks()
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        Source("textvqa", source.data, "nowhere").tasks()


@pytest.mark.parametrize("name", ROWS)
def test_questions_of_another_benchmark_are_recognised(name: str) -> None:
    assert looks_like(ROWS[name]) == name
    assert looks_like({**ROWS[name], "more": 1}) == name


def test_the_message_says_which_one_it_looks_like(tmp_path: Path) -> None:
    data = text(tmp_path / "x.json", [HALLUSION])
    with pytest.raises(ValueError, match=r"no POPE question.*; it looks like one of HallusionB"):
        Source("pope", (data,), str(tmp_path)).tasks()


def test_an_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'vstr'; did you mean vstar"):
        Source("vstr").tasks()
