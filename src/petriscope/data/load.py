"""Load a data set: read its sources, draw the missing splits, check them, and hash them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from os import PathLike

import numpy as np

from petriscope.core.channels import in_words
from petriscope.core.errors import DataError, RequestError, listed
from petriscope.core.files import parsing, path_text, user_path
from petriscope.core.names import look_alike
from petriscope.core.recipe import DataSection, FoldsSection
from petriscope.data import decisions as decided
from petriscope.data import domains, sources
from petriscope.data.aligned import align
from petriscope.data.contents import DARK, peak_of
from petriscope.data.fingerprint import fingerprint
from petriscope.data.folds import folds_of_set, joined_groups, units_of
from petriscope.data.imageset import SPLITS, Dataset, ImageSet
from petriscope.data.index import repeats
from petriscope.data.membership import FILE, Change, Membership
from petriscope.data.omissions import LeftOutSentence, Omission
from petriscope.data.one_vs_rest import one_vs_rest
from petriscope.data.recognition import follow, join_sets, match, membership_of
from petriscope.data.rescale import Field, common_field
from petriscope.data.sources import UNSPLIT
from petriscope.data.sources.mask_values import check_numbers_used
from petriscope.data.splits import draw_grouped, draw_stratified, with_copies_together
from petriscope.tasks import find_task

FIND_ALL = ". petriscope audit finds all"
MANY = 20  # classes; fewer with one image each are an example, or a source that is only begun
LOOKED_AT = 100  # images of a split, at most, to tell whether it is nearly black


def load_dataset(section: DataSection | str | PathLike[str]) -> Dataset:
    """Load the data that a recipe, or a source alone, names.

    A source without splits is split into train, val and test. If it has only train and test, val is drawn from train. A
    missing test split stays missing, and a split whose fraction is 0 is not drawn. The decisions of an audit are carried
    out after the splits are drawn, so that an image stays in its split whatever is decided about other images. With
    ``section.splits``, images that the named run had stay in its splits, and the others are drawn as if they were alone.

    With ``section.folds``, train and val of the source are drawn anew into folds, one of which is test.

    Each of several ``section.sources`` is split as if it were alone. Then their classes are matched by name, and the splits
    of all are joined. With ``section.leave_out``, all images of a domain are test, and train and val are of the others.

    Args:
        section: the source, or the sources, and how images are read; or the source alone.

    Returns:
        images uint8 or uint16 [N, H, W, C] of one shape, targets as their task has them, and the same class names in all splits.
        ``warnings`` has what the user should know.

    Raises:
        RequestError: there is no source, it is unknown, or an option does not fit it.
        DataError: the data cannot be used.
        PetriscopeError: a download failed, or the disk is full.
    """
    section = _section(section)
    warnings: list[str] = []
    if section.sources is None:
        sets, decisions, field = _read_one(section, warnings)
        drawn, names = _split(sets, section, warnings)
    else:
        parts, field = _read_domains(section, warnings)
        drawn, names, decisions = *_split_domains(parts, section, warnings), None
    if section.leave_out is not None:
        drawn = domains.leave_out(drawn, section.leave_out, section.origin, warnings)
    sets, audited = _prepare(drawn, section, decisions, warnings)
    _check_train(sets, section.origin, warnings)
    warnings += _say_lacking(sets)
    membership = membership_of(drawn, sets)
    return _dataset(sets, section, warnings, audited=audited, membership=membership, drawn=names, field=field)


def _say_lacking(sets: Mapping[str, ImageSet]) -> list[str]:
    """A sentence on classes of train that val lacks."""
    if not {"train", "val"} <= sets.keys():
        return []
    train, val = sets["train"], sets["val"]
    lacking = [name for name, had, has in zip(train.classes, train.counts, val.counts, strict=True) if had and not has]
    if not lacking:
        return []
    return [
        f"val has no {val.task.counted} of {listed(lacking)}, so its metrics, and what is fitted on it, such as the temperature "
        f"and guarantees, are not about {'this class' if len(lacking) == 1 else 'these classes'}"
    ]


def recall_dataset(section: DataSection, known: Membership, classes: Sequence[str]) -> tuple[Dataset, Change]:
    """Load the images that a run had, in the splits and the order in which the run had them. They are recognized by their
    content, so the files may have other names or places. Other images of the source are left out.

    Args:
        section: the source, and how the run read its images.
        known: the splits of the run.
        classes: the classes of the run, which the source's are aligned with by name.

    Returns:
        the images that are still there, and how the source differs. The fingerprint is that of the run if all images are
        there, with their targets. Splits without images are missing.

    Raises:
        RequestError, DataError, PetriscopeError: as `load_dataset`, or no image of the run is there.
    """
    warnings: list[str] = []
    decisions = None
    if section.sources is None:
        sets, decisions, field = _read_one(section, warnings)
    else:
        parts, field = _read_domains(section, warnings)
        every, grouped = domains.common_classes(parts, warnings), domains.have_groups(parts)
        prefixed = {name: each.prefix for name, each in (section.sources or {}).items()}
        sets = {
            f"{name}/{split}": domains.as_domain(part, name, every, grouped, prefixed[name])
            for name, its in parts.items()
            for split, part in its.items()
        }
    if section.folds is not None and section.folds.hold_out is not None:
        sets = {name: part for name, part in sets.items() if name.rpartition("/")[2] != "test"}  # not the run's
    found, _, change = match(known, sets)
    sets, audited = _prepare(found, section, decisions, warnings) if found else ({}, ())
    if not sets:
        raise DataError(f"none of the {len(known.ids):,} images of the run is in {section.origin}")
    sets = {name: align(part, tuple(classes), section.origin, warnings) for name, part in sets.items()}
    return _dataset(sets, section, warnings, audited=audited, membership=known, field=field), change


def _section(section: DataSection | str | PathLike[str]) -> DataSection:
    if not isinstance(section, DataSection):
        section = DataSection(source=path_text(section))
    if section.source is None and section.sources is None:
        raise RequestError(f"no data: give --data SOURCE, or data.source in the recipe. A source is {sources.KINDS}.")
    return section


def _read_one(
    section: DataSection, warnings: list[str]
) -> tuple[dict[str, ImageSet], decided.Decisions | None, Field | None]:
    """`_read`, at the scale of the section, and the field of view."""
    sets, decisions = _read(section, warnings)
    parts, field = _at_scale({"": sets}, section, warnings)
    return parts[""], decisions, field


def _read_domains(section: DataSection, warnings: list[str]) -> tuple[dict[str, dict[str, ImageSet]], Field | None]:
    """The image sets of each of several sources, before splits are drawn, as views of one array, each at its scale; and the
    field of view of all."""
    wanted = {name: each.split for name, each in (section.sources or {}).items()}
    parts = {
        name: _only(_read(one, warnings)[0], wanted[name], str(one.source)) for name, one in section.by_domain.items()
    }
    for name, sets in parts.items():
        warnings += domains.own_domains(sets, name, str((section.sources or {})[name].source))
    parts, field = _at_scale(parts, section, warnings)
    return domains.share_pixels(parts, section.memory), field


def _at_scale(
    parts: domains.Parts, section: DataSection, warnings: list[str]
) -> tuple[dict[str, dict[str, ImageSet]], Field | None]:
    """Image sets at the scales of their sources, and their field of view, if it is known."""
    scales = section.scales
    field = section.field_of_view or common_field(
        (part, scales[name]) for name, sets in parts.items() for part in sets.values()
    )
    return domains.at_scale(parts, scales, field, section.memory, warnings), field


def _only(sets: dict[str, ImageSet], split: str | None, source: str) -> dict[str, ImageSet]:
    """One split of those that a source has; all if none is asked for, or if it has no splits."""
    if split is None or set(sets) == {UNSPLIT}:
        return sets
    if split not in sets:
        raise DataError(f"{source} has no {split} split; it has: {', '.join(sets)}")
    return {split: sets[split]}


def _read(section: DataSection, warnings: list[str]) -> tuple[dict[str, ImageSet], decided.Decisions | None]:
    """The image sets of a source, before splits are drawn, and the decisions of an audit about them."""
    decisions = None if section.audit is None else decided.load_decisions(section.audit)
    # The audit may have decided to drop images that cannot be read.
    as_read = section if decisions is None else section.model_copy(update={"unreadable": "skip"})
    sets = sources.read_nonempty(str(section.source), as_read, warnings)
    check_numbers_used(sets, section)
    _check_tiles(sets, section)
    if section.task != "auto":
        task = find_task(section.task)
        if (other := next((part for part in sets.values() if not task.accepts(part.targets)), None)) is not None:
            raise RequestError(
                f"data.task is {task.name}, but {section.source} was read with {other.task.about} as targets"
            )
        sets = {name: replace(part, task=task) for name, part in sets.items()}
    dense = any(part.task.dense for part in sets.values())
    warnings += [
        f"data.{key} has no effect: {section.source} has no masks"
        for key in ("ignore", "mask_values")
        if not dense and getattr(section, key) is not None
    ]
    sets = {name: part.hashed() for name, part in sets.items()}
    if decisions is not None:
        warnings += decided.check_decisions(decisions, sets, as_read)
    return sets, decisions


def _check_tiles(sets: Mapping[str, ImageSet], section: DataSection) -> None:
    if section.tiles is not None and (first := next(iter(sets.values()), None)) is not None and not first.task.dense:
        raise RequestError(
            f"data.tiles is for images with masks, and {section.source} has {first.task.about}; remove it, or set data.size"
        )


def _prepare(
    sets: dict[str, ImageSet], section: DataSection, decisions: decided.Decisions | None, warnings: list[str]
) -> tuple[dict[str, ImageSet], Sequence[decided.Audited]]:
    """Carry out what the recipe and the decisions ask for once every image is in its split."""
    source = section.origin
    audited: list[decided.Audited] = []
    if decisions is not None:
        sets, audited = decided.apply_decisions(decisions, sets, section)
        if not sets:
            raise DataError(f"{section.audit} drops every image of {source}")
    if section.leave_out is not None:
        sets = domains.only_left_out(sets, section.leave_out, warnings)
    if section.drop_single_class and "train" in sets:
        sets = {**sets, "train": _drop_single_class(sets["train"], source, warnings)}
    if section.only is not None:  # after the splits are drawn, so that they are those of a model of all classes
        sets = {name: one_vs_rest(part, section.only, source) for name, part in sets.items()}
    _check_agreement(sets, source)
    return sets, audited


def _dataset(
    sets: dict[str, ImageSet],
    section: DataSection,
    warnings: Sequence[str],
    audited: Sequence[decided.Audited],
    membership: Membership,
    drawn: tuple[str, ...] = (),
    field: Field | None = None,
) -> Dataset:
    digests = {name: part.digests() for name, part in sets.items()}
    return Dataset(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        source=section.origin,
        fingerprint=fingerprint(sets, digests),
        warnings=tuple(
            dict.fromkeys(
                [
                    *warnings,
                    *([] if sets.keys() <= {*drawn} else _darker(sets)),
                    *_leaks(sets, digests),
                    *_copies(sets, digests),
                    *_similar_groups(sets),
                    *_classes_of_one(sets),
                    *_torn(sets, digests, FIND_ALL if section.audit is None else ""),
                ]
            )
        ),
        audited=tuple(audited),
        membership=membership,
        drawn=drawn,
        field_of_view=field,
    )


def _split(
    sets: dict[str, ImageSet], section: DataSection, warnings: list[str]
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """The splits of a source, and the names of those that were drawn."""
    if section.splits is None:
        return _draw(sets, section, warnings)
    splits, drawn, change, sizes = _extend(sets, section, _read_splits(section.splits))
    warnings += _grown(section.splits, change, sizes)
    return splits, drawn


def _split_domains(
    parts: Mapping[str, dict[str, ImageSet]], section: DataSection, warnings: list[str]
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """The same for several sources, each of which is split as if it were alone."""
    known = None if section.splits is None else _read_splits(section.splits)
    split: dict[str, dict[str, ImageSet]] = {}
    drawn: dict[str, tuple[str, ...]] = {}
    changes: dict[str, Change] = {}
    sizes: Counter[str] = Counter()
    for name, sets in parts.items():
        notes: list[str] = []
        if known is None:
            split[name], drawn[name] = _draw(sets, section, notes)
        else:
            split[name], drawn[name], changes[name], more = _extend(sets, section, known.of_domain(name))
            sizes.update(more)
        warnings += [f"{name}: {note}" for note in notes]
    warnings += domains.splits_of_domains({name: set(sets) for name, sets in parts.items()}, drawn)
    if known is not None:
        warnings += _grown(str(section.splits), domains.join_changes(changes, known), sizes)
    classes, grouped = domains.common_classes(parts, warnings), domains.have_groups(parts)
    prefixed = {name: each.prefix for name, each in (section.sources or {}).items()}
    joined = {}
    for each in SPLITS:
        if some := [
            domains.as_domain(sets[each], name, classes, grouped, prefixed[name])
            for name, sets in split.items()
            if each in sets
        ]:
            joined[each] = join_sets(some)
    domains.check_ids(joined)
    return joined, tuple(each for each in SPLITS if any(each in names for names in drawn.values()))


def _grown(run: str, change: Change, sizes: Mapping[str, int]) -> list[str]:
    if not str(change):
        return []
    where = ", ".join(f"{count:,} in {split}" for split, count in sizes.items() if count)
    return [f"since {run}, {change}; new and changed images: {where or 'none'}"]


def _extend(
    sets: dict[str, ImageSet], section: DataSection, known: Membership
) -> tuple[dict[str, ImageSet], tuple[str, ...], Change, dict[str, int]]:
    """`_draw` for the images that a run did not have. Copies of an image that it had, another version of one, and images of
    its groups go where these are.

    Returns:
        all splits, the names of those that were drawn, how the source differs, and how many images of each split the run
        did not have there.
    """
    found, rest, change = match(known, sets)
    parts = {split: [found[split]] if split in found else [] for split in SPLITS}
    new: dict[str, ImageSet] = {}
    for name, part in rest.items():
        splits = follow(known, part, change)
        for split in SPLITS:
            if len(rows := np.flatnonzero(splits == split)):
                parts[split].append(part.subset(rows))
        if len(rows := np.flatnonzero(splits == "")):
            new[name] = part.subset(rows)
    shares, drawn = _draw(new, section, [], set(sets)) if new else ({}, ())
    for split, part in shares.items():
        parts[split].append(part)
    sizes = {split: sum(map(len, pieces)) - len(found.get(split, ())) for split, pieces in parts.items()}
    return {split: join_sets(pieces) for split, pieces in parts.items() if pieces}, drawn, change, sizes


def _read_splits(run: str) -> Membership:
    path = user_path(run)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise RequestError(f"data.splits: no splits at {path}; give the folder of a run that has a {FILE}")
    with parsing(path):
        return Membership.read(path)


def _draw(
    sets: dict[str, ImageSet], section: DataSection, warnings: list[str], names: set[str] | None = None
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """Draw the splits that the source does not have.

    Args:
        names: of the source's splits; None: those of ``sets``.

    Returns:
        all splits, and the names of those that were drawn.
    """
    if section.folds is not None:
        return _hold_out(sets, section, section.folds, warnings), ()
    names = names or set(sets)
    for split in ("val", "test"):
        key = f"{split}_fraction"
        if split in names and getattr(section, key) != DataSection.model_fields[key].default:
            warnings.append(f"data.{key} has no effect: {section.origin} has its own {split} split")
    if section.split_seed != DataSection.model_fields["split_seed"].default and {"train", "val"} <= names:
        warnings.append(f"data.split_seed has no effect: {section.origin} has its own splits")
    if names in ({UNSPLIT}, {"train"}):
        whole = next(iter(sets.values()))
        fractions = {"test": section.test_fraction, "val": section.val_fraction}
        given = {}
    elif names == {"train", "test"} and "train" in sets:
        whole = sets["train"]
        fractions = {"val": section.val_fraction}
        given = {name: part for name, part in sets.items() if name == "test"}
    else:
        return sets, ()
    fractions = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    if sum(fractions.values()) >= 1:
        raise RequestError(
            f"data.val_fraction and data.test_fraction add up to {sum(fractions.values()):g}; nothing is left for train"
        )
    whole = whole.hashed()
    units = units_of(whole)
    if whole.groups is None:
        plain = draw_stratified(whole.strata, fractions, section.split_seed)
        drawn = with_copies_together(plain, units, whole.strata)
    else:
        amounts = whole.task.split_amounts(whole.targets, len(whole.classes))
        warnings += joined_groups(whole.groups, units, "in the same split")
        drawn = draw_grouped(amounts, units, fractions, section.split_seed)
    for name in fractions:
        if not len(drawn[name]):
            unit = "images" if whole.groups is None else "groups"
            warnings.append(f"too few {unit} to draw a {name} split of {fractions[name]:g}; there is none")
    parts = {name: whole.subset(indices) for name, indices in drawn.items() if len(indices)} | given
    return {name: parts[name] for name in SPLITS if name in parts}, tuple(drawn)


def _hold_out(
    sets: dict[str, ImageSet], section: DataSection, folds: FoldsSection, warnings: list[str]
) -> dict[str, ImageSet]:
    """The splits of a cross-validation: test is the fold that is held out, and val is drawn from the others, so that what is
    held out chooses nothing. If none is held out, all is train, and test is the source's."""
    pooled = {name: sets[name] for name in (UNSPLIT, "train", "val") if name in sets}
    if not pooled:
        raise DataError(
            f"{section.origin} has no images but those of {', '.join(sets)}, which are not drawn into folds"
        )
    _check_agreement(pooled, section.origin)
    whole = join_sets(list(pooled.values()))
    fold, notes = folds_of_set(whole, folds, section.split_seed)
    warnings += notes
    if folds.hold_out is None:
        return {"train": whole, **{name: part for name, part in sets.items() if name == "test"}}
    held = fold == folds.hold_out - 1
    inner = section.model_copy(update={"folds": None, "test_fraction": 0.0})
    out, _ = _draw({"train": whole.subset(np.flatnonzero(~held))}, inner, warnings)
    return {**out, "test": whole.subset(np.flatnonzero(held))}


def _drop_single_class(train: ImageSet, source: str, warnings: list[str]) -> ImageSet:
    """Leave out images whose mask has only one class: such masks were often drawn in a hurry, or not at all."""
    several = np.flatnonzero(~train.task.single_class(train.targets))
    if not len(several):
        raise DataError(f"{source}: every training mask has only one class; data.drop_single_class leaves no image")
    if dropped := len(train) - len(several):
        first = str(train.ids[np.setdiff1d(np.arange(len(train)), several)[0]])
        warnings.append(
            LeftOutSentence(
                f"{dropped:,} of {len(train):,} training images have a mask with only one class and are left out",
                [Omission("training images whose mask has only one class", dropped, first)],
            )
        )
    return train.subset(several)


def _check_agreement(sets: dict[str, ImageSet], source: str) -> None:
    """Check that the splits have the same classes, task and shape."""
    first, *others = sets
    for name in others:
        if sets[name].classes != sets[first].classes:
            raise DataError(
                f"{source}: {first} has the classes {', '.join(sets[first].classes)}, "
                f"{name} {', '.join(sets[name].classes)}; they must agree"
            )
        if sets[name].task != sets[first].task:
            kinds = ", ".join(f"{key} {part.task.about}" for key, part in sets.items())
            raise DataError(f"{source}: the targets must be of one kind in all splits, not {kinds}")
        if (sets[name].shape, sets[name].channels) != (sets[first].shape, sets[first].channels):
            raise DataError(
                f"{source}: {first} images are {_shape(sets[first])}, {name} images {_shape(sets[name])}; "
                "give one size with --set data.size=N"
            )


def _check_train(sets: dict[str, ImageSet], source: str | None, warnings: Sequence[str]) -> None:
    """Check that there are two classes or more, and training images of each.

    Args:
        warnings: those about tables that were not read are part of the message.
    """
    if "train" not in sets:
        return
    train = sets["train"]
    if len(train.classes) < 2:
        text = f"{source} has only one class, {train.classes[0]}; a model needs two or more"
        raise DataError(". ".join([text, *(each for each in warnings if each.endswith(sources.NAME_TABLE))]))
    if lacking := [train.classes[label] for label in np.flatnonzero(train.counts == 0)]:
        hint = " Labels count from 0." if not train.named and lacking[0] == "0" else ""
        raise DataError(
            f"{source}: no training {train.task.counted} of the class{'es' if len(lacking) > 1 else ''} {listed(lacking, 10)}; "
            f"add some, or remove the class from the source.{hint}"
        )


def _shape(part: ImageSet) -> str:
    height, width, _ = part.shape
    return f"{height} x {width} {in_words(part.channels)}"


def _darker(sets: Mapping[str, ImageSet]) -> list[str]:
    """A warning if some of the splits of a source are nearly black and others are not: they may be stored on another scale."""
    dark: dict[str, str] = {}
    bright: list[str] = []
    for name, part in sets.items():
        if not isinstance(part.pixels, np.ndarray):
            continue
        peak, full = 0, 2**part.bits
        for index in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)).tolist():
            peak = max(peak, peak_of(part.window(index)))
            if peak >= full / DARK:  # most often that of the first
                bright.append(name)
                break
        else:
            dark[name] = f"{peak} of {full - 1}"
    if not dark or not bright:
        return []
    first = next(iter(dark))
    return [
        f"the images of {' and '.join(dark)} are nearly black (in {first}, the brightest pixels have the value {dark[first]}), "
        f"and those of {' and '.join(bright)} are not; store the values of all splits on one scale"
    ]


def _torn(sets: Mapping[str, ImageSet], digests: Mapping[str, Sequence[bytes]], hint: str) -> list[str]:
    """What is said of equal images that are of different classes, or if all images are equal.

    Args:
        hint: how to find all; empty: that was done.
    """
    task = next(iter(sets.values())).task
    if not task.exclusive or task.dense:
        return []
    count, different = sum(map(len, digests.values())), len({*chain(*digests.values())})
    if different == count:
        return []
    if different == 1:
        return [f"all {count:,} images are equal, pixel for pixel, so there is nothing to learn from them"]
    first: dict[bytes, tuple[int, str]] = {}
    classes: dict[bytes, set[int]] = {}
    rows = [
        (digest, int(target), str(name))
        for split, part in sets.items()
        for digest, target, name in zip(digests[split], part.targets, part.ids, strict=True)
    ]
    for digest, target, name in rows:
        first.setdefault(digest, (target, name))
        classes.setdefault(digest, set()).add(target)
    found = [row for row in rows if len(classes[row[0]]) > 1]
    if not found:
        return []
    digest, target, other = next(row for row in found if row[1] != first[row[0]][0])
    label, name = first[digest]
    names = next(iter(sets.values())).classes
    return [
        f"{len(found):,} images are equal, pixel for pixel, to some of another class, so no network can tell them apart; the "
        f"first: {name} ({names[label]}) and {other} ({names[target]})" + hint
    ]


def _leaks(sets: dict[str, ImageSet], digests: dict[str, list[bytes]]) -> list[str]:
    """Warnings about images and groups that are in two splits."""
    out = []
    for one, other in combinations(sets, 2):
        known = set(digests[one])
        count = sum(digest in known for digest in digests[other])
        if count:
            are = "image of {} is" if count == 1 else "images of {} are"
            out.append(f"{count:,} {are.format(other)} in {one} too; metrics on {other} will be too optimistic")
        first, second = sets[one].groups, sets[other].groups
        if first is not None and second is not None and (shared := len(np.intersect1d(first, second))):
            out.append(
                f"{shared:,} group{'s are' if shared > 1 else ' is'} both in {one} and in {other}; "
                f"metrics on {other} will be too optimistic"
            )
    return out


def _copies(sets: Mapping[str, ImageSet], digests: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Warnings about equal images within a split that metrics are computed on; intervals take them for different ones."""
    out = []
    for split in ("val", "test"):
        rows = repeats(digests.get(split, ()))
        if 0 < len(rows) < len(digests.get(split, ())) - 1:
            are = "image of {} is a copy of another" if len(rows) == 1 else "images of {} are copies of others"
            out.append(
                f"{len(rows):,} {are.format(split)} in it, pixel for pixel, such as {sets[split].ids[rows[0]]}; its metrics "
                "count them as different images, so their intervals are too narrow"
            )
    return out


def _classes_of_one(sets: Mapping[str, ImageSet]) -> list[str]:
    """A warning if most classes have one image: the labels may be names or numbers of the images."""
    first = next(iter(sets.values()))
    if not first.task.exclusive or first.task.dense or len(first.classes) < MANY:
        return []
    alone = int((np.sum([part.counts for part in sets.values()], axis=0) == 1).sum())
    if alone <= len(first.classes) / 2:
        return []
    return [
        f"{alone:,} of {len(first.classes):,} classes have a single image, so nothing can be learned about them; are the labels "
        "names or numbers of the images? They have to say the class"
    ]


def _similar_groups(sets: Mapping[str, ImageSet]) -> list[str]:
    """A warning about groups whose names differ only in spelling. They are not joined: which images belong together is for the
    user to say."""
    names = dict.fromkeys(str(group) for part in sets.values() if part.groups is not None for group in part.groups)
    pair = look_alike(names)
    if pair is None:
        return []
    return [
        f"the groups {pair[0]!r} and {pair[1]!r} are two, so they may be in different splits; if they are one, write them alike"
    ]
