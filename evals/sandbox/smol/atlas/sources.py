"""Sources of the atlas's pictures: packages, checksums, licences, holders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A set of pictures.

    Attributes:
        name: The set's name in atlas.json.
        design: Two sets of one design show the same drawing in two techniques.
        package: The npm package that holds the set.
        version: The package's version.
        sha256: Checksum of the package's archive.
        licence: SPDX name.
        holder: The pictures' owner, and where they are published.
    """

    name: str
    design: str
    package: str
    version: str
    sha256: str
    licence: str
    holder: str


_MICROSOFT = "Microsoft Corporation, https://github.com/microsoft/fluentui-emoji"
_GOOGLE = "Google LLC, https://github.com/googlefonts/noto-emoji"
SOURCES = (
    Source(
        "fluent-3d",
        "fluent",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        _MICROSOFT,
    ),
    Source(
        "fluent-flat",
        "fluent",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        _MICROSOFT,
    ),
    Source(
        "noto",
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        _GOOGLE,
    ),
    Source(
        "noto-v1",
        "noto-v1",
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        _GOOGLE,
    ),
    Source(
        "twemoji",
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twitter, Inc. and other contributors, https://github.com/jdecked/twemoji",
    ),
    Source(
        "emojitwo",
        "emojitwo",
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "EmojiTwo, https://github.com/EmojiTwo/emojitwo",
    ),
    Source(
        "fxemoji",
        "fxemoji",
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Mozilla, https://github.com/mozilla/fxemoji",
    ),
    Source(
        "streamline",
        "streamline",
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
        "Streamline, https://github.com/webalys-hq/streamline-vectors",
    ),
)
