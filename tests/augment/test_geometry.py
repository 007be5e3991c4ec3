"""Geometry: exact moves, the one resampling, order."""

import numpy as np
import torch
from augmenting import augmented, labels, plain, some_images
from hypothesis import given
from hypothesis import strategies as st

from petriscope.augment import AUGMENTATIONS, pipeline
from petriscope.augment.base import Geometric
from petriscope.augment.geometry import gather, is_exact, resample
from petriscope.augment.pipeline import Pipeline
from petriscope.core.recipe import Part


class TestGeometry:
    def test_exact_operations_only_move_pixels(self):
        images = some_images(32)
        for name in ("flip", "quarter-turn"):
            out = augmented([Part(name=name)], images)
            assert out.dtype == torch.uint8
            ours, theirs = out.flatten(1).sort(1).values, images.flatten(1).sort(1).values
            assert torch.equal(ours, theirs)

    @given(turns=st.integers(0, 3), mirror=st.booleans(), side=st.integers(1, 9))
    def test_gather_is_rot90_and_flip(self, turns, mirror, side):
        images = some_images(2, side, side)
        angle = torch.tensor(turns * torch.pi / 2)
        matrix = torch.eye(3)
        matrix[0, 0] = matrix[1, 1] = angle.cos()
        matrix[0, 1], matrix[1, 0] = -angle.sin(), angle.sin()
        expected = torch.rot90(images, turns, (1, 2))
        if mirror:
            # the product's left factor is carried out first
            matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0])) @ matrix
            expected = torch.rot90(images.flip(2), turns, (1, 2))
        assert torch.equal(gather(images, matrix.repeat(2, 1, 1)), expected)

    @given(dx=st.integers(-4, 4), dy=st.integers(-4, 4), height=st.integers(5, 9), width=st.integers(5, 9))
    def test_gather_shifts_with_reflection(self, dx, dy, height, width):
        images = some_images(2, height, width)
        matrix = torch.eye(3)
        matrix[0, 2], matrix[1, 2] = dx, dy
        padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
        expected = padded[:, 4 + dy : 4 + dy + height, 4 + dx : 4 + dx + width]
        assert np.array_equal(gather(images, matrix.repeat(2, 1, 1)).numpy(), expected)

    @given(st.integers(0, 1000))
    def test_the_interpolating_way_agrees_with_the_exact_one(self, seed):
        images = some_images(8, 10, 10)
        generator = torch.Generator().manual_seed(seed)
        matrices = torch.eye(3).repeat(8, 1, 1)
        for part in ("flip", "quarter-turn"):
            matrices = matrices @ AUGMENTATIONS.build(Part(name=part)).matrices(8, (10, 10), generator)
        exact = plain(gather(images, matrices))
        torch.testing.assert_close(resample(plain(images).contiguous(), matrices), exact, atol=1e-4, rtol=0)

    def test_order_in_the_recipe_is_the_order_carried_out(self):
        class ShiftRight(Geometric):
            exact = True

            def matrices(self, batch, size, generator):
                out = torch.eye(3).repeat(batch, 1, 1)
                out[:, 0, 2] = -2
                return out

        class TurnLeft(Geometric):
            exact = True

            def matrices(self, batch, size, generator):
                out = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
                return out.repeat(batch, 1, 1)

        images = torch.zeros(1, 9, 9, 1, dtype=torch.uint8)
        images[0, 4, 4] = 255
        generator = torch.Generator()
        shifted = Pipeline([ShiftRight()])(images, labels(1), generator)[0]
        assert shifted[0, 4, 6] == 255
        both = Pipeline([ShiftRight(), TurnLeft()])(images, labels(1), generator)[0]
        assert torch.equal(both, Pipeline([TurnLeft()])(shifted, labels(1), generator)[0])
        assert not torch.equal(both, Pipeline([TurnLeft(), ShiftRight()])(images, labels(1), generator)[0])

    def test_images_that_are_not_square_turn_by_halves(self):
        images = some_images(64, 6, 10)
        out = augmented([Part(name="quarter-turn")], images)
        halves = torch.rot90(images, 2, (1, 2))
        assert all(torch.equal(o, i) or torch.equal(o, h) for o, i, h in zip(out, images, halves, strict=True))

    def test_quarter_turns_are_equally_likely(self):
        images = some_images(1).repeat(4000, 1, 1, 1)
        out = augmented([Part(name="quarter-turn")], images)
        counts = torch.unique(out.flatten(1), dim=0, return_counts=True)[1]
        assert len(counts) == 4
        assert counts.min() > 850

    def test_rotation_turns_about_the_center_by_the_angle(self):
        images = torch.zeros(1, 21, 21, 1, dtype=torch.uint8)
        images[0, 10, 18] = 255  # 8 to the right of the center
        angle = torch.tensor(torch.pi / 2)
        matrix = torch.eye(3)[None].clone()
        matrix[0, 0, 0] = matrix[0, 1, 1] = angle.cos()
        matrix[0, 0, 1], matrix[0, 1, 0] = -angle.sin(), angle.sin()
        out = resample(plain(images).contiguous(), matrix)
        assert out[0, 0, 2, 10] > 0.99

    def test_images_that_moved_exactly_keep_their_bits_beside_others_that_did_not(self):
        images = some_images(64)
        parts = [Part(name="flip", vertical=0.5), Part(name="rotate", degrees=30, p=0.5)]
        out = augmented(parts, images)
        mirrored = [plain(images.flip(axes)) if axes else plain(images) for axes in ((), (1,), (2,), (1, 2))]
        kept = torch.stack([(out == m).flatten(1).all(1) for m in mirrored]).any(0)
        assert 16 < kept.sum() < 48

    def test_one_resampling_and_of_the_moved_images_alone(self, monkeypatch):
        seen = []

        def counted(images, matrices, mode="bilinear"):
            seen.append(len(images))
            return resample(images, matrices, mode)

        monkeypatch.setattr(pipeline, "resample", counted)
        rotate = Part(name="rotate", p=0.3)
        augmented(
            [rotate, Part(name="rand-augment", p=0.3), Part(name="flip"), Part(name="scale", p=0.1)], some_images(64)
        )
        assert len(seen) == 1
        assert 8 < seen[0] < 56

    def test_each_image_is_moved_by_its_own_map(self):
        images = some_images(12)
        maps = torch.eye(3).repeat(12, 1, 1)
        maps[1::3, 0, 1] = torch.linspace(0.1, 0.4, 4)
        maps[2::3, 0, 2] = 2

        class Given(Geometric):
            def matrices(self, batch, size, generator):
                return maps

        out = Pipeline([Given()])(images, labels(12), torch.Generator())[0]
        for place in range(12):
            alone = resample(plain(images[place : place + 1]), maps[place : place + 1])
            if place % 3 == 2:
                alone = plain(gather(images[place : place + 1], maps[place : place + 1]))
            torch.testing.assert_close(out[place], alone[0], atol=1e-5, rtol=0)

    def test_what_is_exact(self):
        turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        mirror = torch.diag(torch.tensor([-1.0, 1, 1]))
        shift, part = torch.eye(3), torch.eye(3)
        shift[0, 2], part[0, 2] = 3, 0.5
        double = torch.diag(torch.tensor([2.0, 2, 1]))
        all_of_them = torch.stack([turn, mirror, shift, part, double])
        assert is_exact(all_of_them, (8, 8)).tolist() == [True, True, True, False, False]
        assert is_exact(all_of_them, (8, 9)).tolist() == [False, True, True, False, False]
