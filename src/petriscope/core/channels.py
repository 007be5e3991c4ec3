"""The channels of images: their names, which of them are red, green and blue, and how many levels their values have."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 16  # channels of an image
GRAY = ("gray",)
RGB = ("red", "green", "blue")
FULL = {8: 255, 16: 65535}  # the largest value, which is 1.0, of values with so many bits

Names = tuple[str, ...]
Colors = tuple[int, int, int]
Groups = tuple[tuple[int, ...], ...]


def default_names(count: int) -> Names:
    """The names of channels that nobody named: one is gray, and three are red, green and blue."""
    return {1: GRAY, 3: RGB}.get(count) or tuple(f"channel {number}" for number in range(1, count + 1))


def colors_of(names: Sequence[str]) -> Colors | None:
    """The places of the channels called red, green and blue (or r, g and b); None unless each is there once."""
    known = [name.casefold() for name in names]
    places = [[i for i, name in enumerate(known) if name in (color, color[0])] for color in RGB]
    if any(len(each) != 1 for each in places):
        return None
    red, green, blue = (each[0] for each in places)
    return red, green, blue


def wanted(names: Names) -> str | Names:
    """What ``data.channels`` is to be, so that images get these channels: ``gray``, ``rgb``, or the names."""
    return {GRAY: "gray", RGB: "rgb"}.get(names, names)


def is_plain(names: Sequence[str]) -> bool:
    """Whether images are gray or RGB, as image files mostly are."""
    return tuple(names) in (GRAY, RGB)


def groups_of(names: Sequence[str]) -> Groups:
    """Which channels are changed together by what changes light and color: red, green and blue; every other channel is treated as
    a gray image of its own. Empty for gray and RGB images, which are one group as they are."""
    if not names or is_plain(names):
        return ()
    colors = colors_of(names)
    rest = tuple((place,) for place in range(len(names)) if colors is None or place not in colors)
    return rest if colors is None else (colors, *rest)


def color_words(names: Sequence[str]) -> str:
    """What is done with channels that are no colors, in words."""
    colors = colors_of(names)
    if colors is None:
        return "none is called red, green or blue, so nothing changes colors, and light is changed channel by channel"
    rest = [name for place, name in enumerate(names) if place not in colors]
    return f"what changes colors acts on red, green and blue alone, and not on {', '.join(rest)}"


def in_words(names: Sequence[str]) -> str:
    """``gray``, ``RGB``, or the number of channels and their names."""
    if is_plain(names):
        return "gray" if len(names) == 1 else "RGB"
    return f"{len(names)} channel{'s' if len(names) > 1 else ''} ({', '.join(names)})"
