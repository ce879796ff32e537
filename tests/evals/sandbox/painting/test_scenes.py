"""Scenes of the painting world: reproducible, within bounds, splits apart."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest

from regaze.evals.sandbox.drawing import SIZE as DRAWN
from regaze.evals.sandbox.painting import NEGATION, SUBSETS
from regaze.evals.sandbox.painting.prompts import COLOURS, RELATIONS, SHAPES, Kind
from regaze.evals.sandbox.painting.scenes import (
    HELD_OUT,
    KINDS,
    SIZE,
    SPLITS,
    combinations,
    relation_of,
    right_picture,
    scene,
    wanted,
)


def kinds_of(split: str, count: int) -> set[frozenset[Kind]]:
    return {frozenset(scene(split, i).wanted.kinds) for i in range(count)}


def test_a_scene_is_a_function_of_its_split_and_number() -> None:
    again = scene("train", 7)
    assert again == scene("train", 7) != scene("train", 8)
    assert again.key == "train/00007"
    digest = hashlib.sha256(repr([scene(s, 3).objects for s in SPLITS]).encode()).hexdigest()
    assert digest[:12] == "cf3365db4688"


def test_prompts_are_a_function_of_split_subset_and_number() -> None:
    assert wanted("test", "composition", 9)[:5] == wanted("test", "composition", 5)
    assert wanted("test", "pair", 9) != wanted("validation", "pair", 9)
    assert [w.prompt for w in wanted("test", "composition", 2)] == [
        "a white circle, a yellow cross and a green triangle",
        "a blue circle, a red square and a yellow triangle",
    ]


def test_objects_fit_and_do_not_overlap() -> None:
    for index in range(300):
        objects = scene("train", index).objects
        assert 1 <= len(objects) <= 3
        assert all(o.r <= o.cx <= DRAWN - o.r and o.r <= o.cy <= DRAWN - o.r for o in objects)
        for a, b in itertools.combinations(objects, 2):
            assert math.hypot(a.cx - b.cx, a.cy - b.cy) > a.r + b.r
            assert a.colour != b.colour
            assert a.shape != b.shape


def test_a_picture_is_small_rgb() -> None:
    image = scene("train", 0).image
    assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_a_prompt_never_contradicts_its_picture() -> None:
    said = 0
    for index in range(500):
        s = scene("train", index)
        assert [(o.colour, o.shape) for o in s.objects] == [
            (k.colour, k.shape) for k in s.wanted.kinds
        ]
        if s.wanted.relation:
            said += 1
            assert relation_of(s.objects[0], s.objects[1]) == s.wanted.relation
    assert said > 40


def test_held_out_kinds_are_never_drawn_but_their_parts_are() -> None:
    drawn = set().union(*kinds_of("train", 1000))
    assert drawn == set(KINDS) - HELD_OUT
    assert {k.colour for k in drawn} == set(COLOURS)
    assert {k.shape for k in drawn} == set(SHAPES)
    assert {k.shape for k in HELD_OUT} == set(SHAPES)


@pytest.mark.parametrize("count", [2, 3])
def test_combinations_of_the_splits_are_apart(count: int) -> None:
    sets = [set(combinations(split, count)) for split in SPLITS]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(sets, 2))
    assert len(sets[0]) > 2 * len(sets[1]) > 20


def test_prompts_to_test_with_were_not_trained() -> None:
    trained = kinds_of("train", 3000)
    for subset in ("pair", "relation", "composition"):
        asked = {frozenset(w.kinds) for w in wanted("test", subset, 200)}
        assert asked.isdisjoint(trained)
        assert asked.isdisjoint(frozenset(w.kinds) for w in wanted("validation", subset, 200))


def test_subsets_ask_what_they_say() -> None:
    asked = {subset: wanted("test", subset, 200) for subset in SUBSETS}
    assert {len(w.kinds) for w in asked["single"]} == {1}
    assert {w.kinds[0] for w in asked["single"]} == set(KINDS)
    assert {(len(w.kinds), w.relation) for w in asked["pair"]} == {(2, None)}
    assert {w.relation for w in asked["relation"]} == set(RELATIONS)
    assert not any(HELD_OUT & set(w.kinds) for w in asked["pair"] + asked["relation"])


@pytest.mark.parametrize(
    ("turn", "objects", "colours", "shapes", "held_out"),
    [(0, 3, 3, 3, 0), (1, 3, 3, 3, 1), (2, 2, 1, 2, 0), (3, 3, 2, 3, 0), (4, 3, 3, 2, 0)],
)
def test_composition_takes_turns(
    turn: int, objects: int, colours: int, shapes: int, held_out: int
) -> None:
    for w in wanted("test", "composition", 100)[turn::5]:
        assert len(set(w.kinds)) == objects
        assert len({k.colour for k in w.kinds}) == colours
        assert len({k.shape for k in w.kinds}) == shapes
        assert len(HELD_OUT & set(w.kinds)) == held_out


def test_negation_takes_turns_and_splits_share_nothing() -> None:
    sets = {}
    for split in ("validation", "test"):
        asked = wanted(split, NEGATION, 200)
        assert all(w.unwanted is not None and w.unwanted not in w.kinds for w in asked)
        assert {len(w.kinds) for w in asked[::2]} == {1}
        assert {len(w.kinds) for w in asked[1::2]} == {2}
        assert not any(HELD_OUT & {*w.kinds, w.unwanted} for w in asked)
        sets[split] = {frozenset((*w.kinds, w.unwanted)) for w in asked}
    assert sets["validation"].isdisjoint(sets["test"])
    assert len({w.prompt for w in wanted("test", NEGATION, 320)}) >= 200


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_prompt_has_a_right_picture(subset: str) -> None:
    for index, w in enumerate(wanted("test", subset, 30)):
        s = right_picture(w, index)
        assert [(o.colour, o.shape) for o in s.objects] == [(k.colour, k.shape) for k in w.kinds]
        assert w.relation in (None, relation_of(s.objects[0], s.objects[-1]))
        assert right_picture(w, index) == s


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset'.*nearest is 'test'"):
        scene("tset", 0)
    with pytest.raises(ValueError, match="numbered from 0"):
        scene("test", -1)
    with pytest.raises(ValueError, match="unknown split of prompts 'train'"):
        wanted("train", "pair", 1)
    with pytest.raises(ValueError, match="unknown subset 'pairs'.*nearest is 'pair'"):
        wanted("test", "pairs", 1)
