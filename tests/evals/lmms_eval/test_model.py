"""The bridge inside the real lmms-eval; skipped where that isn't installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install regaze[lmms-eval]")

import datasets
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import simple_parse_args_string

from regaze.evals.asking.forcing import forced
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import Loaded, load
from regaze.evals.lmms_eval.model import RegazeHf, RegazeHfChat
from regaze.evals.lmms_eval.requests import interventions
from regaze.evals.runs.conditions import Condition
from regaze.evals.sandbox.tasks import load_image, pope_records
from regaze.hooks.attach import attach

VHR = "vhr:alpha=4,layers=[2,3]"
QUESTIONS = [
    (str(record["text"]), str(record["label"]), load_image(str(record["image"])))
    for record in pope_records("test", 3)
]

TASK = """
task: {name}
dataset_path: {folder}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: !function utils.target
{rest}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
GENERATED = """
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false}
process_results: !function utils.right
"""
CHOSEN = """
doc_to_choice: ["yes", "no"]
"""
UTILS = """
def visual(doc): return [doc["image"]]
def text(doc): return doc["question"]
def target(doc): return ["yes", "no"].index(doc["answer"])
def right(doc, results): return {"acc": float(results[0].startswith(doc["answer"]))}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Two tasks on POPE questions about sandbox scenes: one generates, one chooses."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": q, "answer": answer, "image": image} for q, answer, image in QUESTIONS]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (folder / "data").mkdir()
    table.to_parquet(folder / "data" / "test-00000.parquet")
    (folder / "utils.py").write_text(UTILS)
    for name, kind, rest in (
        ("said", "generate_until", GENERATED),
        ("chosen", "multiple_choice", CHOSEN),
    ):
        text = TASK.format(name=name, folder=folder / "data", kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("sandbox")


def evaluate(tasks: TaskManager, task: str, intervention: str, **options: Any) -> list[Any]:
    """The model's answers as lmms-eval stored them, in the documents' order."""
    found = simple_evaluate(
        model="regaze_hf",
        model_args=f'pretrained=sandbox,intervention="{intervention}"',
        tasks=[task],
        task_manager=tasks,
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )
    samples = sorted(found["samples"][task], key=lambda sample: int(sample["doc_id"]))
    return [sample["filtered_resps"] for sample in samples]


def said(loaded: Loaded, intervention: str) -> list[str]:
    """The same questions asked without lmms-eval, in the same batches."""
    answerer = Answerer(loaded.model, loaded.processor, 6)
    texts = []
    with attach(loaded.model, *interventions(intervention), processor=loaded.processor):
        for start in range(0, len(QUESTIONS), 4):
            questions, _, images = zip(*QUESTIONS[start : start + 4], strict=True)
            texts += [answer.text for answer in answerer(questions, images)]
    return texts


def test_lmms_eval_finds_both_forms_of_the_model() -> None:
    assert get_model("regaze_hf") is RegazeHfChat
    assert get_model("regaze_hf", force_simple=True) is RegazeHf


@pytest.mark.parametrize("text", ["none", "var:p=0.6", "vhr:layers=[2,3]", VHR, f"{VHR}+pai"])
def test_the_whole_intervention_survives_the_argument_parser(text: str) -> None:
    arguments = simple_parse_args_string(f'pretrained=sandbox,intervention="{text}",dtype=float32')
    assert list(arguments) == ["pretrained", "intervention", "dtype"]
    assert interventions(arguments["intervention"]) == Condition.parse(text).specs


def test_answers_are_those_of_the_same_questions_asked_here_and_the_cache_keeps_them_apart(
    tasks: TaskManager, loaded: Loaded, tmp_path: Path
) -> None:
    cache = str(tmp_path)
    plain = evaluate(tasks, "said", "none", use_cache=cache)
    edited = evaluate(tasks, "said", VHR, use_cache=cache)
    assert plain == [[text] for text in said(loaded, "none")]
    assert edited == [[text] for text in said(loaded, VHR)]
    assert plain != edited
    assert evaluate(tasks, "said", VHR, use_cache=cache) == edited
    assert evaluate(tasks, "said", VHR, force_simple=True) == edited


@pytest.mark.parametrize("intervention", ["none", VHR])
def test_choices_are_scored_by_their_loss(
    tasks: TaskManager, loaded: Loaded, intervention: str
) -> None:
    found = evaluate(tasks, "chosen", intervention, force_simple=True)
    answerer = Answerer(loaded.model, loaded.processor, 6)
    options = loaded.processor.tokenizer(["yes", "no"], add_special_tokens=False)["input_ids"]
    expected = []
    with attach(loaded.model, *interventions(intervention), processor=loaded.processor):
        for question, _, image in QUESTIONS:
            inputs = answerer.encode([question] * 2, [image] * 2)
            expected.append(forced(loaded.model, inputs, options))
    losses = torch.tensor(found)
    torch.testing.assert_close(losses, torch.tensor(expected), atol=1e-4, rtol=0)


# Requests that no simple task makes


@pytest.fixture
def model() -> Iterator[RegazeHf]:
    model = RegazeHf("sandbox", "vhr:layers=[2,3]", batch_size=3, device="cpu")
    yield model
    model.clean()


def request(
    model: RegazeHf, text: str, images: Sequence[Any], kind: str = "generate_until", **settings: Any
) -> Instance:
    documents = model.task_dict.setdefault("made", {"test": []})["test"]
    documents.append(images)
    where = {"task": "made", "doc_id": len(documents) - 1, "repeats": 1}
    arguments = (text, settings, list, len(documents) - 1, "made", "test")
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata=where)


def test_requests_of_all_kinds_are_answered_in_order(model: RegazeHf) -> None:
    one, two = load_image("test/00001"), load_image("test/00002")
    asked = [
        request(model, "Is there a red circle in the image?", [one], max_new_tokens=6),
        request(model, "Describe the image.", [two], max_new_tokens=20),
        request(model, "Is there a blue star in the image?", [], max_new_tokens=6),
        request(model, "Describe the image.", [two], max_new_tokens=20, until=["a "]),
        request(model, "Is there a red circle in the image?", [one, two], max_new_tokens=6),
        request(model, "Is there a red ring in the image?", [two], max_new_tokens=6),
        request(model, "Describe the image.", [one], max_new_tokens=3),
    ]
    together = model.generate_until(asked)
    assert together == [model.generate_until([each])[0] for each in asked]
    assert together[3].text == together[1].text.partition("a ")[0] != together[1].text
    assert together[6].token_counts.output_tokens == 3
    sizes = [answer.token_counts.input_tokens for answer in together]
    assert sizes[4] == sizes[0] + 64 == sizes[2] + 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("intervention=vhr:alpha=2,layers=[2,3]", "takes no argument layers; if it is a field"),
        ("intervention=var,intervention=pai", "intervention is given twice"),
        ("intervention=vahr", "unknown intervention 'vahr'; did you mean"),
        ("intervention=none@blank", "lmms-eval chooses the images"),
        ("batch_size=auto", "batch_size must be a number of at least 1, got 'auto'"),
        ("pretrained=sandbx", "did you mean sandbox"),
    ],
)
def test_wrong_arguments_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegazeHf.create_from_arg_string(arguments, {"device": "cpu"})


def test_what_it_cannot_ask_is_refused(model: RegazeHf) -> None:
    with pytest.raises(ValueError, match=r"task made, document 0 shows a video .*clip.mp4"):
        model.generate_until([request(model, "What happens?", ["clip.mp4"])])
    with pytest.raises(ValueError, match="unknown generation setting"):
        model.generate_until([request(model, "What?", [], temprature=1)])
    with pytest.raises(NotImplementedError, match="asks in several rounds"):
        model.generate_until_multi_round([request(model, "What?", [])])
    bare = Instance("loglikelihood", ("", "yes"), 0, {"task": "t", "doc_id": 3, "repeats": 1})
    with pytest.raises(ValueError, match="task t, document 3 asks for the likelihood of a text"):
        model.loglikelihood([bare])


def test_answers_of_an_intervention_that_never_acted_are_refused() -> None:
    silent = RegazeHf("sandbox", "var:sink_dims=[0],tau=1", device="cpu")
    silent.generate_until([request(silent, "Is there a red ring?", [], max_new_tokens=2)])
    shown = request(silent, "Is there a red ring?", [load_image("test/00001")], max_new_tokens=2)
    with pytest.raises(RuntimeError, match="never acted on 1 images"):
        silent.generate_until([shown])


def test_the_model_is_left_as_it_was_loaded() -> None:
    model = RegazeHf("sandbox", VHR, device="cpu")
    inner, before = model._model, load("sandbox").model
    assert inner.config.text_config._attn_implementation.startswith("regaze")
    model.clean()
    assert inner.config.text_config._attn_implementation == (
        before.config.text_config._attn_implementation
    )
    assert not any(isinstance(value, torch.nn.Module) for value in vars(model).values())


def test_images_of_any_mode_are_shown(model: RegazeHf) -> None:
    image = load_image("test/00001")
    opaque = Image.merge("RGBA", (*image.split(), Image.new("L", image.size, 255)))
    question = "Is there a red circle in the image?"
    asked = [request(model, question, [i], max_new_tokens=4) for i in (image, opaque)]
    assert len({answer.text for answer in model.generate_until(asked)}) == 1
