"""One's own pictures: what is in them, from four kinds of annotation, and POPE built of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import call, one_line
from PIL import Image

from regaze.evals.benchmarks.annotated import Annotated, read_objects
from regaze.evals.benchmarks.coco import Id, find_pictures, read_annotations
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.pope_files import build
from regaze.evals.polling import KINDS

SHOWN = {
    "a.jpg": ("dog", "cat", "sofa"),
    "b.jpg": ("dog", "cat", "tree"),
    "c.jpg": ("tree",),
    "d.jpg": (),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in SHOWN:
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def coco(folder: Path, name: str = "boxes.json", **names: str) -> Path:
    """Instances of the pictures; a picture may go by another name."""
    classes = sorted({each for shown in SHOWN.values() for each in shown})
    ids = {image: number for number, image in enumerate(SHOWN, 1)}
    content = {
        "images": [{"id": ids[image], "file_name": names.get(image[0], image)} for image in SHOWN],
        "categories": [{"id": 10 + i, "name": each} for i, each in enumerate(classes)],
        "annotations": [
            {"image_id": ids[image], "category_id": 10 + classes.index(each), "iscrowd": 1}
            for image, shown in SHOWN.items()
            for each in (*shown, *shown[:1])
        ],
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def voc(folder: Path) -> Path:
    place = folder / "Annotations"
    place.mkdir()
    for image, shown in SHOWN.items():
        objects = "".join(
            f"<object><name>{each}</name><difficult>1</difficult>"
            "<part><name>head</name></part></object>"
            for each in (*shown, *shown[:1])
        )
        text = f"<annotation><filename>{image}</filename>{objects}</annotation>"
        (place / image).with_suffix(".xml").write_text(text)
    return place


def table(folder: Path) -> Path:
    path = folder / "objects.csv"
    rows = [f"{image},{each},0.9" for image, shown in SHOWN.items() for each in shown]
    path.write_text("\ufeffImage, object ,score\r\n" + "\r\n".join([*rows, rows[0]]) + "\r\n")
    return path


def lines(folder: Path) -> Path:
    path = folder / "truth.json"
    rows = [{"image": image, "objects": [*shown, *shown]} for image, shown in SHOWN.items()]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


# Reading


@pytest.mark.parametrize("write", [coco, voc, table, lines])
def test_every_form_says_the_same_of_the_same_pictures(
    write: Callable[[Path], Path], pictures: Path, tmp_path: Path
) -> None:
    found = read_objects([write(tmp_path)], pictures)
    # A table can't say that there is nothing in a picture.
    wanted = {name: shown for name, shown in SHOWN.items() if shown or write is not table}
    assert found.objects == wanted
    assert (found.absent, found.extra) == (0, 4 - len(wanted))


def test_pictures_that_lack_on_either_side_are_counted(pictures: Path, tmp_path: Path) -> None:
    path = coco(tmp_path)
    (pictures / "a.jpg").unlink()
    for name in ("x.jpg", "y.jpg"):
        Image.new("RGB", (2, 2)).save(pictures / name)
    found = read_objects([path], pictures)
    assert (set(found.objects), found.absent, found.extra) == ({"b.jpg", "c.jpg", "d.jpg"}, 1, 2)


def test_pictures_are_found_by_path_by_name_and_by_coco_s_id(tmp_path: Path) -> None:
    for name in ("COCO_val2014_000000000001.jpg", "000000000002.jpg", "x/b.png", "y/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    named: dict[Id, str] = {
        1: "000000000001.jpg",
        2: "COCO_train2014_000000000002.jpg",
        "s": "y\\b.png",
        4: "no",
    }
    assert find_pictures(tmp_path, named) == {
        "000000000002.jpg": 2,
        "COCO_val2014_000000000001.jpg": 1,
        "y/b.png": "s",
    }
    # A number in another tool's name is no id.
    with pytest.raises(ValueError, match=r"none of the 1 annotated images .* e\.g\. IMG_0001\.jpg"):
        find_pictures(tmp_path, {1: "IMG_0001.jpg"})
    with pytest.raises(NotADirectoryError, match="b.png is a file: name the folder"):
        find_pictures(tmp_path / "x" / "b.png", {1: "b.png"})
    with pytest.raises(ValueError, match="holds 2 pictures that image 1 .* may be: x/b.png and y"):
        find_pictures(tmp_path, {1: "b.png"})
    with pytest.raises(ValueError, match=r"images 7 and 8 are both x/b\.png"):
        find_pictures(tmp_path, {7: "x/b.png", 8: "x/b.png"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "its images is no list"),
        ({"images": [{"file_name": "a.jpg"}]}, r"images\[0\] has no id"),
        ({"categories": [{"id": 11}]}, r"categories\[0\] has no name"),
        ({"categories": [{"id": True, "name": "x"}]}, r"categories\[0\] has no id"),
        ({"annotations": [{"image_id": 9, "category_id": 10}]}, "of image 9, not in its images"),
        ({"annotations": [{"image_id": 1, "category_id": 99}]}, "of category 99, which is not"),
        ({"annotations": [{"image_id": [1]}]}, r"annotations\[0\] has no image_id"),
        ({"annotations": [3]}, r"annotations\[0\] has no image_id"),
        ({"annotations": [{"image_id": 1, "segments_info": []}]}, "is COCO panoptic"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = coco(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        read_annotations([path])


def test_files_whose_ids_count_other_pictures_are_not_merged(tmp_path: Path) -> None:
    one, other = coco(tmp_path), coco(tmp_path, "other.json", a="e.jpg")
    with pytest.raises(ValueError, match=r"other\.json: image 1 is e\.jpg, but a\.jpg in another"):
        read_annotations([one, other])
    # COCO's own pictures keep their ids, whatever the year puts before them.
    years = {"a": "000000000007.jpg"}, {"a": "COCO_val2014_000000000007.jpg"}
    files = [coco(tmp_path, f"{number}.json", **names) for number, names in enumerate(years)]
    assert read_annotations(files).images[1] == "000000000007.jpg"
    with pytest.raises(ValueError, match="image 1 is 000000000008.jpg, but 000000000007.jpg"):
        read_annotations([files[0], coco(tmp_path, "8.json", a="000000000008.jpg")])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "picture,object\na.jpg,dog\n", "first line must name the columns"),
        ("a.csv", "image;object\na.jpg;dog\n", "separated by commas; it is 'image;object'"),
        ("a.csv", "", "separated by commas; it is empty"),
        ("a.csv", "image,object\n", "names no object: a row for each is needed"),
        ("a.csv", "image,object\na.jpg\nb.jpg,x\n", "lacks object"),
        ("a.csv", "image,object\na.jpg, \nb.jpg,x\n", ":2: image and object must not be empty"),
        ("a.csv", 'image,object\na.jpg,"x\nb.jpg,x\n', "malformed CSV"),
        ("a.xml", "<annotation><object>", "malformed XML"),
        ("a.xml", "<annotation></annotation>", "has no <filename>"),
        ("a.xml", "<annotation><filename>a</filename></annotation>", "has no ending"),
        (
            "a.xml",
            "<annotation><filename>a.jpg</filename><object/></annotation>",
            "object 1 has no <name>",
        ),
        (
            "a.xml",
            '<!DOCTYPE x [<!ENTITY e "e">]>\n<annotation><filename>a.jpg</filename></annotation>',
            "declares a document type",
        ),
        ("a.json", '{"image": "a.jpg", "objects": "dog"}', "objects must be a list of texts"),
        ("a.json", '{"image": "a.jpg", "objects": [{}]}', "objects must be a list of texts"),
        ("a.json", '{"image": 3, "objects": []}', "image must be text, not 3"),
        ("a.json", "[]", "is an empty JSON list; objects are read from COCO's"),
        ("a.json", "", "is empty; objects are read from COCO's"),
        ("a.txt", "0 0.1 0.1 0.1 0.1\n", "is a file of YOLO labels; objects are read from"),
    ],
)
def test_malformed_annotations_are_named(
    name: str, text: str, message: str, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        read_objects([path], pictures)


def test_a_picture_annotated_twice_and_two_forms_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    folder = voc(tmp_path)
    (folder / "again.xml").write_text((folder / "a.xml").read_text())
    with pytest.raises(ValueError, match=r"again\.xml: the image a\.jpg is annotated twice"):
        read_objects([folder], pictures)
    with pytest.raises(ValueError, match="a table.*COCO's format: give one form"):
        read_objects([table(tmp_path), coco(tmp_path)], pictures)
    with pytest.raises(ValueError, match=r"neither Pascal-VOC files .*, but a\.jpg, b\.jpg"):
        read_objects([pictures], pictures)


# Building


def rich(images: int = 12) -> Annotated:
    """Each picture shows four of nine classes in turn."""
    classes = [f"class{number}" for number in range(9)]
    shown = {
        f"{i:02}.jpg": tuple(classes[(i + k) % 9] for k in (0, 1, 2, 3)) for i in range(images)
    }
    return Annotated(shown, "memory", 0, 0)


def test_a_file_holds_every_kind_and_is_read_as_it_is(tmp_path: Path) -> None:
    made = build(rich(), KINDS, questions=4)
    path = tmp_path / "questions.json"
    path.write_text(made.text)
    task = Pope.from_files([path], tmp_path)
    assert Counter(item.group for item in task.items) == dict.fromkeys(KINDS, 48)
    assert Counter(item.target for item in task.items) == {"yes": 72, "no": 72}
    assert len({item.id for item in task.items}) == 144
    assert (made.images, made.usable, made.drawn) == (12, 12, False)
    truth = rich().objects
    for row in made.records:
        name = str(row["text"]).removeprefix("Is there a ").removesuffix(" in the image?")
        assert (name in truth[str(row["image"])]) == (row["label"] == "yes")


def test_the_seed_draws_where_there_are_more_pictures_than_asked_for() -> None:
    drawn = [build(rich(), ["popular"], images=5, seed=seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({one.text for one in drawn}) == 3
    assert all(one.drawn and one.images == 5 for one in drawn)


def test_what_no_ranking_gives_is_counted() -> None:
    # Nothing but a's own companions was ever seen with a.
    shown = {"1.jpg": ("a", "b", "c"), "2.jpg": ("d", "e", "f"), "3.jpg": ("d", "e", "f")}
    made = build(Annotated(shown, "memory", 0, 0), KINDS)
    assert made.at_random == {"random": 9, "popular": 0, "adversarial": 9}


def test_classes_that_too_few_pictures_show_are_left_out_on_demand() -> None:
    shown = {**rich().objects, "x.jpg": ("unicorn", "class0", "class1")}
    seen = Annotated(shown, "memory", 0, 0)
    assert "unicorn" in build(seen, ["random"]).text
    made = build(seen, KINDS, rarest=2)
    assert made.rare == {"unicorn": 1}
    assert "unicorn" not in made.text and "x.jpg" not in made.text
    told = (
        r"besides 10 that fewer than 99 pictures show \(class0.*lower --min-images or --questions"
    )
    with pytest.raises(ValueError, match=told):
        build(seen, KINDS, rarest=99)


def test_requests_that_cannot_be_met_are_refused() -> None:
    for questions in (0, 5, -2):
        with pytest.raises(ValueError, match=f"so {questions} per picture can't be"):
            build(rich(), KINDS, questions=questions)
    with pytest.raises(
        ValueError, match="12 of 12 .* show 3 classes or more, 13 are needed: lower --n-images or"
    ):
        build(rich(), KINDS, images=13)
    with pytest.raises(
        ValueError, match="5 classes or more, and some are needed: lower --questions"
    ):
        build(rich(), KINDS, questions=10)
    few = Annotated({"a.jpg": ("a", "b", "c"), "b.jpg": ("b", "c", "d")}, "memory", 0, 0)
    with pytest.raises(ValueError, match="the pictures show 4 classes.* takes 6 at least"):
        build(few, KINDS)


# The command


def test_the_command_writes_a_file_and_says_how_it_was_made(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.json"
    args = ["--annotations", str(coco(tmp_path)), "--images", str(pictures), "--out", str(out)]
    result = call("build", "pope", *args, "--questions", "2", "--strategy", "adversarial,random")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter(row["category"] for row in rows) == {"random": 6, "adversarial": 6}
    assert "3 pictures can be asked about, fewer than 500: all are" in result.output
    assert f"regaze eval pope --questions {out} --images {pictures}" in result.output
    told = json.loads(call("build", "pope", *args, "--questions", "2", "--json").stdout)
    assert (told["questions"], told["images"], told["usable"]) == (18, 3, 3)
    assert "ties: seen first" in told["rules"]["popular"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--strategy", "common"], "unknown strategy 'common'"),
        (["--strategy", ","], "--strategy is one or more of random"),
        (["--n-images", "9"], "2 of 4 annotated pictures show 2 classes or more, 9 are needed"),
    ],
)
def test_a_command_that_cannot_be_met_leaves_the_old_file(
    extra: list[str], message: str, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.json"
    out.write_text("old")
    args = ["--annotations", str(coco(tmp_path)), "--images", str(pictures), "--out", str(out)]
    result = call("build", "pope", *args, "--questions", "4", *extra)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert out.read_text() == "old"


def test_the_place_of_the_file_is_looked_at_first(pictures: Path, tmp_path: Path) -> None:
    args = ["--annotations", "nowhere.json", "--images", str(pictures)]
    for out in (tmp_path, coco(tmp_path) / "q.json"):
        result = call("build", "pope", *args, "--out", str(out))
        assert (result.exit_code, f"cannot write {out}" in one_line(result)) == (2, True)


# Real pictures


def test_a_pope_of_real_photographs_asks_what_is_annotated(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "tiny_coco"
    if not folder.is_dir():
        pytest.skip("REGAZE_DATA has no tiny_coco")
    files = [folder / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")]
    found = read_objects(files, folder)
    assert len(found.objects) == 100
    made = build(found, KINDS)
    assert (made.images, len(made.records)) == (60, 3 * 60 * 6)
    path = tmp_path / "q.json"
    path.write_text(made.text)
    task = Pope.from_files([path], folder)
    assert task.load_image(task.items[0]).mode == "RGB"
    for item in task.items:
        name = item.prompt.split(" ", 3)[3].removesuffix(" in the image?")
        assert (name in found.objects[str(item.image)]) == (item.target == "yes")
