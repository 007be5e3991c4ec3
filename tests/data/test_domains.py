"""Several sources in one data set, each a domain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import COUNTS, make_folders, make_mask_npz, make_npz, masks, some_images, write_table

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data.imageset import Dataset
from petriscope.data.load import load_dataset, recall_dataset
from petriscope.data.membership import Membership
from petriscope.data.sampler import epoch_order

PART = 20


def whole(folder: Path, seed: int, count: int = PART, groups: bool = False, classes: int = 2) -> Path:
    """An npz that has images of train alone, so that its splits are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train_images": some_images(count, seed=seed),
        "train_labels": (np.arange(count) % classes)[:, None].astype(np.uint8),
        "classes": np.array(["a", "b", "c", "d"][:classes]),
    }
    if groups:
        arrays["train_groups"] = np.array([f"slide {index // 3}" for index in range(count)])
    np.savez(folder / f"{seed}.npz", **arrays)
    return folder / f"{seed}.npz"


def sources(**paths: Path) -> dict[str, str]:
    return {name: str(path) for name, path in paths.items()}


def load(several: dict[str, str], **options: object) -> Dataset:
    return load_dataset(DataSection.model_validate({"sources": several, **options}))


def places(dataset: Dataset) -> dict[str, str]:
    """The split of each image, by its id."""
    return {name: split for split, part in dataset.splits.items() for name in part.ids.tolist()}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A source without splits, one in groups, and one with splits of its own."""
    folder = tmp_path_factory.mktemp("domains")
    own = make_npz(folder / "own", seed=30, classes=np.array(["a", "b"]))
    return sources(plain=whole(folder, 10), slides=whole(folder, 20, groups=True), own=own)


@given(st.permutations(["plain", "slides", "own"]), st.integers(1, 3), st.integers(0, 5))
def test_each_source_is_split_as_if_it_were_alone(
    three: dict[str, str], order: list[str], count: int, seed: int
) -> None:
    some = {name: three[name] for name in order[:count]}
    both = load(some, split_seed=seed)
    alone = {
        f"{name}/{image}": split
        for name, path in some.items()
        for image, split in places(load_dataset(DataSection(source=path, split_seed=seed))).items()
    }
    assert places(both) == alone
    assert len(both.membership.ids) == len({*both.membership.ids}) == len(alone)
    again = load(dict(reversed(some.items())), split_seed=seed)
    assert again.fingerprint == both.fingerprint, "the order of the sources makes a difference"
    assert np.array_equal(again.train.images, both.train.images)


def test_images_targets_and_groups_stay_those_of_their_source(three: dict[str, str]) -> None:
    both = load(three)
    for name, path in three.items():
        alone = load_dataset(DataSection(source=path))
        for split, part in alone.splits.items():
            mine = both.split(split).subset(np.flatnonzero(both.split(split).domains == name))
            assert np.array_equal(mine.images, part.images)
            assert np.array_equal(mine.targets, part.targets)
            assert mine.digests() == part.digests()
            if part.groups is not None:
                assert mine.groups.tolist() == [f"{name}/{group}" for group in part.groups]
    plain = both.train.subset(np.flatnonzero(both.train.domains == "plain"))
    assert plain.groups.tolist() == plain.ids.tolist(), "images without groups are independent of one another"
    assert any("own: train, val and test as the source has them" in warning for warning in both.warnings)


def test_mapped_images_stay_mapped(three: dict[str, str]) -> None:
    resident = load(three)
    mapped = load(three, memory="mapped")
    assert mapped.train.mapped and not resident.train.mapped
    assert mapped.fingerprint == resident.fingerprint
    assert np.array_equal(mapped.test.images, resident.test.images)


def test_classes_are_matched_by_name_and_what_one_domain_lacks_is_said(tmp_path: Path) -> None:
    few, many = whole(tmp_path, 1, classes=2), whole(tmp_path, 2, classes=3)
    both = load(sources(few=few, many=many))
    assert both.classes == ("a", "b", "c")
    assert any("only the domain many has c (6 images)" in warning for warning in both.warnings)
    turned = whole(tmp_path, 3)
    arrays = dict(np.load(turned))
    np.savez(turned, **{**arrays, "classes": np.array(["b", "a"])})
    both = load(sources(few=few, turned=turned))
    mine = both.train.subset(np.flatnonzero(both.train.domains == "turned"))
    alone = load_dataset(DataSection(source=str(turned))).train
    assert [both.classes[label] for label in mine.targets] == [alone.classes[label] for label in alone.targets]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classes": np.array(["A", "b"])},
            "the domains other and plain have the classes 'A' and 'a', which look alike",
        ),
        ({"classes": None}, "the source of the domain other has numbers for classes, and others have names"),
        ({"train_images": some_images(PART, side=6)}, "the images of the domains differ in size"),
        ({"train_images": some_images(PART, gray=True)}, "the images of the domains differ in channels"),
        ({"train_labels": None, "train_masks": np.zeros((PART, 8, 9), np.uint8)}, "the targets must be of one kind"),
    ],
)
def test_sources_that_do_not_fit_together(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    other = whole(tmp_path, 2)
    arrays = {**dict(np.load(other)), **change}
    np.savez(other, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=message):
        load(sources(plain=whole(tmp_path, 1), other=other))


@given(st.sampled_from(["plain", "slides", "own"]), st.integers(0, 3))
def test_a_domain_left_out_is_test_and_the_others_stay_where_they_are(
    three: dict[str, str], out: str, seed: int
) -> None:
    before, after = places(load(three, split_seed=seed)), load(three, split_seed=seed, leave_out=out)
    now = places(after)
    assert {name for name, split in now.items() if split == "test"} == {n for n in before if n.startswith(f"{out}/")}
    for split in ("train", "val"):
        assert {n for n, s in now.items() if s == split} == {
            n for n, s in before.items() if s == split and not n.startswith(f"{out}/")
        }
    unused = [name for name, split in before.items() if split == "test" and not name.startswith(f"{out}/")]
    assert any(f"{len(unused)} test images of other domains are not used" in warning for warning in after.warnings)
    assert not {*after.membership.exposure.train} & {*after.test.digests()}
    recalled, change = recall_dataset(
        DataSection.model_validate({"sources": three, "split_seed": seed, "leave_out": out}),
        after.membership,
        after.classes,
    )
    assert recalled.fingerprint == after.fingerprint and not str(change)
    for split, part in after.splits.items():
        assert part.groups is not None and np.array_equal(recalled.split(split).groups, part.groups)


def test_classes_that_only_the_domain_left_out_has_cannot_be_tested(tmp_path: Path) -> None:
    several = sources(few=whole(tmp_path, 1, classes=2), many=whole(tmp_path, 2, classes=3))
    dataset = load(several, leave_out="many")
    assert dataset.classes == dataset.test.classes == ("a", "b")
    assert len(dataset.test) == PART - 6
    assert any(
        "6 images of test are left out, because the other domains have no training image of c" in w
        for w in dataset.warnings
    )
    assert load(several, leave_out="few").classes == ("a", "b", "c")


def test_images_with_a_label_that_only_the_domain_left_out_has_cannot_be_tested(tmp_path: Path) -> None:
    """Not even by their other labels; and none of the labels that are left may be taken for another."""
    here, there = ["A", "C", "A|C", ""], ["B|C", "B", "A", "C", ""]
    make_folders(tmp_path / "data")
    files = sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.png"))
    rows = [
        {"path": name, "label": (labels := there if i % 2 else here)[i // 2 % len(labels)], "domain": "ht"[i % 2]}
        for i, name in enumerate(files)
    ]
    table = write_table(tmp_path / "data" / "table.csv", rows)
    dataset = load_dataset(DataSection(source=str(table), task="multilabel", leave_out="t"))
    assert dataset.classes == ("A", "C")
    wanted = {row["path"]: row["label"] for row in rows if row["domain"] == "t" and "B" not in row["label"]}
    found = zip(dataset.test.ids.tolist(), dataset.test.targets.tolist(), strict=True)
    assert {name: "AC"[label.index(1)] if any(label) else "" for name, label in found} == wanted
    lost = sum(row["domain"] == "t" for row in rows) - len(wanted)
    assert any(
        f"{lost} images of test are left out" in w and w.endswith("no training image of B") for w in dataset.warnings
    )


def test_two_drawn_microscopes() -> None:
    dataset = load(
        {"here": "synthetic-smear:40", "there": "synthetic-smear-other:24"},
        size=12,
        leave_out="there",
        val_fraction=0.2,
    )
    assert {*dataset.train.domains} == {*dataset.val.domains} == {"here"} and {*dataset.test.domains} == {"there"}
    assert len(dataset.test) == 24


def test_a_table_may_have_a_column_of_domains(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    files = sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.png"))
    rows = [{"path": name, "label": name.split("/")[1], "domain": f"site {i % 3}"} for i, name in enumerate(files)]
    table = write_table(tmp_path / "data" / "table.csv", rows)
    dataset = load_dataset(DataSection(source=str(table), leave_out="site 1"))
    assert {*dataset.test.domains} == {"site 1"} and {*dataset.train.domains} == {"site 0", "site 2"}
    assert len(dataset.test) == sum(row["domain"] == "site 1" for row in rows)
    with pytest.raises(RequestError, match="there is no domain 'site 7'"):
        load_dataset(DataSection(source=str(table), leave_out="site 7"))
    with pytest.raises(RequestError, match="have no domains"):
        load_dataset(DataSection(source=str(tmp_path / "data"), leave_out="site 1"))


def table_of(folder: Path, domains: list[str], labels: list[str] | None = None) -> str:
    """A table of 24 images with these domains, in turn."""
    make_folders(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    labels = labels or ["cat", "dog"]
    rows = [
        {"path": name, "label": labels[i // len(domains) % len(labels)], "domain": domains[i % len(domains)]}
        for i, name in enumerate(files)
    ]
    return str(write_table(folder / "table.csv", rows))


def test_images_without_a_domain_are_said_where_one_is_left_out(tmp_path: Path) -> None:
    table = table_of(tmp_path, ["here", "there", ""])
    dataset = load_dataset(DataSection(source=table, leave_out="there"))
    unknown = {name: int((part.domains == "").sum()) for name, part in dataset.splits.items()}
    assert unknown["train"] and not unknown["test"]
    said = [warning for warning in dataset.warnings if "have no domain" in warning]
    assert len(said) == 1 and f"{unknown['train']} images of train" in said[0]
    with pytest.raises(RequestError, match="there is no domain ''; known: here, there"):
        load_dataset(DataSection(source=table, leave_out=""))


@pytest.mark.parametrize("other", ["Site 1", "site-1", "site_1"])
def test_a_domain_that_is_left_out_must_be_spelled_in_one_way(tmp_path: Path, other: str) -> None:
    table = table_of(tmp_path, ["site 1", other, "site 2"])
    with pytest.raises(DataError, match="look alike"):
        load_dataset(DataSection(source=table, leave_out="site 1"))
    assert len(load_dataset(DataSection(source=table, leave_out="site 2")).test)


def test_numbers_for_classes_cannot_have_gaps_where_a_domain_is_left_out(tmp_path: Path) -> None:
    """Else the class 1 of a source without names would be taken for the second class of the run, which is 2."""
    folder = tmp_path / "table"
    make_folders(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [
        {"path": name, "label": i % 3, "domain": "there" if i % 3 == 1 or i % 2 else "here"}
        for i, name in enumerate(files)
    ]
    table = str(write_table(folder / "table.csv", rows))
    with pytest.raises(DataError, match=r"no training image of 1, and classes that are numbers .* data\.classes"):
        load_dataset(DataSection(source=table, leave_out="there"))
    named = load_dataset(DataSection(source=table, leave_out="there", classes=("a", "b", "c")))
    assert named.classes == ("a", "c")


def test_a_column_of_domains_in_one_of_several_sources_is_not_lost_without_a_word(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a", ["site 1", "site 2"])
    other = table_of(tmp_path / "b", ["other"])
    dataset = load({"first": table, "other": other})
    assert {*dataset.train.domains} == {"first", "other"}
    said = [warning for warning in dataset.warnings if "the column domain" in warning]
    assert len(said) == 1 and "(site 1, site 2) is not used" in said[0]


def test_images_of_two_sources_that_are_called_the_same_are_refused(tmp_path: Path) -> None:
    paths = {name: str(make_folders(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 9))}
    assert len(load(paths).membership.ids) == 40
    bare = {name: {"source": path, "prefix": False} for name, path in paths.items()}
    with pytest.raises(DataError, match="the domains a and b both have an image called train/cat/"):
        load_dataset(DataSection.model_validate({"sources": bare}))


def test_classes_of_one_domain_alone_are_said_also_where_all_name_the_same(tmp_path: Path) -> None:
    paths = {}
    for name, labels in (("a", [0, 1]), ("b", [0, 0])):
        given = {
            f"{split}_labels": np.resize(labels, count)[:, None].astype(np.uint8) for split, count in COUNTS.items()
        }
        paths[name] = make_npz(tmp_path / name, seed=ord(name), classes=np.array(["x", "y"]), **given)
    said = [warning for warning in load(sources(**paths)).warnings if "only the domain" in warning]
    assert said == ["only the domain a has y (10 images)"]


class TestMembership:
    def test_domains_are_recorded_and_older_records_still_load(self, three: dict[str, str], tmp_path: Path) -> None:
        known = load(three).membership
        known.write(tmp_path / "splits.parquet")
        assert np.array_equal(Membership.read(tmp_path / "splits.parquet").domains, known.domains)
        alone = load_dataset(DataSection(source=three["plain"])).membership
        alone.write(tmp_path / "splits.parquet")
        assert Membership.read(tmp_path / "splits.parquet").domains is None

    @pytest.mark.parametrize("spelled", ["{plain}", "plain={plain}", "own={own}, plain={plain}"])
    def test_data_that_moved_are_recognized(self, three: dict[str, str], tmp_path: Path, spelled: str) -> None:
        moved = {name: str(shutil.copy(path, tmp_path / f"{name}.npz")) for name, path in three.items()}
        before, section = load(three), DataSection.model_validate({"sources": three})
        place = spelled.format(**moved)
        if place == moved["plain"]:  # all that is left
            found, change = recall_dataset(section.moved(place), before.membership, before.classes)
            assert {*found.train.domains} == {"plain"} and len(change.gone) == len(before.membership.ids) - PART
            return
        gone = {name: str(tmp_path / "gone.npz") for name in moved if f"{name}=" in place}
        broken = DataSection.model_validate({"sources": {**three, **gone}})
        found, change = recall_dataset(broken.moved(place), before.membership, before.classes)
        assert found.fingerprint == before.fingerprint and not str(change)
        assert np.array_equal(found.train.domains, before.train.domains)

    def test_images_that_are_new_are_drawn_and_the_others_stay(self, three: dict[str, str], tmp_path: Path) -> None:
        two = {name: three[name] for name in ("plain", "own")}
        before = load(two)
        (tmp_path / "run").mkdir()
        before.membership.write(tmp_path / "run" / "splits.parquet")
        arrays = dict(np.load(two["plain"]))
        arrays["train_images"] = np.concatenate([arrays["train_images"], some_images(10, seed=99)])
        arrays["train_labels"] = np.concatenate([arrays["train_labels"], arrays["train_labels"][:10]])
        np.savez(tmp_path / "grown.npz", **arrays)
        grown = load(
            {**two, "plain": str(tmp_path / "grown.npz"), "slides": three["slides"]}, splits=str(tmp_path / "run")
        )
        now = places(grown)
        assert {name: now[name] for name in places(before)} == places(before)
        assert len(now) == len(places(before)) + 10 + PART
        assert any("30 images are new" in warning and "gone" not in warning for warning in grown.warnings)

    def test_a_source_is_added_to_a_run_of_one_source(self, three: dict[str, str], tmp_path: Path) -> None:
        before = load_dataset(DataSection(source=three["plain"], split_seed=7))
        (tmp_path / "run").mkdir()
        before.membership.write(tmp_path / "run" / "splits.parquet")
        grown = load(three, splits=str(tmp_path / "run"))
        assert {n: s for n, s in places(grown).items() if n.startswith("plain/")} == {
            f"plain/{n}": s for n, s in places(before).items()
        }
        assert not any("gone" in warning for warning in grown.warnings)


def test_masks_of_several_sources(tmp_path: Path) -> None:
    one, other = make_mask_npz(tmp_path / "one"), make_mask_npz(tmp_path / "other", seed=50)
    both = load(sources(one=one, other=other), leave_out="other")
    assert both.task.name == "segmentation"
    assert np.array_equal(both.train.targets, load_dataset(DataSection(source=str(one))).train.targets)


class TestWeights:
    @given(
        st.lists(st.integers(0, 3), min_size=1, max_size=30),
        st.sampled_from(["none", "weighted", "square-root", "oversample"]),
        st.integers(0, 5),
        st.one_of(st.none(), st.integers(1, 80)),
        st.sampled_from([1.0, 0.5, 2.0]),
    )
    def test_equal_weights_are_no_weights(self, labels, sampler, epoch, size, weight) -> None:
        targets = np.array(labels)
        plain = epoch_order(targets, sampler, 3, epoch, size)
        assert np.array_equal(plain, epoch_order(targets, sampler, 3, epoch, size, np.full(len(targets), weight)))

    @given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 10), st.integers(0, 5), st.integers(1, 200))
    def test_domains_are_drawn_in_proportion_to_their_weights(self, first, second, weight, epoch, size) -> None:
        weights = np.array([1.0] * first + [weight] * second)
        order = epoch_order(np.zeros(first + second, dtype=np.int64), "none", 0, epoch, size, weights)
        assert len(order) == size
        counts = np.bincount(order, minlength=first + second)
        wanted = size * second * weight / weights.sum()
        assert abs(counts[first:].sum() - wanted) < 1
        for part in (counts[:first], counts[first:]):
            assert part.max() - part.min() <= 1, "an image is drawn again before all of its weight were drawn"

    @pytest.mark.parametrize("sampler", ["none", "oversample"])
    def test_a_share_below_one_image_per_epoch_is_drawn_now_and_then(self, sampler: str) -> None:
        weights = np.array([0.3] + [1.0] * 99)
        targets = np.zeros(100, dtype=np.int64)
        drawn = sum(0 in epoch_order(targets, sampler, 0, epoch, None, weights) for epoch in range(400))
        assert drawn / 400 == pytest.approx(100 * 0.3 / 99.3, abs=0.08)

    @pytest.mark.parametrize("sampler", ["weighted", "oversample"])
    def test_samplers_multiply_with_weights(self, sampler: str) -> None:
        targets = np.array([0] * 60 + [1] * 20 + [0] * 30 + [1] * 10)
        weights = np.array([1.0] * 80 + [4.0] * 40)
        order = epoch_order(targets, sampler, 0, 0, 40_000, weights)
        classes = np.bincount(targets[order]) / len(order)
        assert np.allclose(classes, 0.5, atol=0.02), "every class is as likely as without weights"
        for label in (0, 1):
            counts = np.bincount(order, minlength=120)[targets == label]
            of_first, of_second = (counts[weights[targets == label] == each].mean() for each in (1.0, 4.0))
            assert of_second / of_first == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "x", "sources": {"a": "y"}}, "both data.source, 'x', and data.sources; keep one"),
        ({"sources": {}}, "data.sources"),
        ({"sources": ["x"]}, "maps the name of each domain to its source"),
        ({"sources": {"a/b": "x"}}, "without / = and commas"),
        ({"sources": {"a": {"source": "x", "weight": 0}}}, "data.sources.a.weight"),
        ({"sources": {"a": {"source": "x", "wieght": 2}}}, "unknown key 'data.sources.a.wieght'; did you mean weight"),
        ({"sources": {"a": {"source": "x", "group": "("}}}, "is no regular expression"),
        ({"sources": {"a": "x", "b": "y"}, "leave_out": "bb"}, "no domain of data.sources; did you mean b"),
        ({"sources": {"a": "x"}, "audit": "audits/x"}, "about one data.source"),
    ],
)
def test_wrong_sections_are_refused_in_a_sentence(data: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as error:
        load_recipe("demo", data={"source": None, **data})
    assert message in str(error.value)


def test_sources_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {sources: {2021: cells/, other: {source: more.csv, weight: 2}}}")
    settings = ["data.sources.other.weight=3", "data.sources.third=digits", "data.sources.2021.weight=2"]
    recipe = load_recipe(tmp_path / "base.yaml", settings)
    assert {name: (each.source, each.weight) for name, each in recipe.data.sources.items()} == {
        "2021": ("cells/", 2.0),
        "other": ("more.csv", 3.0),
        "third": ("digits", 1.0),
    }
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    (tmp_path / "more.yaml").write_text("{extends: base.yaml, data: {sources: {2021: {weight: 5}, 2022: new/}}}")
    more = load_recipe(tmp_path / "more.yaml", ["data.sources.2022.weight=7"]).data.sources
    assert {name: (each.source, each.weight) for name, each in more.items()} == {
        "2021": ("cells/", 5.0),
        "other": ("more.csv", 2.0),
        "2022": ("new/", 7.0),
    }
    empty = load_recipe("demo", ["data.source=null", "data.sources.2021=digits"])
    assert empty.data.by_domain["2021"].source == "digits"


def binary(folder: Path, top: int, seed: int) -> Path:
    return make_mask_npz(
        folder / str(seed),
        seed=seed,
        **{f"{split}_masks": top * (masks(n, seed) > 0).astype(np.uint8) for split, n in COUNTS.items()},
    )


def test_masks_of_0_and_255_are_no_classes_of_others(tmp_path: Path) -> None:
    three = make_mask_npz(tmp_path / "three")
    with pytest.raises(
        DataError, match=r"the masks of the domain b have the values 0 and 255, and those of a have 3 classes"
    ):
        load(sources(a=three, b=binary(tmp_path, 255, 40)))
    data = load(sources(a=binary(tmp_path, 1, 50), b=binary(tmp_path, 255, 60)))
    assert len(data.classes) == 2 and not any("only the domain" in text for text in data.warnings)
    assert {*np.unique(data.split("train").targets).tolist()} == {0, 1}
