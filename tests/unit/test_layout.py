"""Which folders are recognised, in what order their files come, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl.data.layout import discover
from fl.errors import DataError
from fl.types import CLASSES


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def relative(root: Path, files: object) -> list[tuple[str, int]]:
    return [(str(file.path.relative_to(root.resolve())), file.label) for file in files]  # type: ignore[attr-defined]


def test_kaggle_layout_lists_files_by_class_then_name(tmp_path: Path) -> None:
    touch(tmp_path, "Training/pituitary/b.jpg", "Training/glioma/z.jpg", "Training/glioma/a.png")
    touch(tmp_path, "Testing/notumor/t.jpg", "Synthetic/meningioma/s.png")

    layout = discover(tmp_path)

    assert layout.kind == "kaggle"
    assert layout.training is not None and layout.testing is not None and layout.synthetic is not None
    assert relative(tmp_path, layout.training.files) == [
        ("Training/glioma/a.png", 0),
        ("Training/glioma/z.jpg", 0),
        ("Training/pituitary/b.jpg", 3),
    ]
    assert relative(tmp_path, layout.testing.files) == [("Testing/notumor/t.jpg", 2)]
    assert relative(tmp_path, layout.synthetic.files) == [("Synthetic/meningioma/s.png", 1)]
    assert [file_set.name for file_set in layout.file_sets] == ["Training", "Testing", "Synthetic"]


def test_hospital_layout_gives_one_set_for_each_site_in_name_order(tmp_path: Path) -> None:
    touch(tmp_path, "sites/north/glioma/1.jpg", "sites/east/notumor/1.jpg", "Testing/glioma/1.jpg")

    layout = discover(tmp_path)

    assert layout.kind == "hospitals"
    assert [site.name for site in layout.sites] == ["east", "north"]
    assert relative(tmp_path, layout.sites[1].files) == [("sites/north/glioma/1.jpg", 0)]
    assert layout.testing is not None and layout.training is None


def test_plain_layout_is_one_labelled_folder(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/x.jpg" for name in CLASSES))

    layout = discover(tmp_path)

    assert layout.plain is not None and layout.kind == "plain"
    assert [file.label for file in layout.plain.files] == [0, 1, 2, 3]
    assert layout.remarks == ()


def test_hidden_names_are_ignored_at_every_level(tmp_path: Path) -> None:
    touch(tmp_path, "glioma/1.jpg", "glioma/._1.jpg", ".git/config", ".DS_Store")

    layout = discover(tmp_path)

    assert layout.plain is not None and len(layout.plain.files) == 1
    assert all("missing" in remark for remark in layout.remarks)


def test_whatever_lies_in_a_class_folder_is_left_for_admission_to_judge(tmp_path: Path) -> None:
    touch(tmp_path, "glioma/notes.txt", "glioma/folder.jpg/inner.jpg")

    layout = discover(tmp_path)

    assert layout.plain is not None
    assert relative(tmp_path, layout.plain.files) == [("glioma/folder.jpg", 0), ("glioma/notes.txt", 0)]


def test_stray_files_and_missing_classes_are_remarked_with_what_was_expected(tmp_path: Path) -> None:
    touch(tmp_path, "README.md", "Training/labels.csv", "Training/glioma/1.jpg", "old/x.jpg")

    remarks = "\n".join(discover(tmp_path).remarks)

    for path in ("README.md", "Training/labels.csv", "old", "Training/pituitary"):
        assert str(tmp_path / path) in remarks
    assert "only the folders Training, Testing, Synthetic" in remarks
    assert "images only inside the class folders glioma" in remarks


def test_misspelt_class_folder_is_an_error_that_names_it_and_the_classes(tmp_path: Path) -> None:
    touch(tmp_path, "Training/glioma/1.jpg", "Training/meningeoma/1.jpg")

    with pytest.raises(DataError, match=r"'meningeoma'.*glioma, meningioma, notumor, pituitary"):
        discover(tmp_path)


def test_test_folder_with_other_case_is_an_error_and_not_a_lost_test_set(tmp_path: Path) -> None:
    touch(tmp_path, "Training/glioma/1.jpg", "testing/glioma/1.jpg")

    with pytest.raises(DataError, match="rename the folder to Testing"):
        discover(tmp_path)


@pytest.mark.parametrize("names", [(), ("a/1.jpg", "b/1.jpg"), ("1.jpg",)])
def test_unknown_layout_says_what_was_found_and_expected(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)

    with pytest.raises(DataError, match=r"found (a, b|no folder); expected Training/<class>/"):
        discover(tmp_path)


def test_both_layouts_at_once_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "Training/glioma/1.jpg", "sites/a/glioma/1.jpg")

    with pytest.raises(DataError, match="both Training/ and sites/"):
        discover(tmp_path)


def test_empty_class_folders_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "glioma").mkdir()

    with pytest.raises(DataError, match="are empty"):
        discover(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_root_that_is_no_folder_is_an_error(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "data"
    if kind == "file":
        root.touch()

    with pytest.raises(DataError, match="cannot be listed"):
        discover(root)


def test_site_name_that_cannot_travel_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "sites/St. Mary/glioma/1.jpg")

    with pytest.raises(DataError, match=r"'St\. Mary'.*rename"):
        discover(tmp_path)


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "archive", "scans/1.jpg")
    touch(tmp_path / "data", "glioma/2.jpg")
    (tmp_path / "data" / "notumor").symlink_to(tmp_path / "archive" / "scans")
    (tmp_path / "data" / "glioma" / "3.jpg").symlink_to(tmp_path / "archive" / "scans" / "1.jpg")

    layout = discover(tmp_path / "data")

    assert layout.plain is not None
    assert [(file.path.name, file.label) for file in layout.plain.files] == [
        ("2.jpg", 0),
        ("3.jpg", 0),
        ("1.jpg", 2),
    ]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_link_to_a_folder_above_is_reported_as_a_loop(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "Training/glioma/1.jpg")
    (tmp_path / "Training" / "notumor").symlink_to(target)

    with pytest.raises(DataError, match="contains it"):
        discover(tmp_path)


def test_link_that_points_at_itself_is_remarked(tmp_path: Path) -> None:
    touch(tmp_path, "glioma/1.jpg")
    (tmp_path / "notumor").symlink_to("notumor")

    assert any("notumor was passed over" in remark for remark in discover(tmp_path).remarks)


def test_test_set_that_links_to_the_training_set_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "Training/glioma/1.jpg")
    (tmp_path / "Testing").symlink_to("Training")

    with pytest.raises(DataError, match="same folder"):
        discover(tmp_path)


def test_relative_roots_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "glioma/1.jpg")
    monkeypatch.chdir(tmp_path / "glioma")

    layout = discover(Path(".."))

    assert layout.plain is not None
    assert layout.plain.files[0].path == tmp_path.resolve() / "glioma" / "1.jpg"
