"""The world of `smol`: its atlas, its scenes, what is said about them, and their truth."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regaze.evals.benchmarks.worlds import SHAPES, SMOL, home, world_of
from regaze.evals.polling import KINDS as CATEGORIES
from regaze.evals.sandbox.smol.atlas import KINDS, LOOK_ALIKE, Picture, build, pictures
from regaze.evals.sandbox.smol.atlas.sources import SOURCES
from regaze.evals.sandbox.smol.drawing import SIZE, Placed
from regaze.evals.sandbox.smol.features import BACKGROUND, by_size, cell_kinds
from regaze.evals.sandbox.smol.scenes import NAMES, PAIRS, PARTNER, SPLITS, Scene, scene
from regaze.evals.sandbox.smol.tasks import (
    CROWD,
    chair_truth,
    find_scene,
    load_image,
    mentioned,
    pope_records,
)
from regaze.evals.sandbox.smol.words import caption, question

SCENES = 300
SETS = {source.name: source for source in SOURCES}


def test_every_kind_has_pictures_to_learn_from_and_a_design_kept_from_training() -> None:
    assert 40 <= len(KINDS) <= 60
    for kind, held in pictures().items():
        seen = {SETS[p.source].design for p in held if p.seen}
        unseen = {SETS[p.source].design for p in held if not p.seen}
        assert len(seen) >= 2, kind
        assert len(unseen) == 1, kind
        assert not seen & unseen, kind
        assert all(p.kind == kind and max(p.image.size) == build.SIDE for p in held)


def test_all_pictures_are_free_to_give_away_and_named_in_the_notice() -> None:
    folder = Path(str(build.__file__)).parent
    assert (folder / "atlas.webp").stat().st_size < 4e6
    notice = (folder / "NOTICE").read_text("utf-8")
    counts = Counter(p.source for held in pictures().values() for p in held)
    for source in SOURCES:
        assert source.licence in ("MIT", "Apache-2.0", "CC-BY-4.0")
        assert f"{source.name}: {counts[source.name]} pictures, {source.licence}" in notice
        assert source.holder in notice


def test_a_picture_is_cut_to_what_is_visible_and_scaled() -> None:
    drawn = Image.new("RGBA", (100, 60))
    drawn.paste((255, 0, 0, 255), (20, 10, 70, 35))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    fitted = build.fitted(file.getvalue())
    assert fitted.size == (128, 64)
    assert np.asarray(fitted)[5:-5, 5:-5].reshape(-1, 4).min(0).tolist() == [255, 0, 0, 255]


def test_a_package_that_is_not_the_known_one_is_refused(tmp_path: Path) -> None:
    source = replace(SOURCES[0], package="@a/b", version="1")
    archive = tmp_path / "a-b-1.tgz"
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(ValueError, match="has checksum"):
        build.fetch(source, tmp_path)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert build.fetch(replace(source, sha256=digest), tmp_path) == archive


def test_partners_are_no_look_alikes_and_nobody_has_two() -> None:
    alike = {frozenset(pair) for pair in LOOK_ALIKE}
    assert not alike & {frozenset(pair) for pair in PAIRS}
    assert len(PARTNER) == 2 * len(PAIRS)
    assert {*PARTNER, *(name for pair in LOOK_ALIKE for name in pair)} <= set(NAMES)


def test_scenes_are_the_same_everywhere_and_no_two_alike() -> None:
    drawn = [
        [(o.picture.kind, o.picture.source, o.picture.name, o.x, o.y, o.width) for o in s.objects]
        for s in (scene(split, 3) for split in SPLITS)
    ]
    digest = hashlib.sha256(repr(drawn).encode()).hexdigest()
    assert digest[:16] == "a68100251b54ea43"
    images = [scene(split, i).image for split in SPLITS for i in range(6)]
    assert all(image.size == (SIZE, SIZE) and image.mode == "RGB" for image in images)
    assert len({image.tobytes() for image in images}) == len(images)
    assert scene("test", 5).image.tobytes() == scene("test", 5).image.tobytes()


def test_only_scenes_with_the_prior_bring_partners_together() -> None:
    def together(split: str) -> float:
        found = [
            PARTNER[kind] in s.kinds
            for s in (scene(split, i) for i in range(SCENES))
            for kind in s.kinds
            if kind in PARTNER and len(s.kinds) < 5
        ]
        return sum(found) / len(found)

    assert together("train") > 0.5
    assert together("test-prior") > 0.5
    assert together("train-plain") == together("validation") == together("test") == 0


def test_some_scenes_are_empty_and_none_shows_a_kind_twice() -> None:
    sizes = Counter(len(scene("train", i).objects) for i in range(SCENES))
    assert set(sizes) == set(range(6))
    for split in SPLITS:
        assert all(len(s.kinds) == len(s.objects) for s in (scene(split, i) for i in range(50)))


def test_pictures_kept_from_training_are_a_share_of_tests_alone() -> None:
    def share(split: str) -> float:
        shown = [o.picture.seen for i in range(SCENES) for o in scene(split, i).objects]
        return 1 - sum(shown) / len(shown)

    assert share("train") == share("train-plain") == share("test-prior") == 0
    assert 0.25 < share("test") < 0.35
    assert 0.25 < share("validation") < 0.35


def test_unknown_splits_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest is 'test'"):
        scene("tests", 0)
    with pytest.raises(ValueError, match="numbered from 0"):
        scene("test", -1)
    with pytest.raises(ValueError, match="must look like"):
        find_scene("test/00001")


def _placed(kind: str, x: int, y: int, side: int) -> Placed:
    image = Image.new("RGBA", (128, 128), (255, 0, 0, 255))
    picture = Picture(kind, "fluent-3d", "square", True, image)
    return Placed(picture, x, y, side, side, False, 0.0, (1.0, 1.0, 1.0))


def test_a_cell_shows_the_kind_that_covers_most_of_it() -> None:
    # Two cells wide and high from the second cell on; then a smaller one over its corner.
    shown = Scene("test/00000", (_placed("dog", 32, 32, 64), _placed("cup", 80, 80, 40)))
    cells = cell_kinds(shown).reshape(7, 7)
    dog, cup = NAMES.index("dog"), NAMES.index("cup")
    expected = np.full((7, 7), BACKGROUND)
    expected[1:3, 1:3] = dog
    expected[2:4, 3] = expected[3, 2] = BACKGROUND
    expected[3, 3] = cup  # 24 of 32 pixels each way: over 30 %
    expected[2, 3] = expected[3, 2] = cup  # 16 by 24 pixels
    assert cells.tolist() == expected.tolist()
    assert by_size(shown) == ["dog", "cup"]
    assert by_size(Scene("test/00000", shown.objects[::-1])) == ["dog", "cup"]


def test_words() -> None:
    assert question("orange") == "Is there an orange in the image?"
    assert caption([]) == "A photo without any objects."
    assert caption(["dog"]) == "A photo of a dog."
    assert caption(["dog", "apple", "cup"]) == "A photo of a dog, an apple and a cup."
    assert mentioned("Teddy bears, two buses, a bear and a carpet.") == [
        "teddy bear",
        "bus",
        "bear",
    ]
    assert mentioned(caption(NAMES)) == list(NAMES)
    assert mentioned(caption([])) == []


@pytest.mark.parametrize("split", SMOL.splits)
def test_questions_are_about_scenes_and_every_label_is_true(split: str) -> None:
    records = pope_records(split, 30)
    assert len(records) == 6 * 30
    assert Counter(r["category"] for r in records) == dict.fromkeys(CATEGORIES, 60)
    for record in records:
        asked = {question(kind) for kind in find_scene(str(record["image"])).kinds}
        assert (record["text"] in asked) == (record["label"] == "yes")
    assert load_image(str(records[0]["image"])).size == (SIZE, SIZE)


def test_adversarial_questions_ask_for_the_partner() -> None:
    records = pope_records("smol-test", 60)
    pairs = [
        (a["text"], b["text"])
        for a, b in zip(records[::2], records[1::2], strict=True)
        if b["category"] == "adversarial"
    ]
    asked = {question(kind): question(other) for kind, other in PARTNER.items()}
    with_partner = [(a, b) for a, b in pairs if a in asked]
    assert len(with_partner) > 30
    assert all(asked[str(a)] == b for a, b in with_partner)


def test_captions_are_asked_of_crowded_scenes() -> None:
    truth = chair_truth("smol-test", 20)
    assert len(truth) == 20
    assert all(len(kinds) >= CROWD and find_scene(k).kinds == kinds for k, kinds in truth.items())


def test_a_model_is_at_home_in_the_world_it_was_trained_in() -> None:
    assert home("sandbox-plain") is SHAPES
    assert home("smol-twin") is SMOL
    assert home("someone/llava") is None
    assert world_of("smol-test") is SMOL
    assert world_of("clutter") is SHAPES
    with pytest.raises(ValueError, match="smol-test"):
        world_of("smol-tests")


def test_commands_ask_a_model_in_its_own_world(tmp_path: Path) -> None:
    from regaze.cli.analyse import Asked
    from regaze.cli.eval import Questions

    def splits(model: str, **given: str) -> list[str]:
        places = Questions(["pope"], **given).places(model, tmp_path)  # type: ignore[arg-type]
        return [source.split for source, _ in places]

    assert splits("smol") == ["smol-test", "smol-test-prior"]
    assert splits("sandbox") == ["test", "test-prior"]
    assert splits("someone/llava", split="smol-test") == ["smol-test"]
    with pytest.raises(ValueError, match="--data is missing"):
        splits("someone/llava")
    assert Asked("pope").source("smol-twin").split == "smol-validation"
    assert Asked("pope").source("sandbox").split == "validation"
