"""Files as users send them: each is read right or refused in one clear line."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from regaze.evals.benchmarks.data import (
    open_image,
    read_image,
    read_json,
    read_records,
    read_text,
)
from regaze.evals.task import Item

RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def pixel(data: bytes, place: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = read_image(data, "it")
    assert image.mode == "RGB"
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    return tuple(int(value) for value in found)


# Images


def test_what_is_transparent_lies_on_white() -> None:
    hidden = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    hidden.putpixel((1, 0), (255, 0, 0, 255))
    assert pixel(encoded(hidden)) == (255, 255, 255)
    assert pixel(encoded(hidden), (1, 0)) == RED
    assert pixel(encoded(Image.new("LA", (1, 1), (0, 127)))) == (128, 128, 128)


def test_a_transparent_colour_of_a_palette_lies_on_white_too() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    data = encoded(image, "GIF", transparency=0)
    assert pixel(data) == (255, 255, 255)
    assert pixel(data, (1, 0)) == RED
    assert pixel(encoded(image, "GIF"), (0, 0)) == (0, 0, 0)


def test_16_bit_grey_is_scaled_and_not_cut_off() -> None:
    image = Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], np.uint16))
    for kind in ("PNG", "TIFF"):
        read = read_image(encoded(image, kind), "it")
        assert np.asarray(read)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("1", 1), ("L", 255), ("CMYK", (0, 0, 0, 0)), ("P", 255), ("RGB", (255, 255, 255))],
)
def test_other_modes_come_out_as_rgb(mode: str, colour: object) -> None:
    image = Image.new(mode, (3, 2), colour)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in "RGB"])
    data = encoded(image, "TIFF")
    assert read_image(data, "it").size == (3, 2)
    assert pixel(data) == (255, 255, 255)


def test_cmyk_jpegs_keep_their_colours() -> None:
    red = pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_32_bit_images_are_refused_as_nobody_knows_their_white() -> None:
    for mode in ("I", "F"):
        with pytest.raises(OSError, match=f"cannot read the image it: .*mode {mode}.* 8 bits"):
            read_image(encoded(Image.new(mode, (2, 2), 7), "TIFF"), "it")


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **_lossless(kind))
        assert pixel(data) == RED


def _lossless(kind: str) -> dict[str, bool]:
    return {"lossless": True} if kind == "WEBP" else {}


@pytest.mark.parametrize("orientation", range(10))
def test_photographs_stand_upright(orientation: int) -> None:
    photo = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, "PNG", exif=exif.tobytes())
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(read_image(data, "it")), np.asarray(wanted))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_other_damaged_exif_does_not_keep_a_photograph_from_standing_upright() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    good = exif.tobytes()
    # The resolution becomes text, which nothing can write back as a number.
    bad = good.replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")
    data = encoded(Image.new("RGB", (30, 10), RED), "JPEG", exif=bad)
    assert bad != good
    with pytest.raises((AttributeError, TypeError)):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert read_image(data, "it").size == (10, 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(Image.new("RGB", (30, 10), RED), "JPEG", exif=exif.tobytes())
    place = good.index(b"Exif") + 6
    for cut in range(0, 12):
        bad = good[: place + cut] + b"\xff" * (20 - cut) + good[place + 20 :]
        assert read_image(bad, "it").size in ((30, 10), (10, 30))


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (10, 10_000)])
def test_sizes_of_all_shapes_are_kept(size: tuple[int, int]) -> None:
    assert read_image(encoded(Image.new("RGB", size)), "it").size == size


def test_the_content_tells_the_format_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.new("RGB", (2, 2), RED), "PNG"))
    assert open_image(path).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "no image format that Pillow knows begins with b'<html>404</h'"),
        (b"version https://git-lfs", "no image format"),
        (encoded(Image.effect_noise((64, 64), 99))[:-2000], "truncated|image file|unexpected"),
        (encoded(Image.effect_noise((64, 64), 99), "JPEG")[:-500], "truncated"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"^cannot read the image {path}: .*({why})") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_image_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^there is no image {tmp_path / 'b.png'}$"):
        open_image(tmp_path / "b.png")
    with pytest.raises(OSError, match=f"cannot read the image {tmp_path}: Is a directory"):
        open_image(tmp_path)


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (3000, 3000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000_000)
    with pytest.raises(OSError, match="cannot read the image it: .*exceeds limit"):
        read_image(data, "it")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_of_any_kind_is_an_oserror_with_the_name(kind: str) -> None:
    rng = random.Random(0)
    good = encoded(Image.effect_noise((24, 24), 90).convert("RGB"), kind)
    for _ in range(80):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        data = bytes(bad[: rng.choice((len(bad), rng.randrange(1, len(bad))))])
        try:
            assert read_image(data, "name.png").mode == "RGB"
        except OSError as error:
            assert str(error).startswith("cannot read the image name.png: ")


# Text


def lines(path: Path) -> list[dict[str, object]]:
    return [row for _, row in read_records(path)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_with_its_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    text = '{"text": "Is there a café?"}\n'
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path.write_bytes((mark + text).encode(encoding))
    assert lines(path) == [{"text": "Is there a café?"}]


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"text": "plain"}\n{"text": "café"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path}:2: byte 0xe9 is no utf-8, .* save it as UTF-8"):
        lines(path)
    path.write_bytes('{"text": "café"}'.encode("utf-16-le"))
    with pytest.raises(ValueError, match=str(path)):
        lines(path)


def test_zero_bytes_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("plain".encode("utf-16-be"))
    with pytest.raises(ValueError, match=f"{path} is no text file"):
        read_text(path)


@pytest.mark.parametrize("form", [lambda text: text, lambda text: f"[\n{text}\n]"])
def test_a_key_that_occurs_twice_is_named(tmp_path: Path, form: Callable[[str], str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(form('{"image": "a.jpg", "text": "?", "image": "b.jpg"}'))
    with pytest.raises(ValueError, match=rf"{path}:1: the key 'image' occurs twice .*a\.jpg"):
        lines(path)


def test_arrays_may_be_written_over_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"a": 1}, {"a": 2}]
    path.write_text(json.dumps(rows, indent=4))
    assert list(read_records(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:2", {"a": 2})]


def test_endless_nesting_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{path}:1"):
        lines(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"id": 7}\n{"id": 8, "text": "a \\ud800"}', r"a.json:2, id 8: text is 'a \ud800'"),
        ('[{"id": 7}, {"id": "\\uDC00"}]', r"a.json:2, id '\udc00': id is '\udc00'"),
        ('{"question_id": 7, "b": ["\\ud800"]}', r"a.json:1, question_id 7: b.0 is '\ud800'"),
        ('{"\\ud800": 1}', r"a.json:1: a key of the object is '\ud800'"),
        ('{"b": {"\\ud83d": 1}}', r"a.json:1: a key of b is '\ud83d'"),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_file_row_and_field(
    tmp_path: Path, rows: str, said: str
) -> None:
    (tmp_path / "a.json").write_text(rows)
    with pytest.raises(ValueError) as error:
        list(read_records(tmp_path / "a.json"))
    assert str(error.value).startswith(f"{tmp_path}/{said}, which holds half of a surrogate pair")


def test_of_one_json_object_the_place_is_named_and_whole_pairs_are_characters(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'{"images": [{"id": 3, "name": "\ud83d\ude00 \\ud800"}]}')
    assert read_json(path)["images"][0]["name"] == "\U0001f600 \\ud800"
    path.write_text(r'{"images": [{"id": 3, "name": "\ude00"}]}')
    with pytest.raises(ValueError, match=r"a\.json, id 3: images\.0\.name is '\\ude00', which"):
        read_json(path)


@pytest.mark.parametrize("field", ["id", "image", "prompt", "group", "cluster"])
def test_no_item_holds_half_a_surrogate_pair(field: str) -> None:
    texts: dict[str, Any] = {"id": "a", "image": "b", "prompt": "c"}
    with pytest.raises(ValueError, match=r"item '.*' holds half of a surrogate pair in '\\udcff'"):
        Item(**{**texts, field: "\udcff"})
    with pytest.raises(ValueError, match=r"item 'a' holds half"):
        Item("a", "b", "c", choices=("x", "\udcff"))
    assert Item("\U0001f600", "b", "c").cluster == "b"


def test_what_json_readers_cannot_take_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"id": 1' + "0" * 5000 + "}")
    with pytest.raises(ValueError, match=f"^{path}:1: a number has thousands of digits$"):
        read_json(path)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=f"^{pipe} is a pipe or a device"):
        read_json(pipe)


def test_a_device_is_refused_as_it_may_have_no_end() -> None:
    with pytest.raises(ValueError, match=r"^/dev/zero is a device: save what it gives as a file$"):
        read_text(Path("/dev/zero"))
