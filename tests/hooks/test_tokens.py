"""TokenMap tells what each column is, whatever the layout of the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from tiny import FAMILIES, tiny
from torch import Tensor

from regaze.hooks import Kind, TokenMap
from regaze.hooks.host import find_host, image_tokens
from regaze.hooks.literal_prompt import STRUCTURE, read
from regaze.hooks.tokens import ImageTokens, Spans

IMG, VIDEO, ROW_END, FENCE, FIRST, NEWLINE, TEXT = 9, 8, 7, 6, 5, 4, 1
TOKENS = ImageTokens(
    image=frozenset({IMG, VIDEO}),
    inside=frozenset({ROW_END, FENCE, FIRST}),
    breaks=frozenset({NEWLINE}),
    fence=FENCE,
    first_tile=FIRST,
)
MARKS = {Kind.PAD: "_", Kind.SYSTEM: "s", Kind.IMAGE: "I", Kind.SEPARATOR: "|"}
MARKS |= {Kind.QUESTION: "q", Kind.GENERATED: "g"}


def kinds(tokens: TokenMap, row: int = 0) -> str:
    """The kinds of one row, a letter per column."""
    found = ["?"] * tokens.length
    for kind, mark in MARKS.items():
        for column in tokens.is_kind(kind)[row].nonzero().flatten().tolist():
            found[column] = mark
    return "".join(found)


def number(tokens: TokenMap, row: int = 0) -> str:
    """The image that each image column belongs to."""
    return "".join("." if i < 0 else str(i) for i in tokens.images[row].tolist())


def of(*ids: int, mask: list[int] | None = None, **changes: Any) -> TokenMap:
    tokens = ImageTokens(**{**vars(TOKENS), **changes})
    given = None if mask is None else torch.tensor([mask])
    return TokenMap.from_ids(torch.tensor([ids]), tokens, given)


def test_text_before_the_image_is_system_and_after_it_question() -> None:
    tokens = of(TEXT, TEXT, IMG, IMG, TEXT)
    assert kinds(tokens) == "ssIIq"
    assert tokens.after_image.tolist() == [[False, False, False, False, True]]
    assert tokens.image_columns(0, 0).tolist() == [2, 3]


def test_text_without_image_is_question_but_not_after_an_image() -> None:
    tokens = of(TEXT, TEXT)
    assert kinds(tokens) == "qq"
    assert not tokens.after_image.any()
    assert not tokens.has_image.any()
    assert tokens.n_images(0) == 0


def test_images_apart_are_numbered_and_the_text_between_is_question() -> None:
    tokens = of(TEXT, IMG, IMG, TEXT, VIDEO, TEXT)
    assert kinds(tokens) == "sIIqIq"
    assert number(tokens) == ".00.1."
    assert tokens.n_images(0) == 2


def test_images_side_by_side_are_told_apart_by_their_size() -> None:
    assert number(of(IMG, IMG, IMG, IMG)) == "0000"
    assert number(of(IMG, IMG, IMG, IMG, per_image=2)) == "0011"
    assert number(of(IMG, IMG, TEXT, IMG, IMG, IMG, IMG, per_image=2)) == "00.1122"
    # An image ends with its last column: what stands between two of its size is of neither.
    tokens = of(IMG, IMG, ROW_END, IMG, IMG, NEWLINE, IMG, IMG, IMG, IMG, per_image=2)
    assert kinds(tokens) == "II|IIqIIII"
    assert number(tokens) == "00.00.1122"
    assert [tokens.image_columns(0, i).tolist() for i in range(3)] == [[0, 1, 3, 4], [6, 7], [8, 9]]


def test_row_ends_inside_an_image_are_separators_and_after_it_text() -> None:
    tokens = of(TEXT, ROW_END, IMG, IMG, ROW_END, IMG, ROW_END, TEXT)
    assert kinds(tokens) == "ssII|Iqq"
    assert number(tokens) == "..00.0.."


def test_line_breaks_count_as_structure_only_beside_tile_marks() -> None:
    assert kinds(of(IMG, NEWLINE, IMG)) == "IqI"
    assert kinds(of(IMG, NEWLINE, ROW_END, IMG)) == "I||I"
    assert kinds(of(IMG, ROW_END, TEXT, IMG)) == "IqqI"


@pytest.mark.parametrize(
    ("gap", "images"),
    [
        ([FENCE], "0.0"),
        ([NEWLINE, FENCE], "0..0"),
        ([FENCE, FENCE], "0..1"),
        ([FENCE, FIRST], "0..1"),
        ([NEWLINE], "0.1"),
        ([FENCE, TEXT], "0..1"),
    ],
)
def test_a_tile_mark_joins_and_a_doubled_or_first_one_parts_images(
    gap: list[int], images: str
) -> None:
    assert number(of(IMG, *gap, IMG)) == images


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_padding_whatever_its_id(side: str) -> None:
    ids, mask = [TEXT, IMG, TEXT], [1, 1, 1]
    pad = [IMG, ROW_END]
    if side == "left":
        tokens = of(*pad, *ids, mask=[0, 0, *mask])
        assert kinds(tokens) == "__sIq"
    else:
        tokens = of(*ids, *pad, mask=[*mask, 0, 0])
        assert kinds(tokens) == "sIq__"
    assert tokens.n_images(0) == 1


def test_padding_between_image_and_text_is_padding() -> None:
    tokens = of(IMG, IMG, TEXT, TEXT, TEXT, mask=[1, 1, 0, 0, 1])
    assert kinds(tokens) == "II__q"
    assert tokens.after_image[0].tolist() == [False, False, False, False, True]


def test_each_row_of_a_batch_is_read_alone() -> None:
    ids = torch.tensor([[TEXT, IMG, TEXT, TEXT], [TEXT, TEXT, TEXT, TEXT], [IMG, TEXT, IMG, TEXT]])
    tokens = TokenMap.from_ids(ids, TOKENS)
    assert [kinds(tokens, row) for row in range(3)] == ["sIqq", "qqqq", "IqIq"]
    assert [tokens.n_images(row) for row in range(3)] == [1, 0, 2]
    assert tokens.has_image.tolist() == [True, False, True]


def test_generated_columns_are_added_and_taken_back() -> None:
    tokens = of(TEXT, IMG, TEXT).grow(2)
    assert kinds(tokens) == "sIqgg"
    assert tokens.length == 5
    assert tokens.after_image[0].tolist() == [False, False, True, True, True]
    assert kinds(tokens.crop(4)) == "sIqg"
    assert kinds(tokens.crop(2)) == "sI"
    assert kinds(tokens.crop(2).grow(1)) == "sIg"
    assert not of(TEXT, TEXT).grow(1).after_image.any()


def test_rows_can_be_selected_and_repeated() -> None:
    ids = torch.tensor([[TEXT, IMG, TEXT], [TEXT, TEXT, IMG]])
    tokens = TokenMap.from_ids(ids, TOKENS).grow(1).select(torch.tensor([0, 0, 1, 1]))
    assert [kinds(tokens, row) for row in range(4)] == ["sIqg", "sIqg", "ssIg", "ssIg"]
    assert tokens.batch == 4


def test_spans_overrule_what_ids_say() -> None:
    spans: list[Spans] = [
        {"image": [(1, 3), (3, 5)]},
        {"image": [(0, 1)], "system": [(4, 5)]},
        {"image": []},
    ]
    tokens = TokenMap.from_spans(spans, 6)
    assert [kinds(tokens, row) for row in range(3)] == ["sIIIIq", "Iqqqsq", "qqqqqq"]
    assert [number(tokens, row) for row in range(3)] == [".0011.", "0.....", "......"]


def test_spans_do_not_reach_into_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    assert kinds(TokenMap.from_spans([{"image": [(1, 4)]}], 5, mask)) == "__IIq"


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"image": [(0, 6)]}, r"\[0, 6\).*5 columns"),
        ({"image": [(-1, 2)]}, r"\[-1, 2\)"),
        ({"image": [(2, 2)]}, r"\[2, 2\)"),
        ({"image": [(3, 2)]}, r"\[3, 2\)"),
        ({"images": [(0, 1)]}, "unknown kind 'images'"),
    ],
)
def test_spans_that_make_no_sense_raise(
    spans: dict[str, list[tuple[int, int]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenMap.from_spans([spans], 5)


def from_family(family: str, *rows: Row) -> tuple[TokenMap, Tensor]:
    model = tiny(family)
    inputs = ask(model, *rows)
    tokens = image_tokens(find_host(model.model, model.processor))
    ids = inputs["input_ids"]
    return TokenMap.from_ids(ids, tokens, inputs["attention_mask"]), ids


WITH_COLUMNS = tuple(family for family in FAMILIES if family != "mllama")
PAIRED = tuple(family for family in WITH_COLUMNS if family != "instructblip")


@pytest.mark.parametrize("family", WITH_COLUMNS)
def test_the_columns_of_every_family_are_told_from_its_tokens(family: str) -> None:
    model = tiny(family)
    tokens, _ = from_family(family, (SHORT, [0]))
    prompt = read(find_host(model.model, model.processor), ask(model, (SHORT, [0])))
    want = [
        "I" if image else "s" if system else "|" if structure else "q"
        for image, system, structure in zip(
            prompt.image, prompt.system, prompt.structure, strict=True
        )
    ]
    assert kinds(tokens) == "".join(want)
    assert ("|" in want) == (family in STRUCTURE)


@pytest.mark.parametrize("family", WITH_COLUMNS)
def test_one_picture_is_one_image(family: str) -> None:
    tokens, _ = from_family(family, (LONG, [1]))
    assert tokens.n_images(0) == 1


@pytest.mark.parametrize("family", PAIRED)
def test_two_pictures_are_two_images(family: str) -> None:
    model = tiny(family)
    tokens, ids = from_family(family, (SHORT, [0, 1]))
    assert tokens.n_images(0) == 2
    both = [tokens.image_columns(0, image).tolist() for image in (0, 1)]
    assert (
        sorted(both[0] + both[1]) == (ids[0] == model.image_token_id).nonzero().flatten().tolist()
    )
    assert max(both[0]) < min(both[1])
    if family != "llava_onevision":  # two images have another layout there
        alone = [from_family(family, (SHORT, [seed]))[0] for seed in (0, 1)]
        assert [len(columns) for columns in both] == [
            len(tokens.image_columns(0, 0)) for tokens in alone
        ]


@pytest.mark.parametrize("family", PAIRED)
def test_a_padded_batch_is_read_as_its_rows_alone(family: str) -> None:
    rows: list[Row] = [(SHORT, [0]), (LONG, [1, 2])]
    together, _ = from_family(family, *rows)
    for row, prompt in enumerate(rows):
        alone, _ = from_family(family, prompt)
        assert kinds(together, row).lstrip("_") == kinds(alone)
        assert number(together, row)[-alone.length :] == number(alone)
