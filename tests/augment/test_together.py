"""Two or three corruptions at once."""

import pytest
import torch

from devices import check_same_kind, on_every_device, queued
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES
from petriscope.augment.corruptions.together import STRONGEST, Together, draw_together
from petriscope.augment.families import FAMILIES, family_of
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.data.sources.synthetic_smear import draw_smear

POOL = list(CORRUPTIONS.values())
every_number = pytest.mark.parametrize("number", [1, 2, 3])


def cells(count=24, size=20):
    return torch.from_numpy(draw_smear(count, size, 3)[0])


@every_number
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_each_image_has_so_many_of_different_families_and_one_of_the_wanted(number, family):
    drawn = draw_together(torch.arange(400), number, POOL, family=family)
    assert set(drawn.severity.unique().tolist()) == {0, *range(1, STRONGEST + 1)}
    assert max(SEVERITIES) >= STRONGEST
    families = [family_of(name) for name in drawn.names]
    for row in drawn.severity > 0:
        of = [families[place] for place in row.nonzero()]
        assert len(of) == len(set(of)) == number
        assert family is None or family in of
    shares = {each: sum((drawn.severity[:, p] > 0).float().mean() for p, f in enumerate(families) if f == each)
              for each in FAMILIES}  # fmt: skip
    for each, share in shares.items():  # all families are equally likely, except for the wanted one
        expected = number / 7 if family is None else 1.0 if each == family else (number - 1) / 6
        assert abs(share - expected) < 0.09


def test_an_image_s_draws_depend_on_its_index_alone():
    images = cells()
    whole = draw_together(torch.arange(24), 3, POOL)
    some = torch.tensor([20, 3, 11])
    part = draw_together(some, 3, POOL)
    assert torch.equal(part.severity, whole.severity[some])
    assert torch.equal(part.images(images[some]), whole.images(images)[some])
    for other in ({"seed": 1}, {"part": 1}, {"family": "blur"}):
        assert not torch.equal(draw_together(torch.arange(24), 3, POOL, **other).severity, whole.severity)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_one_at_once_is_the_corruption_itself(name):
    images, masks = cells(8), torch.randint(0, 2, (8, 20, 20), dtype=torch.uint8)
    drawn = draw_together(torch.arange(8), 1, [CORRUPTIONS[name]], part=0)
    before = images.clone(), masks.clone()
    out, moved = drawn.images(images), drawn.masks(masks)
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])
    assert out.dtype == torch.uint8
    for row, severity in enumerate(drawn.severity[:, 0].tolist()):
        alone = CORRUPTIONS[name](
            images[row : row + 1].permute(0, 3, 1, 2).float() / 255,
            torch.tensor([severity]),
            drawn.keys[row : row + 1, 0],
        )
        assert ((alone[0].permute(1, 2, 0) * 255).round() - out[row].float()).abs().max() <= 1
    assert torch.equal(moved, masks) == (CORRUPTIONS[name].moves is None)
    assert (moved == IGNORE).any() == (CORRUPTIONS[name].moves is not None)


def test_they_are_applied_in_the_order_in_which_they_arise():
    """Noise first and then a blur would leave less noise than a blur first."""
    assert [*dict.fromkeys(map(family_of, draw_together(torch.arange(1), 1, POOL).names))] == list(FAMILIES)
    flat = torch.full((16, 24, 24, 3), 128, dtype=torch.uint8)
    pool = [CORRUPTIONS["gaussian-noise"], CORRUPTIONS["defocus-blur"]]
    spread = draw_together(torch.arange(16), 2, pool).images(flat).float().std((1, 2, 3))
    noise = Together(("gaussian-noise",), *(t[:, 1:] for t in _severities_and_keys(pool))).images(flat)
    torch.testing.assert_close(spread, noise.float().std((1, 2, 3)), rtol=0.05, atol=0)


def _severities_and_keys(pool):
    drawn = draw_together(torch.arange(16), 2, pool)
    return drawn.severity, drawn.keys


def test_the_same_severity_gives_more_change_together_than_alone():
    images = cells(64)
    change = lambda number: (draw_together(torch.arange(64), number, POOL).images(images).float() - images).abs().mean()  # noqa: E731
    assert change(3) > change(2) > change(1) > 0


def test_what_does_not_apply_is_refused():
    gray = [corruption for corruption in POOL if corruption.gray]
    with pytest.raises(RequestError, match="no corruption of the family color applies"):
        draw_together(torch.arange(2), 2, gray, family="color")
    with pytest.raises(RequestError, match="3 corruptions of different families cannot be drawn from 1 families"):
        draw_together(torch.arange(2), 3, [CORRUPTIONS["jpeg"]])


@on_every_device
def test_it_runs_on_every_device_and_waits_for_none(device):
    images, masks = cells(8), torch.zeros(8, 20, 20, dtype=torch.uint8)
    drawn = draw_together(torch.arange(8), 3, POOL)
    check_same_kind(drawn.images(images.to(device)), images, device)
    check_same_kind(drawn.masks(masks.to(device)), masks, device)
    images, masks = images.to(device), masks.to(device)
    with queued(device):
        drawn.images(images)
        drawn.masks(masks)
