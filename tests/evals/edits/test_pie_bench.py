"""PIE-Bench's file as it is published, in small: two edits made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regaze.evals.edits import pie_bench
from regaze.evals.edits.pie_bench import PieItem, main, read, score
from regaze.evals.sandbox.painting.prompts import parse
from regaze.evals.sandbox.painting.scenes import paint, right_picture

SOURCE = "a [red] circle and a blue square"
ROW: dict[str, Any] = {
    "image_path": "6_change_color/one.png", "original_prompt": SOURCE,
    "editing_prompt": "a [green] circle and a blue square", "editing_instruction": "",
    "editing_type_id": "6", "blended_word": "red green", "mask": [0, 131072],
}  # fmt: skip


def written(folder: Path, **rows: Any) -> Path:
    """A folder of the benchmark with the same picture for each row."""
    wanted = parse("a red circle and a blue square")
    for row in rows.values():
        path = folder / "annotation_images" / str(row["image_path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(right_picture(wanted, 3).objects).save(path)
    (folder / "mapping_file.json").write_text(json.dumps(rows))
    return folder


def test_what_the_file_says(tmp_path: Path) -> None:
    style = {**ROW, "editing_type_id": "9", "blended_word": ""}
    one, two = read(written(tmp_path, a=ROW, b=style))
    image = tmp_path / "annotation_images" / "6_change_color" / "one.png"
    assert one == PieItem(
        "a", "colour", image, "a red circle and a blue square",
        "a green circle and a blue square", ("red",), (0, 131072),
    )  # fmt: skip
    assert (one.asked.words, one.asked.mask) == (("red",), None)
    assert (two.kind, two.asked.words, two.asked.mask) == ("style", (), "all")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": "0 5"}, "a: mask must be a list"),
        ({"editing_type_id": "12"}, "a: editing_type_id must be 0 to 9, got '12'"),
        ({"original_prompt": None}, "a: original_prompt must be a str"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(written(tmp_path, a={**ROW, **change}))
    with pytest.raises(ValueError, match="cannot read"):
        read(tmp_path / "none")


def test_the_upper_half_may_change(tmp_path: Path) -> None:
    (item,) = read(written(tmp_path, a=ROW))
    with Image.open(item.image) as image:
        pixels = np.asarray(image.convert("RGB").resize((512, 512))).copy()
    pixels[:256] = 0
    found = score(item, Image.fromarray(pixels))
    assert found["background_mse"] == found["mse"] == 0
    pixels[256:] = np.clip(pixels[256:].astype(int) + 51, 0, 255)
    found = score(item, Image.fromarray(pixels))
    assert found["background_mse"] == pytest.approx(0.2**2 * 1e4, rel=0.05)  # In 1e-4.
    assert found["mse"] == pytest.approx(found["background_mse"] * 255 * 510 / 512**2)


def test_edits_are_made_kept_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    same = {**ROW, "editing_prompt": SOURCE}
    folder = written(tmp_path / "pie", a=ROW, b=same, c={**ROW, "editing_type_id": "1"})
    command = [
        str(folder), "--model", "painter-mmdit", "--with", "none", "--with", "consistedit",
        "--kind", "colour", "--steps", "2", "--guidance", "1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    main(command)
    done = json.loads(capsys.readouterr().out)
    assert (done["edits"], done["refused"]) == (1, {"b": "the edit prompt is the source's"})
    means = {title: each["all"] for title, each in done["means"].items()}
    assert list(means) == ["none", "consistedit"]
    assert means["consistedit"]["background_mse"] != means["none"]["background_mse"]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["a.png"] * 2
    # What is there isn't made again.
    monkeypatch.setattr(pie_bench, "edit", None)
    main(command)
    assert json.loads(capsys.readouterr().out) == done
