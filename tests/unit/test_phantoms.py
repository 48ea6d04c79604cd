"""Phantoms: what one slice promises, and what a written folder promises."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from fl.data.layout import discover
from fl.data.phantoms import (
    NOMINAL_SCANNER,
    Atlas,
    Phantom,
    PhantomFolder,
    PhantomSettings,
    draw_scanner,
    load_atlas,
    make_phantom,
    phantom_folder,
    write_phantom_folder,
)
from fl.data.phantoms.folder import plan_tasks
from fl.data.phantoms.scene import draw_fields, draw_scene
from fl.data.phantoms.section import Section, cut_section
from fl.errors import DataError
from fl.types import CLASSES

SMALL = PhantomSettings(size_pixels=64, num_train=8, num_test=4, num_synthetic=4)
GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY = range(4)


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module")
def atlas(cache_root: Path) -> Atlas:
    return load_atlas(cache_root)


@pytest.fixture
def fresh_root(atlas: Atlas, cache_root: Path, tmp_path: Path) -> Path:
    """A cache that holds the atlas, which takes a while to build, and nothing else."""
    (path,) = cache_root.glob("*.npz")
    shutil.copy(path, tmp_path)
    return tmp_path


def phantoms_of(atlas: Atlas, label: int, num: int, **settings: float) -> list[Phantom]:
    chosen = PhantomSettings.model_validate({"size_pixels": 96, **settings})
    return [
        make_phantom(atlas, label=label, index=index, settings=chosen, scanner=NOMINAL_SCANNER) for index in range(num)
    ]


def section_of(atlas: Atlas, index: int) -> Section:
    settings = PhantomSettings(size_pixels=96)
    return cut_section(atlas, draw_scene(settings, index), draw_fields(settings, index), 96)


def write(settings: PhantomSettings, root: Path, num_processes: int = 1) -> PhantomFolder:
    *_, last = write_phantom_folder(settings, root, num_processes=num_processes)
    assert last.num_done == last.num_total
    return phantom_folder(settings, root)


def bytes_by_name(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_slice_has_the_promised_shape_and_is_the_same_every_time(atlas: Atlas) -> None:
    first, again = (
        make_phantom(atlas, label=GLIOMA, index=3, settings=SMALL, scanner=NOMINAL_SCANNER) for _ in range(2)
    )
    assert first.image_HW.shape == first.mask_HW.shape == first.reach_HW.shape == (64, 64)
    assert first.image_HW.dtype == np.uint8
    assert np.array_equal(first.image_HW, again.image_HW)
    assert np.array_equal(first.mask_HW, again.mask_HW)


@pytest.mark.parametrize("label", [GLIOMA, MENINGIOMA, PITUITARY])
def test_every_tumour_can_be_seen_and_has_a_mask(atlas: Atlas, label: int) -> None:
    twins = phantoms_of(atlas, NOTUMOR, 24)
    for phantom, twin in zip(phantoms_of(atlas, label, 24), twins, strict=True):
        assert phantom.mask_HW.sum() >= 12
        assert not (phantom.mask_HW & ~phantom.reach_HW).any()
        change_HW = np.abs(phantom.image_HW.astype(int) - twin.image_HW)
        assert change_HW[phantom.mask_HW].mean() > 8, f"index {phantom.index} hides its {CLASSES[label]}"


def test_a_healthy_slice_has_an_empty_mask(atlas: Atlas) -> None:
    assert not any(phantom.mask_HW.any() or phantom.reach_HW.any() for phantom in phantoms_of(atlas, NOTUMOR, 4))


def test_adenomas_cover_the_sella_and_the_others_keep_clear_of_it(atlas: Atlas) -> None:
    for index, phantom in enumerate(phantoms_of(atlas, PITUITARY, 16)):
        sella = np.unravel_index(int(section_of(atlas, index).sella_HW.argmin()), phantom.mask_HW.shape)
        assert phantom.mask_HW[sella]
    for label in (GLIOMA, MENINGIOMA):
        for index, phantom in enumerate(phantoms_of(atlas, label, 16)):
            sella = np.unravel_index(int(section_of(atlas, index).sella_HW.argmin()), phantom.mask_HW.shape)
            assert not phantom.mask_HW[sella]


def test_meningiomas_touch_dura_and_gliomas_stay_within_the_cavity(atlas: Atlas) -> None:
    for index, phantom in enumerate(phantoms_of(atlas, MENINGIOMA, 24)):
        section = section_of(atlas, index)
        dura_HW = (np.abs(section.distance_HW) < 4) | (np.abs(section.points_3HW[0]) < 4)
        assert (phantom.mask_HW & dura_HW).any()
    for index, phantom in enumerate(phantoms_of(atlas, GLIOMA, 24)):
        assert section_of(atlas, index).distance_HW[phantom.mask_HW].max() < 0


def test_difficulty_shrinks_lesions(atlas: Atlas) -> None:
    easy = sum(int(p.mask_HW.sum()) for p in phantoms_of(atlas, PITUITARY, 12, difficulty=0.0))
    hard = sum(int(p.mask_HW.sum()) for p in phantoms_of(atlas, PITUITARY, 12, difficulty=1.0))
    assert hard < 0.6 * easy


def test_the_head_stands_out_from_the_air_around_it(atlas: Atlas) -> None:
    for phantom in phantoms_of(atlas, NOTUMOR, 24):
        assert 0.15 < (phantom.image_HW > 45).mean() < 0.85


def test_scanners_differ_between_sites_as_far_as_asked() -> None:
    assert draw_scanner(7, 0, 0.0).gamma == draw_scanner(7, 1, 0.0).gamma == NOMINAL_SCANNER.gamma
    gammas = [draw_scanner(7, site, 1.0).gamma for site in range(8)]
    assert max(gammas) / min(gammas) > 1.2
    assert draw_scanner(7, 3, 1.0) == draw_scanner(7, 3, 1.0)


def test_a_site_changes_the_picture_but_not_the_lesion(atlas: Atlas) -> None:
    one, other = (
        make_phantom(atlas, label=GLIOMA, index=1, settings=SMALL, scanner=draw_scanner(7, site, 1.0))
        for site in range(2)
    )
    assert not np.array_equal(one.image_HW, other.image_HW)
    assert np.array_equal(one.mask_HW, other.mask_HW)


def test_the_kaggle_layout_is_recognised_whole(cache_root: Path) -> None:
    folder = write(SMALL, cache_root)
    layout = discover(folder.images)
    assert layout.kind == "kaggle"
    assert layout.remarks == ()
    assert [len(file_set.files) for file_set in layout.file_sets] == [8, 4, 4]
    for file_set in layout.file_sets:
        for file in file_set.files:
            mask_HW = cv2.imread(str(folder.mask_of(file.path)), cv2.IMREAD_UNCHANGED)
            assert mask_HW is not None
            assert set(np.unique(mask_HW)) <= {0, 255}
            assert mask_HW.any() == (file.label != NOTUMOR)


def test_the_hospitals_layout_has_every_class_at_every_site(fresh_root: Path) -> None:
    layout = discover(write(SMALL.model_copy(update={"num_sites": 2}), fresh_root).images)
    assert layout.kind == "hospitals"
    assert layout.remarks == ()
    assert [sorted(file.label for file in site.files) for site in layout.sites] == [[0, 1, 2, 3]] * 2


def test_files_do_not_depend_on_the_number_of_processes(fresh_root: Path) -> None:
    settings = SMALL.model_copy(update={"num_train": 44})
    alone = bytes_by_name(write(settings, fresh_root, num_processes=1).root)
    shutil.rmtree(phantom_folder(settings, fresh_root).root)
    assert bytes_by_name(write(settings, fresh_root, num_processes=2).root) == alone
    assert len(alone) == 2 * 52 + 1


def test_the_manifest_holds_settings_and_a_digest_of_all_files(cache_root: Path) -> None:
    folder = write(SMALL, cache_root)
    manifest = json.loads(folder.manifest.read_text())
    assert PhantomSettings.model_validate(manifest["settings"]) == SMALL
    listing = ""
    for task in plan_tasks(SMALL):
        for name in (f"images/{task.stem}.jpg", f"masks/{task.stem}.png"):
            listing += f"{hashlib.sha256((folder.root / name).read_bytes()).hexdigest()}  {name}\n"
    assert manifest["files_sha256"] == hashlib.sha256(listing.encode()).hexdigest()


def test_a_complete_folder_is_reused_and_other_settings_get_another(cache_root: Path) -> None:
    folder = write(SMALL, cache_root)
    marker = folder.images / "marker"
    marker.touch()
    assert len(list(write_phantom_folder(SMALL, cache_root, num_processes=1))) == 1
    assert marker.exists()
    marker.unlink()
    assert phantom_folder(SMALL.model_copy(update={"seed": 8}), cache_root).root != folder.root


def test_an_abandoned_write_leaves_nothing_behind(fresh_root: Path) -> None:
    settings = SMALL.model_copy(update={"num_train": 100})
    progress = write_phantom_folder(settings, fresh_root, num_processes=1)
    assert next(progress).num_done < 108
    progress.close()
    assert [path.name for path in fresh_root.iterdir() if path.is_dir()] == []
    assert not phantom_folder(settings, fresh_root).is_complete


def test_no_two_slices_of_a_folder_share_a_scene() -> None:
    indices = [task.index for task in plan_tasks(SMALL)]
    assert len(set(indices)) == len(indices) == 16


def test_more_training_slices_leave_the_test_set_as_it_is() -> None:
    larger = SMALL.model_copy(update={"num_train": 400})
    first, second = ([task for task in plan_tasks(chosen) if task.folder == "Testing"] for chosen in (SMALL, larger))
    assert first == second


def test_bad_requests_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="num_processes is 0; expected at least 1"):
        next(iter(write_phantom_folder(SMALL, tmp_path, num_processes=0)))
    with pytest.raises(ValidationError, match="difficulty"):
        PhantomSettings(difficulty=1.5)
    with pytest.raises(ValidationError, match="brightness"):
        PhantomSettings.model_validate({"brightness": 1})
