from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from hubs import fake_hub
from PIL import Image

from regaze.evals.benchmarks.hub import Hub, read_hub


def grey(shade: int) -> Image.Image:
    return Image.new("L", (2, 2), shade)


def shade(image: Image.Image) -> Any:
    return image.getpixel((0, 0))


def test_rows_keep_their_fields_and_images_are_loaded_by_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"n": 1, "image": grey(10)}, {"n": 2, "image": grey(20)}, {"n": 3, "image": grey(10)}]
    asked = fake_hub(monkeypatch, {"a": rows[:2], "b": rows[2:]})
    found, load = read_hub(Hub("me/set", ("a", "b"), config="Full"))
    assert asked == [("me/set", "Full")] * 2
    assert [row["n"] for row in found] == [1, 2, 3]
    assert found[0]["image"] == found[2]["image"] != found[1]["image"]
    assert [shade(load(row["image"])) for row in found] == [(s,) * 3 for s in (10, 20, 10)]


def test_a_key_of_ones_own_is_taken_where_it_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"n": 1, "image": grey(10)}, {"n": 0, "image": grey(20)}]
    fake_hub(monkeypatch, {"a": rows})
    found, load = read_hub(Hub("x/y", ("a",), key=lambda row: f"k{row['n']}" if row["n"] else None))
    assert found[0]["image"] == "k1"
    assert len(str(found[1]["image"])) == 16
    assert shade(load("k1")) == (10, 10, 10)


def test_rows_without_image_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {"a": [{"n": 1, "image": None}], "b": [{"n": 2}]})
    found, _ = read_hub(Hub("x/y", ("a", "b")))
    assert [row.get("image") for row in found] == [None, None]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {"a": []})
    with pytest.raises(OSError, match=r"cannot read b of x/y .*no such file.* Unknown split 'b'"):
        read_hub(Hub("x/y", ("b",)))
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"x/y here, .* needs .* pip install 'regaze"):
        read_hub(Hub("x/y", ("b",)))


def test_the_package_itself_reads_a_local_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"n": [1, 2], "image": [grey(10), grey(20)]}
    features = datasets.Features({"n": datasets.Value("int64"), "image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "test.parquet"))
    found, load = read_hub(Hub(str(tmp_path), ("test",)))
    assert [row["n"] for row in found] == [1, 2]
    assert [shade(load(row["image"])) for row in found] == [(10,) * 3, (20,) * 3]
    with pytest.raises(OSError, match="cannot read train of"):
        read_hub(Hub(str(tmp_path), ("train",)))
