"""Which of the stored channels are taken, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petriscope.core.channels import GRAY, MOST, RGB, Colors, Names, colors_of, default_names, in_words
from petriscope.core.errors import DataError


@dataclass(frozen=True)
class Pick:
    """How channels become those of an image set.

    Args:
        names: of the channels that are made.
        places: of the channels that are taken; None: all as they are stored.
        luma: the places of red, green and blue that become gray, weighted as in ITU-R BT.601.
        repeated: whether the only channel becomes three.
        left_out: what is left out, as a sentence without its end; empty: nothing.
    """

    names: Names
    places: tuple[int, ...] | None = None
    luma: Colors | None = None
    repeated: bool = False
    left_out: str = ""

    @property
    def as_stored(self) -> bool:
        return self.places is None and self.luma is None and not self.repeated

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """uint8 or uint16 [..., S] -> [..., C] of the same type."""
        if self.luma is not None:
            red, green, blue = (block[..., place].astype(np.uint32) for place in self.luma)
            # The weights and the rounding of Pillow, so that a file and an array of the same image give the same pixels.
            return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(block.dtype)[..., None]
        if self.repeated:
            return np.repeat(block, 3, axis=-1)
        return block if self.places is None else block[..., list(self.places)]


def choose_channels(count: int, stored: Names, wanted: str | Names, source: str) -> Pick:
    """
    Args:
        count: of the stored channels.
        stored: the names that the source gives them; empty: none.
        wanted: ``data.channels``: ``auto``, ``gray``, ``rgb``, or names: all of a source that names none, or some of those
            that it names.

    Raises:
        DataError: the source has no such channels.
    """
    if stored and len(stored) != count:
        raise DataError(f"{source} names {len(stored)} channels ({', '.join(stored)}), and the images have {count}")
    if not 1 <= count <= MOST:
        raise DataError(f"the images of {source} have {count} channels; there can be 1 to {MOST}")
    names = stored or default_names(count)
    if wanted == "auto" or (wanted == "gray" and names == GRAY) or (wanted == "rgb" and names == RGB):
        return Pick(names)
    if isinstance(wanted, str):
        colors = colors_of(names)
        if colors is not None:
            rest = [name for place, name in enumerate(names) if place not in colors]
            said = f"data.channels={wanted} leaves out {', '.join(rest)}" if rest else ""
            return Pick(GRAY, luma=colors, left_out=said) if wanted == "gray" else Pick(RGB, colors, left_out=said)
        if count == 1:
            return Pick(GRAY) if wanted == "gray" else Pick(RGB, repeated=True)
        raise DataError(
            f"data.channels={wanted} needs channels called red, green and blue, and {source} has {in_words(names)}; leave it "
            "out, or name the channels, such as --set data.channels=[red,green,blue,infrared]"
        )
    known = {name.casefold(): place for place, name in enumerate(stored)}
    if stored and all(name.casefold() in known for name in wanted):
        places = tuple(known[name.casefold()] for name in wanted)
        rest = [name for place, name in enumerate(stored) if place not in places]
        whole = places == tuple(range(count))
        return Pick(
            wanted, None if whole else places, left_out=f"data.channels leaves out {', '.join(rest)}" if rest else ""
        )
    if len(wanted) == count:
        renamed = stored and f"the channels {', '.join(stored)} are called {', '.join(wanted)}, as data.channels says"
        return Pick(wanted, left_out=renamed or "")
    raise DataError(
        f"data.channels names {len(wanted)} channels ({', '.join(wanted)}), and the images of {source} have "
        f"{in_words(names) if stored else count}"
    )
