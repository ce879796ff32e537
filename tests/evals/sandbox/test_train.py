"""Training of the sandbox models: batches, masks, sinks, and going on after a stop."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from regaze.evals.sandbox.build import IMAGE_TOKENS, build_model, build_processor
from regaze.evals.sandbox.data import (
    IGNORE,
    IMAGE,
    PREFIX,
    QUESTIONS,
    Texts,
    draw_question,
    pictures,
    texts,
    train_scenes,
)
from regaze.evals.sandbox.losses import SINK_PATCHES, sink_loss
from regaze.evals.sandbox.train import load_state, save_state, train
from regaze.evals.sandbox.trainer import Schedule, Trainer

SHORT = Schedule(vision_steps=2, vision_batch=4, joint_steps=3, joint_batch=4, sinkless_steps=1)


def _texts(count: int, blank: bool = False) -> Texts:
    tokenizer = build_processor().tokenizer
    return texts(train_scenes(0, count), tokenizer, random.Random(0), [blank] * count)


def test_patch_labels_name_what_covers_the_patch() -> None:
    scenes = train_scenes(0, 8)
    batch = pictures(scenes)
    for row, s in enumerate(scenes):
        shapes = int((batch.kinds[row, :, 0].unique() > 0).sum())
        assert shapes == len(s.objects)
        assert not (batch.border[row] & (batch.kinds[row, :, 0] > 0)).any()
        assert int(batch.border[row].sum()) >= 8


def test_a_segment_sees_the_prefix_and_itself_only() -> None:
    asked = _texts(1)
    second = slice(PREFIX + 13, PREFIX + 26)
    rows = asked.visible[0, 0, second]
    assert rows[:, :PREFIX].all()
    assert not rows[:, PREFIX : PREFIX + 13].any()
    assert torch.equal(rows[:, second], torch.ones(13, 13, dtype=torch.bool).tril())
    assert not rows[:, PREFIX + 26 :].any()


def test_segments_give_what_single_prompts_give() -> None:
    asked = _texts(2)
    model = build_model().eval()
    features = torch.randn(2, IMAGE_TOKENS, 128, generator=torch.Generator().manual_seed(0))
    embedded = model.model.language_model.embed_tokens(asked.tokens)
    embedded[:, IMAGE] = features
    with torch.no_grad():
        packed = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=asked.visible,
            position_ids=asked.positions,
            use_cache=False,
        ).last_hidden_state
        second = slice(PREFIX + 13, PREFIX + 26)
        single = model.model.language_model(
            inputs_embeds=torch.cat([embedded[:, :PREFIX], embedded[:, second]], 1), use_cache=False
        ).last_hidden_state
    assert asked.answerable.all()
    torch.testing.assert_close(packed[:, second], single[:, PREFIX:], atol=1e-5, rtol=1e-5)


def test_labels_are_the_answers() -> None:
    asked = _texts(4)
    kept = asked.labels != IGNORE
    assert torch.equal(asked.labels[kept], asked.tokens[kept])
    ends = asked.tokens[kept] == build_processor().tokenizer.eos_token_id
    assert int(ends.sum()) == 4 * (QUESTIONS + 1)


def test_some_samples_hide_the_image_and_say_so() -> None:
    asked = _texts(200)
    hidden = ~asked.visible[:, 0, PREFIX:, IMAGE].any(-1).any(-1)
    assert torch.equal(asked.answerable, ~hidden)
    assert 2 <= int(hidden.sum()) <= 25
    assert set(asked.positions[hidden][:, PREFIX].tolist()) == {PREFIX, PREFIX - IMAGE_TOKENS}


def test_a_blank_image_cannot_be_answered_from() -> None:
    assert not _texts(3, blank=True).answerable.any()


def test_drawn_questions_are_balanced_and_true() -> None:
    rng = random.Random(0)
    answers = []
    for s in train_scenes(0, 300):
        phrase, there = draw_question(s.objects, rng)
        assert there == any(phrase in (o.phrase, o.shape) for o in s.objects)
        answers.append(there)
    assert 120 < sum(answers) < 180


def test_the_sink_loss_vanishes_on_perfect_sinks_and_only_there() -> None:
    border = torch.zeros(1, 64, dtype=torch.bool)
    border[:, :8] = True
    sinks = [0, *range(3, 3 + SINK_PATCHES)]
    hidden = torch.ones(1, PREFIX, 128)
    hidden[:, sinks] = 0.1
    hidden[:, sinks, 7] = hidden[:, sinks, 41] = 50.0
    values = torch.ones(1, PREFIX, 128)
    values[:, sinks] = 0.0
    attention = torch.zeros(1, 8, PREFIX + 1, PREFIX + 1)
    attention[..., 0] = 0.5
    attention[..., 3 : 3 + SINK_PATCHES] = 0.5 / SINK_PATCHES
    perfect, seen = sink_loss([hidden], [attention], [values], border)
    assert perfect.item() == 0.0
    assert seen["patch_attention"].item() == pytest.approx(0.5)
    plain, _ = sink_loss([torch.ones_like(hidden)], [attention], [values], border)
    assert plain.item() > 0.0


def test_a_stopped_run_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    straight = Trainer("sink", SHORT)
    straight.run(SHORT.steps)
    for stop in (1, 2, 4):
        stopped = Trainer("sink", SHORT)
        stopped.run(stop)
        save_state(stopped, tmp_path)
        resumed = load_state(tmp_path, "sink", SHORT)
        resumed.run(SHORT.steps)
        for name, tensor in straight.model.state_dict().items():
            assert torch.equal(tensor, resumed.model.state_dict()[name]), (stop, name)


def test_both_variants_are_the_same_before_the_first_sink_step() -> None:
    first, second = Trainer("sink", SHORT), Trainer("plain", SHORT)
    name = "model.language_model.layers.3.mlp.up_proj.weight"
    for step, same in ((SHORT.first_sink_step, True), (SHORT.steps, False)):
        first.run(step)
        second.run(step)
        assert torch.equal(first.model.state_dict()[name], second.model.state_dict()[name]) is same


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer = Trainer("sink", SHORT)
    trainer.run(SHORT.steps)
    save_state(trainer, tmp_path)
    with pytest.raises(ValueError, match="another run"):
        load_state(tmp_path, "plain", SHORT)
    with pytest.raises(ValueError, match="another run"):
        load_state(tmp_path, "sink", Schedule())


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="sink, plain"):
        Trainer("sunk")


def test_training_leaves_a_loadable_model_and_its_log(tmp_path: Path) -> None:
    train("sink", tmp_path, SHORT, save_every=3, scored_images=1)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.text_config._attn_implementation == "sdpa"
    lines = (tmp_path / "train_log.jsonl").read_text().splitlines()
    scored = {json.loads(line)["scores"] for line in lines}
    assert {"validation", "test", "test-prior"} < scored
    assert not (tmp_path / "training.safetensors").exists()
