"""Training of `smol`: packs equal single turns, pseudo-features, resuming, and its figures."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_parts
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regaze.evals.sandbox.smol import packages, train
from regaze.evals.sandbox.smol.align import Pseudo, align, kind_targets, presence
from regaze.evals.sandbox.smol.delta import load_delta
from regaze.evals.sandbox.smol.features import BACKGROUND, CELLS, Seen
from regaze.evals.sandbox.smol.imagenet import CLASSES, OTHERS, pseudo, remembered
from regaze.evals.sandbox.smol.judged import Judged, auc, expected
from regaze.evals.sandbox.smol.learner import Learner
from regaze.evals.sandbox.smol.scenes import NAMES
from regaze.evals.sandbox.smol.turns import PHOTOGRAPH_QUESTIONS, QUESTIONS, Writer


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    small_parts.language(folder / packages.LANGUAGE.kept)
    save_file(small_parts.vision(), folder / packages.VISION.kept)
    return folder


@pytest.fixture(scope="module")
def scenes() -> Seen:
    """Made-up features; every second cell of a scene shows its first kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = [["dog", "cup"], [], ["apple"], ["bus", "cat", "bed"]]
    cells = torch.full((len(kinds), CELLS), BACKGROUND)
    features = torch.rand(len(kinds), CELLS, 1280, generator=generator)
    for number, some in enumerate(kinds):
        if some:
            cells[number, ::2] = NAMES.index(some[0])
            features[number, ::2, NAMES.index(some[0])] += 4
    return Seen(features.half(), cells, kinds, [[] for _ in kinds])


@pytest.fixture(scope="module")
def learner(parts: Path) -> Learner:
    made, weights = train.prepare(parts, 0)
    assert weights["_fc.weight"].shape == (1000, 1280)
    made.language.float()
    made.embeddings, made.before = made.embeddings.float(), made.before.float()
    return made


def test_a_pack_says_of_each_turn_what_the_turn_alone_says(learner: Learner, scenes: Seen) -> None:
    writer = learner.writer
    for update in learner.updates.values():
        nn.init.normal_(update.b, std=0.3)
    turns = [
        [writer.ask("dog", end=True), writer.ask("bus", False), writer.describe(["dog", "cup"])],
        [writer.ask("apple", False)],
    ]
    with torch.no_grad():
        pack = writer.pack(turns, CELLS)
        together = learner.logits(scenes.features[:2], pack)
        single = [
            learner.logits(scenes.features[i : i + 1], writer.pack([[turn]], CELLS))
            for i, some in enumerate(turns)
            for turn in some
        ]
        other = learner.logits(scenes.features[[2, 3]], pack)
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-4, atol=1e-4)
    assert float((together - other).abs().max()) > 0.1
    ids = [(*turn.prompt, *turn.answer[:-1]) for turn in turns[0]]
    starts = {some[:end] for some in ids for end in range(1, 1 + len(some))}
    assert pack.tokens.shape == (2, len(starts))  # "Is there a" once
    assert len(starts) < sum(map(len, ids)) - 3
    assert pack.labels.tolist()[:3] == [writer.yes, writer.end, writer.no]
    assert pack.first.nonzero().flatten().tolist() == [0, 2, len(pack.labels) - 1]


def test_a_pack_is_what_the_models_own_prompt_is(learner: Learner, parts: Path) -> None:
    from regaze.evals.sandbox.smol.assemble import build_processor
    from regaze.evals.sandbox.smol.language import IMAGE_TOKEN, read_tokenizer

    processor = build_processor(read_tokenizer(parts / packages.LANGUAGE.kept))
    said = [{"type": "image"}, {"type": "text", "text": "Is there a dog in the image?"}]
    message: Any = {"role": "user", "content": said}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    before, turn = learner.writer.before, learner.writer.ask("dog")
    assert ids == [*before, image, *turn.prompt]


def test_a_lesson_has_as_many_yes_as_no_and_describes_the_scene(learner: Learner) -> None:
    writer = learner.writer
    for kinds in (["dog", "cup"], [], list(NAMES[:5])):
        *asked, told = writer.lesson(kinds, random.Random(1))
        answers = [turn.answer[0] for turn in asked]
        assert answers.count(writer.yes) == min(len(kinds), QUESTIONS)
        assert answers.count(writer.no) == max(answers.count(writer.yes), 2)
        present = [writer.ask(kind).prompt for kind in kinds]
        assert all((t.prompt in present) == (t.answer[0] == writer.yes) for t in asked)
        assert told == writer.describe(kinds)


def test_a_photograph_is_asked_about_and_not_described(learner: Learner) -> None:
    writer = learner.writer
    for kinds in (["dog", "cup"], []):
        asked = writer.photograph(kinds, random.Random(1))
        answers = [turn.answer[0] for turn in asked]
        assert answers.count(writer.yes) == len(kinds)
        assert answers.count(writer.no) == PHOTOGRAPH_QUESTIONS
        assert all(len(turn.answer) <= 2 for turn in asked)


def test_pseudo_features_lie_along_a_class_within_what_the_tower_gives() -> None:
    background = torch.full((1, 1280), 1.0)
    rows = torch.zeros(1, 2, 1280)
    rows[0, 0, 3], rows[0, 0, 4] = 3.0, -4.0
    rows[0, 1, 9] = 7.0
    found = pseudo(background, rows, torch.tensor([[1.0, 0.5]]))
    expected = background.clone()
    expected[0, 3], expected[0, 4], expected[0, 9] = 1.6, 0.2, 1.5
    torch.testing.assert_close(found, expected)
    far = pseudo(background, rows, torch.tensor([[100.0, 0.0]]))[0]
    assert far[3] == 6
    assert far[4] == 0
    assert far[9] == 1


def test_other_classes_show_beside_a_cells_own_and_more_faintly() -> None:
    rows = torch.eye(1000, 1280)
    background = torch.zeros(1, 1280)
    cells = Pseudo(rows, background).cells([CLASSES["dog"][0]] * 200, random.Random(0))
    own = cells[:, CLASSES["dog"][0]]
    beside = cells[:, list(OTHERS)]
    assert (own >= 2).all()
    assert ((beside > 0).sum(1) <= 3).all()
    assert (beside > 0).sum(1).float().mean() > 2.5
    assert (beside <= own[:, None]).all()
    assert beside.max() > 3
    nothing = (cells > 0).sum(1) - (beside > 0).sum(1)
    assert (nothing == 1).all()


def test_classes_are_of_one_kind_each_and_the_rest_of_none() -> None:
    listed = [number for held in CLASSES.values() for number in held]
    assert len(listed) == len(set(listed))
    assert set(CLASSES) == set(NAMES) - {"giraffe", "carrot", "donut", "cake", "scissors"}
    assert sorted([*listed, *OTHERS]) == list(range(1000))


def background(scenes: Seen) -> Tensor:
    return scenes.features[scenes.cells == BACKGROUND]


def test_half_the_background_is_as_the_norms_remember_photographs(
    parts: Path, scenes: Seen
) -> None:
    weights = load_file(parts / packages.VISION.kept)
    made = Pseudo.of(weights, scenes)
    drawn = background(scenes)
    assert torch.equal(made.rows, weights["_fc.weight"])
    assert torch.equal(made.background[: len(drawn)], drawn)
    assert len(made.background) == 2 * len(drawn)
    same = Pseudo.of(weights, scenes).background
    assert torch.equal(same, made.background)
    assert not torch.equal(Pseudo.of(weights, scenes, seed=1).background, same)


def test_what_norms_remember_has_their_mean_and_deviation(parts: Path) -> None:
    weights = load_file(parts / packages.VISION.kept)
    before = next(n for n in weights if n.endswith("15._bn2.bias")).removesuffix(".bias")
    size = len(weights[f"{before}.bias"])
    head = torch.zeros_like(weights["_conv_head.weight"])
    head[:size] = torch.eye(size)[:, :, None, None]
    plain = {"running_mean": 0.0, "running_var": 1.0 - 1e-3, "weight": 1.0, "bias": 0.0}
    weights = weights | {"_conv_head.weight": head}
    weights |= {f"_bn1.{n}": torch.full((1280,), value) for n, value in plain.items()}
    weights[f"{before}.bias"] = torch.linspace(2, 4, size)
    weights[f"{before}.weight"] = torch.linspace(-0.3, 0.3, size)
    cells = remembered(weights, 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        cells[:, :size].mean(0), torch.linspace(2, 4, size), atol=0.03, rtol=0
    )
    deviation = torch.linspace(-0.3, 0.3, size).abs()
    torch.testing.assert_close(cells[:, :size].std(0), deviation, atol=0.02, rtol=0)
    assert not cells[:, size:].any()
    weights["_bn1.bias"] = torch.full((1280,), 100.0)
    assert (remembered(weights, 3, torch.Generator()) == 6).all()


def test_a_made_photograph_shows_its_kinds_and_says_which(scenes: Seen) -> None:
    photographs = Pseudo(torch.eye(1000, 1280), background(scenes))
    for seed in range(20):
        kinds = ["dog", "giraffe", "pizza", "bus", "cat"]
        features, shown = photographs.scene(kinds, random.Random(seed))
        assert features.shape == (CELLS, 1280)
        assert shown
        assert set(shown) <= {"dog", "pizza", "bus"}  # the first three that ImageNet knows
        strong = features.float() > 1.5
        sizes = {kind: int(strong[:, list(CLASSES[kind])].any(-1).sum()) for kind in shown}
        assert all(sizes.values())
        assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    assert photographs.scene([], random.Random(0))[1] == []


def test_alignment_teaches_a_projector_what_cells_show(
    scenes: Seen,
) -> None:
    targets = torch.randn(len(NAMES) + 1, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(1280, 64), nn.GELU(), nn.Linear(64, 32))
    rows = torch.eye(1280)[280:]  # apart from what the made-up scenes show
    losses: list[float] = []
    align(
        projector,
        targets,
        scenes,
        Pseudo(rows, background(scenes)),
        steps=100,
        report=lambda said: losses.append(said["loss"]),
    )
    assert losses[-1] < losses[0]
    seen = presence(projector, targets, scenes.features)
    for number, kinds in enumerate(scenes.kinds):
        if kinds:
            assert seen[number].argmax() == NAMES.index(kinds[0])


def test_targets_are_means_of_the_words_embeddings(learner: Learner) -> None:
    tokenizer = learner.writer.tokenizer
    targets = kind_targets(tokenizer, learner.embeddings)
    ids = tokenizer(" traffic light", add_special_tokens=False)["input_ids"]
    expected = learner.embeddings[ids].mean(0)
    torch.testing.assert_close(targets[NAMES.index("traffic light")], expected)
    assert len(targets) == len(NAMES) + 1


def test_a_stopped_run_goes_on_and_ends_the_same(
    parts: Path, scenes: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVED_EVERY", 2)
    monkeypatch.setattr(train, "align", partial(align, steps=50))
    monkeypatch.setattr(train, "seen", lambda *_: scenes)

    kept: dict[int, dict[str, Tensor]] = {}
    keep = train._keep

    def keeping(path: Path, trained: dict[str, Tensor], *rest: Any) -> None:
        kept[rest[2]] = {name: value.detach().clone() for name, value in trained.items()}
        keep(path, trained, *rest)

    monkeypatch.setattr(train, "_keep", keeping)

    class Stopped(Exception):
        pass

    def run(name: str, stop: int | None = None) -> Path:
        made = train.batch

        def counted(step: int, *rest: object) -> object:
            if step == stop:
                raise Stopped
            return made(step, *rest)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(train, "batch", counted)
            train.main([str(parts), str(tmp_path / name), "--steps", "3", "--last", "1"])
        return tmp_path / name

    whole = run("whole")
    with pytest.raises(Stopped):
        run("parts", stop=3)
    assert not (tmp_path / "parts" / "delta.safetensors").exists()
    resumed = run("parts")
    delta = load_delta(resumed / "delta.safetensors")
    assert (delta.about.rank, delta.about.scale, delta.about.steps) == (8, 2.0, 4)
    expected = load_delta(whole / "delta.safetensors").tensors
    assert all(torch.equal(delta.tensors[name], x) for name, x in expected.items())
    assert list(kept) == [2, 4]
    for name, x in expected.items():  # The mean of the last checkpoints, here of both.
        torch.testing.assert_close(x, kept[2][name].lerp(kept[4][name], 0.5).to(x.dtype))
    assert any(not torch.equal(kept[4][name].to(x.dtype), x) for name, x in expected.items())
    started = load_file(whole / "aligned.safetensors")
    moved = [x for name, x in expected.items() if name.endswith(".B")]
    assert all(bool(x.any()) for x in moved)
    assert not torch.equal(started["linear_1.bias"].half(), expected["projector.linear_1.bias"])
    assert not json.loads((whole / "train_log.jsonl").read_text().splitlines()[0])["stage"]


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="regaze sandbox fetch smol"):
        train.prepare(tmp_path, 0)


def test_the_learning_rate_warms_up_and_falls() -> None:
    assert train.rate(0, 1000) == pytest.approx(1 / train.WARM_UP)
    assert train.rate(500, 1000) == pytest.approx(0.5)
    assert train.rate(999, 1000) == 0.02


def test_the_last_stage_starts_anew_at_a_lower_rate_with_more_weight_on_captions() -> None:
    assert train.pace(500, 1000, 300) == pytest.approx((0.5, 0.5))
    assert train.pace(1000, 1000, 300) == pytest.approx((0.4 / train.WARM_UP, 2.0))
    assert train.pace(1150, 1000, 300) == pytest.approx((0.2, 2.0))


def test_auc_counts_ties_half() -> None:
    margins = torch.tensor([3.0, 1.0, 1.0, 0.0])
    present = torch.tensor([True, True, False, False])
    assert auc(margins, present) == 87.5
    judged = Judged(margins[None], present[None])
    assert judged.scores() == {"pairs": 4, "recall": 100.0, "false_yes": 50.0, "auc": 87.5}
    counted: Tensor = torch.tensor([[True, False, True, False]])
    assert judged.scores(counted)["auc"] == 100.0


def test_expected_yes_follow_the_scene_and_the_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = torch.linspace(0.01, 0.9, 300)[:, None] * torch.linspace(0.1, 1, 40)
    said = torch.rand(300, 40, generator=generator) < rates
    asked = torch.rand(300, 40, generator=generator) < rates  # most where yes is likely
    want, plain = float(rates[asked].sum()), float(asked.sum() * said[~asked].float().mean())
    assert plain < 0.7 * want
    # What was said to those that are asked about doesn't count.
    found = expected(said | asked, ~asked, asked)
    assert found == pytest.approx(want, rel=0.05)
    none = torch.zeros_like(said)
    assert expected(none, ~asked, asked) == pytest.approx(0, abs=1e-6)


def test_writer_reads_one_token_for_each_answer(learner: Learner) -> None:
    assert isinstance(learner.writer, Writer)
    assert len({learner.writer.yes, learner.writer.no, learner.writer.end}) == 3
