"""The audit finds what was planted, prints it safely, and agrees with the known figures of the real data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from fl.data.audit import audit, format_audit
from fl.errors import DataError

REAL_DATA = Path(os.environ.get("GLIOFED_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
STUDY_DATA = REAL_DATA / "brain-tumor-mri-224"


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (7, 7))
    return cv2.resize(noise, (96, 96), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def put(root: Path, name: str, seed: int, brighter: int = 0) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(cv2.imencode(".png", cv2.add(picture(seed), brighter))[1])


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """One exact and one near copy inside Training, one of each across, one label conflict, two bad files."""
    root = tmp_path / "data"
    put(root, "Training/glioma/1.png", 1)
    put(root, "Training/glioma/1-copy.png", 1)
    put(root, "Training/meningioma/2.png", 2)
    put(root, "Training/meningioma/2-near.png", 2, brighter=1)
    put(root, "Training/notumor/3.png", 3)
    put(root, "Training/notumor/conflict.png", 4)
    put(root, "Training/pituitary/conflict.png", 4)
    put(root, "Testing/glioma/1.png", 1)
    put(root, "Testing/notumor/3-near.png", 3, brighter=1)
    put(root, "Testing/pituitary/5.png", 5)
    (root / "Testing/pituitary/zero.png").touch()
    (root / "Testing/pituitary/evil\x1b[2J.txt").write_text("not an image")
    (root / "notes.txt").touch()
    return root


def test_audit_counts_what_was_planted(planted: Path) -> None:
    report = audit([planted])

    training, testing = report.sets
    assert (training.num_files, testing.num_files) == (7, 5)
    assert training.num_by_class == {"glioma": 2, "meningioma": 2, "notumor": 2, "pituitary": 1}
    assert (training.num_exact_copies, training.num_near_duplicates) == (2, 6)
    assert testing.num_unreadable_by_reason == {"empty": 1, "not_an_image": 1}
    assert (testing.num_exact_copies, testing.num_near_duplicates) == (0, 0)
    of_testing = next(overlap for overlap in report.overlaps if overlap.of == "Testing")
    assert (of_testing.found_in, of_testing.num_scans) == ("Training", 3)
    assert (of_testing.num_exact, of_testing.num_near) == (1, 2)
    assert of_testing.num_near_by_class == {"glioma": 1, "meningioma": 0, "notumor": 1, "pituitary": 0}
    (conflict,) = report.label_conflicts
    assert list(conflict.paths_by_class) == ["notumor", "pituitary"]
    assert len(report.quarantined) == 2
    assert any("notes.txt" in remark for remark in report.remarks)


def test_several_folders_are_compared_with_one_another(planted: Path, tmp_path: Path) -> None:
    put(tmp_path, "new/glioma/again.png", 5)

    report = audit([planted, tmp_path / "new"])

    assert [item.name for item in report.sets] == ["Training", "Testing", "new"]
    overlap = next(item for item in report.overlaps if (item.of, item.found_in) == ("new", "Testing"))
    assert overlap.num_exact == 1
    assert {tuple(conflict.paths_by_class) for conflict in report.label_conflicts} == {
        ("notumor", "pituitary"),
        ("glioma", "pituitary"),
    }


def test_report_survives_json_and_text_never_carries_control_characters(planted: Path) -> None:
    report = audit([planted])

    data = json.loads(json.dumps(report.to_json()))
    text = format_audit(report)

    assert data["sets"][0]["num_exact_copies"] == 2
    assert {item["reason"] for item in data["quarantined"]} == {"empty", "not_an_image"}
    assert "\x1b" not in text and "evil\\x1b[2J.txt" in text
    assert "label conflicts (same pixels, different labels): 1" in text
    assert "Testing" in text and "Training" in text


def test_clean_folder_says_so(tmp_path: Path) -> None:
    for seed, name in enumerate(("glioma", "meningioma", "notumor", "pituitary")):
        put(tmp_path, f"{name}/{seed}.png", seed)

    text = format_audit(audit([tmp_path]))

    assert "No scan of one set has a copy in another" in text
    assert "unreadable files: 0" in text


def test_same_folder_twice_and_no_folder_are_refused(planted: Path) -> None:
    with pytest.raises(DataError, match="named twice"):
        audit([planted, planted])
    with pytest.raises(DataError, match="at least one"):
        audit([])


@pytest.mark.real_data
@pytest.mark.skipif(not STUDY_DATA.is_dir(), reason=f"no real data in {STUDY_DATA}; set GLIOFED_REAL_DATA")
def test_real_data_has_the_duplicates_that_are_known() -> None:
    """Measured on the open part of the data: 5,708 training and 643 test images of 224×224."""
    report = audit([STUDY_DATA])

    training = next(item for item in report.sets if item.name == "Training")
    of_testing = next(item for item in report.overlaps if item.of == "Testing")
    assert sum(training.num_by_class.values()) == 5_708
    assert training.num_exact_copies == 207
    assert (of_testing.num_scans, of_testing.num_exact) == (643, 114)
    # A bit of the hash may hang on the last digit of a decoder's or a resize's rounding.
    assert abs(of_testing.num_near - 281) <= 6
    assert abs(of_testing.num_near_by_class["notumor"] - 184) <= 4
    assert report.quarantined == () and report.label_conflicts == ()
