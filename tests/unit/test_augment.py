"""Views move pixels as their numbers say, and depend on seed, image and view alone."""

from __future__ import annotations

import pytest
import torch

from fl.training.augment import IDENTITY, AugmentSettings, View, apply_views, draw_view

KEY = "c0ffee"


def images(num: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(4))


def test_identity_returns_the_image_bit_for_bit_even_beside_moved_ones() -> None:
    images_NCHW = images(3)

    mixed = apply_views(images_NCHW, [View(angle_degrees=30), IDENTITY, View(flip=True)])

    assert torch.equal(apply_views(images_NCHW, [IDENTITY] * 3), images_NCHW)
    assert torch.equal(mixed[1], images_NCHW[1])
    assert not torch.equal(mixed[0], images_NCHW[0])


def test_flip_mirrors_left_and_right() -> None:
    images_NCHW = images()

    flipped = apply_views(images_NCHW, [View(flip=True)] * 2)

    torch.testing.assert_close(flipped, torch.flip(images_NCHW, (3,)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("angle", "quarters"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_counter_clockwise_about_the_centre(angle: float, quarters: int) -> None:
    images_NCHW = images()

    turned = apply_views(images_NCHW, [View(angle_degrees=angle)] * 2)

    torch.testing.assert_close(turned, torch.rot90(images_NCHW, quarters, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(0.25, 0.0), (-0.25, 0.0), (0.0, 0.125), (0.125, -0.25)])
def test_shift_moves_by_that_fraction_of_the_side_and_repeats_the_border(right: float, down: float) -> None:
    images_NCHW = images()
    dx, dy = round(right * 16), round(down * 16)
    rows, columns = torch.arange(16) - dy, torch.arange(16) - dx
    expected = images_NCHW[:, :, rows.clamp(0, 15)][:, :, :, columns.clamp(0, 15)]

    shifted = apply_views(images_NCHW, [View(shift_right=right, shift_down=down)] * 2)

    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-5)


def test_shift_is_to_the_right_of_the_flipped_image_too() -> None:
    images_NCHW = images()
    view = View(shift_right=0.25, flip=True)

    moved = apply_views(images_NCHW, [view] * 2)

    unflipped = torch.flip(images_NCHW, (3,))
    columns = (torch.arange(16) - 4).clamp(0, 15)
    torch.testing.assert_close(moved, unflipped[:, :, :, columns], rtol=0, atol=1e-5)


def test_view_of_an_image_does_not_depend_on_its_batch() -> None:
    images_NCHW, views = images(5), [View(angle_degrees=7 * i - 10, shift_right=0.01 * i) for i in range(5)]

    together = apply_views(images_NCHW, views)

    for position in range(5):
        alone = apply_views(images_NCHW[position : position + 1], views[position : position + 1])
        assert torch.equal(alone[0], together[position])


def test_views_depend_on_seed_image_and_number_only() -> None:
    settings = AugmentSettings()
    view = draw_view(settings, seed=1, image_key=KEY, view=0)

    torch.manual_seed(5)
    assert draw_view(settings, seed=1, image_key=KEY, view=0) == view
    others = [
        draw_view(settings, seed=2, image_key=KEY, view=0),
        draw_view(settings, seed=1, image_key="other", view=0),
        draw_view(settings, seed=1, image_key=KEY, view=1),
    ]
    assert len({view, *others}) == 4


def test_views_fill_the_range_and_never_leave_it() -> None:
    settings = AugmentSettings(rotation_degrees=10, shift_fraction=0.05)

    views = [draw_view(settings, seed=1, image_key=KEY, view=number) for number in range(400)]

    for values, limit in (
        ([view.angle_degrees for view in views], 10),
        ([view.shift_right for view in views], 0.05),
        ([view.shift_down for view in views], 0.05),
    ):
        assert -limit <= min(values) < -0.95 * limit
        assert 0.95 * limit < max(values) <= limit
    assert 160 < sum(view.flip for view in views) < 240


def test_fixed_views_repeat_by_epoch_and_zero_views_never_do() -> None:
    assert [AugmentSettings(views=3).view_of_epoch(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [AugmentSettings(views=0).view_of_epoch(epoch) for epoch in range(7)] == list(range(7))


def test_augmentation_that_is_off_draws_identities() -> None:
    off = AugmentSettings(rotation_degrees=0, shift_fraction=0, horizontal_flip=False, views=0)

    assert off.is_identity
    assert {draw_view(off, seed=1, image_key=KEY, view=number) for number in range(5)} == {IDENTITY}
    assert {off.view_of_epoch(epoch) for epoch in range(5)} == {0}


def test_no_flip_is_drawn_where_flips_are_off() -> None:
    settings = AugmentSettings(horizontal_flip=False)

    assert not any(draw_view(settings, seed=1, image_key=KEY, view=number).flip for number in range(50))
