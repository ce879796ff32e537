"""Every method has a card, made of what the code and the stored results say today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builder import cards, costs, drawings, pages, specs

from regaze.interventions import (
    PAG,
    SPIN,
    VAF,
    AStar,
    AttendAndExcite,
    Devils,
    PrimeComposer,
    get,
)
from regaze.interventions.shipped import outlines

each_method = pytest.mark.parametrize("name", sorted(outlines()))


@each_method
def test_the_card_is_the_one_that_the_code_gives(name: str) -> None:
    written = (cards.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert written == cards.card(name), "out of date: run `make cards`"


@each_method
def test_the_drawing_is_the_one_that_the_code_gives(name: str) -> None:
    written = (cards.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    cls = get(name)
    caption = cls.summary[0].upper() + cls.summary[1:]
    assert written == drawings.drawing(name, cls.acts_on, caption), "run `make cards`"


def test_there_is_no_card_of_anything_else() -> None:
    assert {path.stem for path in cards.FOLDER.iterdir()} == set(outlines())


def test_a_method_that_nobody_drew_is_drawn_by_what_it_acts_on() -> None:
    known = set(drawings.DRAWN)
    assert known == set(outlines())
    for acts_on in ("vision-language models", "diffusers pipelines"):
        assert drawings.drawing("new", acts_on, "A new <method>").startswith("<svg ")
    assert "A new &lt;method&gt;" in drawings.drawing(
        "new", "diffusers pipelines", "A new <method>"
    )


def test_fields_come_with_defaults_domains_and_texts() -> None:
    enhance, suppress, layers = specs.fields(VAF)
    assert enhance == specs.Field("enhance", "1.15", "[0, 100]", "Factor on image columns.")
    assert layers.default == "null" and "9 to 14 of 32" in layers.text
    by_name = {field.name: field for field in specs.fields(PAG)}
    assert by_name["variant"].domain == "`image`, `joint`"
    assert by_name["scale"].text.startswith("Weight of the difference")  # A base's field.
    assert {f.name: f.domain for f in specs.fields(SPIN)}["heads"] == "`top`, `bottom`, `random`"


@each_method
def test_every_field_is_documented(name: str) -> None:
    assert [field.name for field in specs.fields(get(name)) if not field.text] == []


def test_what_other_pages_say_is_found() -> None:
    assert pages.notes(Devils).startswith("**Devils in the middle layers.**")
    assert pages.notes(AttendAndExcite).startswith("**Attend-and-Excite.**")
    assert pages.notes(PAG).startswith("**PAG.**")
    assert pages.beside_pictures(PrimeComposer) and not pages.beside_pictures(PAG)
    (reason,) = [why for why in pages.refusals(VAF) if "resampler" in why]
    assert "InstructBLIP" in pages.refusals(VAF)[reason]


@each_method
def test_costs_are_sentences(name: str) -> None:
    for said in costs.costs(get(name)):
        assert re.fullmatch(r"[A-Z`].* takes? \d.*\.|An earlier version.*\.", said), said
        assert not re.search(r"; |: \d|\. [a-z]|\{|- |  |,\.", said), said


def test_costs_come_from_the_benchmarks() -> None:
    (shared,) = [said for said in costs.costs(AStar) if said.startswith("Whole pass: ")]
    assert shared.startswith("Whole pass: a step that moves the latents takes 1.9")
    assert any("a decode step behind it" in said for said in costs.costs(VAF))


def test_a_table_whose_columns_nobody_has_put_into_words_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = pages.Table("What contrasts cost: `contrast.py`", ["", "seconds"], [["VAF", "1.0"]])
    monkeypatch.setattr(pages, "tables", lambda page: [table])
    with pytest.raises(ValueError, match="how the columns \\['seconds'\\] read"):
        costs.costs(VAF)


def test_every_method_is_in_the_page_of_methods() -> None:
    assert [name for name in outlines() if pages.does(get(name)) is None] == []
    assert [name for name in outlines() if not pages.avoid(get(name))] == []


def test_a_card_says_what_a_reader_needs() -> None:
    text = (cards.FOLDER / "vhr.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [
        "How it works",
        "Settings",
        "Cost",
        "What it did on our models",
        "When not to use it",
        "Where paper and code differ",
        "Literal form",
    ]
    assert "https://arxiv.org/abs/2412.13949" in text
    assert "random heads, bottom heads" in text


def test_links_of_another_folder_are_written_anew() -> None:
    moved = cards.moved("[a](engine.md#x) [b](https://b.c) [d](#e) `[f](g)`", "docs")
    assert moved == "[a](../engine.md#x) [b](https://b.c) [d](#e) `[f](../g)`"
    assert Path(cards.FOLDER / "../engine.md").exists()
