"""Settings of a server's operator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of what one request, and all that wait, may take.

    Attributes:
        batch: Prompts that go through the model together.
        waiting: Requests that wait; further ones are sent away with 429.
        new_tokens: Most tokens of an answer, and what a request gets that asks for no number.
        body_bytes: Size of a request.
        pixels: Width times height of a picture.
        pictures: Pictures of a request.
        urls: Fetch pictures from public web addresses.
    """

    batch: int = 8
    waiting: int = 64
    new_tokens: int = 512
    body_bytes: int = 20_000_000
    pixels: int = 20_000_000
    pictures: int = 8
    urls: bool = False
