"""Pictures of a request: data URLs by default, web addresses if the operator allows them."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from regaze.serving import urls
from regaze.serving.errors import ApiError, bad
from regaze.serving.settings import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_PARAM = "messages"


@dataclass(frozen=True)
class Picture:
    """A picture as it was sent, with a header that keeps to the limits.

    It stays compressed while it waits, so that waiting requests take no more memory than they sent.
    """

    data: bytes

    def load(self) -> Image.Image:
        """The pixels, in RGB, turned upright as transformers does.

        Raises:
            ApiError: Its data is damaged.
        """
        try:
            with Image.open(BytesIO(self.data), formats=FORMATS) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # Decoders of damaged data raise anything at all.
            raise bad(f"a picture can't be decoded: {error}", _PARAM, "invalid_image") from error


def read(url: str, limits: Limits) -> Picture:
    """Read a picture's address; of the picture itself only the header.

    Raises:
        ApiError: An address that isn't allowed, no picture, or too large a one.
    """
    if url.startswith("data:"):
        data = _inline(url)
    elif not re.match("https?:", url, re.IGNORECASE):
        raise bad(
            "a picture's url must be a data: URL (data:image/png;base64,...); the server opens no "
            "files of its own",
            _PARAM,
        )
    elif not limits.urls:
        raise bad(
            "this server fetches no pictures: send a data: URL (data:image/png;base64,...), or "
            "start it with --allow-urls",
            _PARAM,
        )
    else:
        data = urls.fetch(url, limits.body_bytes)
    _check_header(data, limits.pixels)
    return Picture(data)


def _inline(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise bad("a data: URL must read data:image/png;base64,...", _PARAM)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"a picture's base64 is damaged: {error}", _PARAM, "invalid_image") from error


def _check_header(data: bytes, pixels: int) -> None:
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            animated = getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from error
    except UnidentifiedImageError as error:
        raise bad(f"a picture is no {', '.join(FORMATS)}", _PARAM, "invalid_image") from error
    except Exception as error:  # Decoders of damaged data raise anything at all.
        raise bad(f"a picture can't be decoded: {error}", _PARAM, "invalid_image") from error
    if width * height > pixels:
        raise _too_large(f"it has {width} x {height} pixels, {pixels} are allowed")
    if animated:
        raise bad("a picture is animated: send the frame that is meant", _PARAM, "invalid_image")


def _too_large(why: str) -> ApiError:
    return bad(f"a picture is too large: {why}", _PARAM, "image_too_large")
