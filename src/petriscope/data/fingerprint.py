"""One hash of all that is in a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from petriscope.data.imageset import ImageSet


def fingerprint(sets: Mapping[str, ImageSet], digests: Mapping[str, list[bytes]]) -> str:
    """A hash of pixels, targets, class names and splits, in hexadecimal digits.

    Args:
        sets: by split.
        digests: of the images of each split, from `ImageSet.digests`.
    """
    out = hashlib.blake2b(digest_size=16)
    for name, part in sets.items():
        out.update(repr((name, part.shape, len(part), part.classes)).encode(errors="surrogateescape"))
        out.update(b"".join(digests[name]))
        out.update(np.ascontiguousarray(part.targets, dtype=part.task.dtype).data)
    return out.hexdigest()
