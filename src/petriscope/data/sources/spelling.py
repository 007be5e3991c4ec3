"""How folders of splits, of images and of masks are called, in the spellings that data sets use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

_SPLIT = "train(?:ing)?|trn|val(?:id(?:at(?:ion|e))?)?|dev(?:el(?:opment)?)?|test(?:ing)?|tst|holdout"
_SHORT = "tr|va|ts"  # only after a role, as in imagesTr
_IMAGES = (
    "(?:raw|input|source|original|color|rgb)?(?:images?|imgs?)|(?:jpe?g|png|tiff?)images?|pictures?|pics?|photos?|frames?|raws?|src|sources?|origs?|"
    "inputs?|originals?|tiles?|patches|leftimg8bit|rgb"
)
_MASKS = (
    "(?:binary|seg|segmentation|label|gt|instance|semantic|class)?masks?|labels?|label(?:l?ed)?images?|labelmaps?|labelids|"
    "annotations?|annots?|annos?|anns?|gts?|groundtruths?|segmentations?|segmentationclass(?:png|raw|aug)?|segs?|segmaps?|segmented(?:images?)?|"
    "targets?|trimaps?|gtfine|gtcoarse"
)
_TYPE = "(?:png|jpe?g|tiff?|bmp)?"  # as in images_png
_SET = "(?:data)?(?:set|split|data)?s?"
_YEAR = r"(?:(?:19|20)\d\d)?"
_FOLDER = re.compile(
    rf"(?:(?:seg|data|dataset|my|\d{{1,2}})(?={_SPLIT}))?(?:(?P<before>{_SPLIT}){_YEAR})?{_SET}"
    rf"(?:(?:(?P<images>{_IMAGES})|(?P<masks>{_MASKS})){_TYPE})?(?:(?P<after>{_SPLIT}|(?<=s)(?:{_SHORT})){_YEAR})?{_SET}"
)
_GAP = "[ _.-]+"
_OF_MASKS = (
    "mask",
    "label",
    "ann",
    "gt",
    "truth",
    "seg",
    "target",
    "trimap",
)  # one of them is in each word of `_MASKS`
_SEPARATOR = re.compile("[ _.-]")
# What the masks of one image hold where a data set has several, as in Cityscapes; the first of them is read.
KINDS_OF_MASK = ("labelids", "labeltrainids", "color", "instanceids", "instancetrainids")
_KINDS = "|".join(KINDS_OF_MASK)
_KIND = re.compile(rf"(?P<image>.+?)(?:{_GAP}gt(?:fine|coarse))?{_GAP}(?P<kind>{_KINDS})", re.IGNORECASE)
_PARTS = re.compile(r"(?<=[a-z])(?=[A-Z])")  # of a word in camel case
_STEM = re.compile(
    rf"(?:{_MASKS}){_GAP}(?P<after_mask>.+)|(?P<before_mask>.+?){_GAP}(?:gt(?:fine|coarse){_GAP}(?:{_KINDS})|{_MASKS})|"
    rf"(?:{_IMAGES}){_GAP}(?P<after_image>.+)|(?P<before_image>.+?){_GAP}(?:{_IMAGES}|sat)",
    re.IGNORECASE,
)

Split = Literal["train", "val", "test"]
Role = Literal["images", "masks"]


class Spelled(NamedTuple):
    """What the name of a folder says: which split it is, and whether it has images or masks; None: nothing."""

    split: Split | None
    role: Role | None


def spelled(name: str) -> Spelled:
    """Read the name of a folder, whatever its case and separators: ``TRAIN``, ``train_set``, ``seg_train`` and ``Training Data``
    are train; ``train_masks`` has masks of train."""
    found = _FOLDER.fullmatch(re.sub(r"[\W_]+", "", name.casefold()))
    if found is None:
        return Spelled(None, None)
    if found["before"] and found["after"]:
        return Spelled(None, None)
    role: Role | None = "images" if found["images"] else "masks" if found["masks"] else None
    return Spelled(_split(found["before"] or found["after"] or ""), role)


def split_of(name: str) -> Split | None:
    """The split that a folder of class folders, or a cell of a table, names; None if it names no split."""
    found = spelled(name)
    return None if found.role == "masks" else found.split


def split_in(name: str) -> Split | None:
    """The split that a part of a name says, as in ``cats_train`` and ``test-224``; None if there is none, or more than one."""
    found = {split for word in _words(name) if (split := spelled(word).split)}
    return found.pop() if len(found) == 1 else None


def split_and_rest(name: str) -> tuple[Split | None, str]:
    """The split that a part of a name says, also in camel case, as in ``testA``; and the rest of the name, in lower case without
    separators."""
    splits, rest = set[Split](), ""
    for word in _words(name):
        for part in _PARTS.split(word):
            if split := spelled(part).split:
                splits.add(split)
            else:
                rest += part
    return (splits.pop() if len(splits) == 1 else None), rest.casefold()


def role_in(name: str) -> Role | None:
    """What the last part of a name that says it has, as in ``Task1_Training_GroundTruth`` and ``CameraSeg``; None: no part says
    it."""
    words = _words(name)
    words += _PARTS.split(words[-1])[-1:] if words else []
    roles = [role for word in words if (role := spelled(word).role)]
    return roles[-1] if roles else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W\d_]+", name) if word]


def split_of_path(id: str) -> Split | None:
    """The split that a folder of a path below the source names; the innermost, if there are several."""
    for part in reversed(id.split("/")[:-1]):
        if (split := split_of(part) or spelled(part).split) is not None:
            return split
    return None


def bare_stem(stem: str) -> tuple[str, Role | None]:
    """The stem of a file without a word such as ``mask`` or ``image`` that a separator parts from it, and what the word says:
    ``cell_3_mask`` is a mask of ``cell_3``."""
    found = _STEM.fullmatch(stem) if _SEPARATOR.search(stem) else None
    if found is None:
        return stem, None
    mask, image = found["after_mask"] or found["before_mask"], found["after_image"] or found["before_image"]
    return (mask, "masks") if mask else (image, "images")


def kind_of_mask(stem: str) -> tuple[str, str] | None:
    """The image that a mask is of, and which of `KINDS_OF_MASK` it is; None where its name does not say."""
    found = _KIND.fullmatch(stem)
    return None if found is None else (found["image"], found["kind"].casefold())


def may_say_masks(names: Iterable[str]) -> bool:
    """Whether `bare_stem` may find a mask among names; to ask it of each takes longer."""
    text = "\n".join(names).casefold()
    return any(word in text for word in _OF_MASKS)


def _split(word: str) -> Split | None:
    return {"tr": "train", "va": "val", "de": "val", "te": "test", "ts": "test", "ho": "test"}.get(word[:2])  # type: ignore[return-value]
