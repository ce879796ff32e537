"""The text of an answer while its tokens come in."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from regaze.serving.writing import Writer

WORDS = {1: "a", 2: " red", 3: " circle", 4: ".", 0: ""}
END = 0


def decode(tokens: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in tokens)


def pieces(writer: Writer, *tokens: int) -> list[str]:
    """The chunks sent until the answer ends, one for each token."""
    sent = []
    for token in tokens:
        sent.append(writer.add(token))
        if writer.finish:
            break
    return sent


def test_text_is_sent_as_it_comes() -> None:
    writer = Writer(decode, {END}, 9, eager=True)
    assert pieces(writer, 1, 2, 3, END, 3) == ["a", " red", " circle", ""]
    assert (writer.finish, writer.text, len(writer.tokens)) == ("stop", "a red circle", 4)


def test_nothing_is_sent_of_an_answer_that_is_given_whole() -> None:
    writer = Writer(decode, {END}, 2)
    assert pieces(writer, 1, 2, 3) == ["", ""]
    assert (writer.finish, writer.text) == ("length", "a red")


@pytest.mark.parametrize(
    ("stop", "sent", "text"),
    [
        (" circle", ["a", " red", ""], "a red"),
        ("d ci", ["a", " re", ""], "a re"),
        ("d ca", ["a", " re", "d circle", "."], "a red circle."),
        ("a", [""], ""),
    ],
)
def test_no_part_of_a_stop_is_sent(stop: str, sent: list[str], text: str) -> None:
    writer = Writer(decode, {END}, 4, [stop], eager=True)
    assert pieces(writer, 1, 2, 3, 4) == sent
    assert writer.text == text == "".join(sent)
    assert writer.finish == ("length" if "." in text else "stop")


def test_the_stop_that_comes_first_counts() -> None:
    writer = Writer(decode, {END}, 9, ["circle", "red"])
    pieces(writer, 1, 2, 3)
    assert writer.text == "a "


def test_a_letter_is_sent_when_it_is_whole() -> None:
    def utf8(tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    writer = Writer(utf8, {END}, 9, eager=True)
    assert pieces(writer, *"für".encode()) == ["f", "", "ü", "r"]
    cut = Writer(utf8, {END}, 2, eager=True)
    assert pieces(cut, *"für".encode()) == ["f", "\ufffd"]


def test_a_decoder_that_takes_spaces_out_gets_time_for_it() -> None:
    def tidy(tokens: Sequence[int]) -> str:
        return " ".join(["it", "'", "s", "red"][token - 1] for token in tokens).replace(
            " ' s", "'s"
        )

    writer = Writer(tidy, {END}, 4, eager=True, rejoins=True)
    assert "".join(pieces(writer, 1, 2, 3, 4)) == "it's red"
    hasty = Writer(tidy, {END}, 4, eager=True)
    with pytest.raises(RuntimeError, match="ask without a stream"):
        pieces(hasty, 1, 2, 3, 4)
