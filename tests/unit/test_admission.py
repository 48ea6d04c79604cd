"""Every file becomes a Scan or a Quarantined, whatever is wrong; the inventory never changes a result."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fl.data.admission import AdmissionSettings, admit, pixels_digest
from fl.data.layout import LabelledFile
from fl.data.phash import perceptual_hash
from fl.types import Quarantined, Scan

SETTINGS = AdmissionSettings(num_threads=2)
OLD_SECONDS = 1_600_000_000


def make_slice(seed: int = 0, height: int = 96, width: int = 80) -> np.ndarray:
    """A smooth random picture, uint8 [H, W]."""
    noise = np.random.default_rng(seed).uniform(0, 255, (6, 5))
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def encoded(gray_HW: np.ndarray, extension: str = ".png") -> bytes:
    return bytes(cv2.imencode(extension, gray_HW)[1])


def stored(gray_HW: np.ndarray) -> bytes:
    """A PNG without compression: equal shapes give equal file sizes."""
    return bytes(cv2.imencode(".png", gray_HW, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1])


def bomb() -> bytes:
    """A PNG of a few hundred bytes that promises 60000 × 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(60_001))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write(path: Path, data: bytes, *, label: int = 0) -> LabelledFile:
    path.write_bytes(data)
    os.utime(path, (OLD_SECONDS, OLD_SECONDS))
    return LabelledFile(path=path, label=label)


def outcomes(files: Sequence[LabelledFile], **options: object) -> list[Scan | Quarantined]:
    return list(admit(files, options.pop("settings", SETTINGS), **options))  # type: ignore[arg-type]


def admitted(files: Sequence[LabelledFile], inventory: Path | None = None) -> list[Scan]:
    scans = [outcome for outcome in admit(files, SETTINGS, inventory) if isinstance(outcome, Scan)]
    assert len(scans) == len(files)
    return scans


def test_scan_carries_label_size_pixel_digest_and_perceptual_hash(tmp_path: Path) -> None:
    gray_HW = make_slice()
    file = write(tmp_path / "a.png", encoded(gray_HW), label=3)

    assert outcomes([file]) == [
        Scan(
            path=tmp_path / "a.png",
            label=3,
            pixels_sha256=pixels_digest(gray_HW),
            phash=perceptual_hash(gray_HW),
            height=96,
            width=80,
        )
    ]


def test_same_pixels_have_the_same_identity_in_any_file_format(tmp_path: Path) -> None:
    gray_HW = make_slice()
    colour = cv2.cvtColor(gray_HW, cv2.COLOR_GRAY2BGR)
    files = [
        write(tmp_path / "a.png", encoded(gray_HW)),
        write(tmp_path / "b.png", stored(gray_HW)),
        write(tmp_path / "c.png", encoded(colour)),
    ]

    assert len({scan.pixels_sha256 for scan in admitted(files)}) == 1


def test_identity_depends_on_the_shape_and_not_on_bytes_alone() -> None:
    assert pixels_digest(np.zeros((40, 90), np.uint8)) != pixels_digest(np.zeros((90, 40), np.uint8))
    wide_HW = make_slice(height=64, width=128)
    assert pixels_digest(wide_HW[:, ::2]) == pixels_digest(wide_HW[:, ::2].copy())


def test_results_come_in_input_order_whatever_the_number_of_threads(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{index:03d}.png", encoded(make_slice(index))) for index in range(60)]
    files.insert(17, write(tmp_path / "bad.png", b"no image"))

    one_thread = outcomes(files, settings=AdmissionSettings(num_threads=1))

    assert [outcome.path for outcome in one_thread] == [file.path for file in files]
    assert outcomes(files, settings=AdmissionSettings(num_threads=4)) == one_thread


def hostile_files(folder: Path) -> dict[str, str]:
    """Make files that cannot be admitted; return the reason expected for each name."""
    good = encoded(make_slice(height=256, width=256), ".jpg")
    write(folder / "zero.jpg", b"")
    write(folder / "text.jpg", b"Dear radiologist, please find attached " * 20)
    write(folder / "cut.jpg", good[: len(good) // 2])
    write(folder / "tiny.png", encoded(make_slice(height=31, width=200)))
    write(folder / "bomb.png", bomb())
    write(folder / "heavy.png", b"\0" * (SETTINGS.max_file_bytes // 1024))
    os.truncate(folder / "heavy.png", SETTINGS.max_file_bytes + 1)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    return {
        "zero.jpg": "empty",
        "text.jpg": "not_an_image",
        "cut.jpg": "truncated",
        "tiny.png": "too_small",
        "bomb.png": "too_large",
        "heavy.png": "too_large",
        "folder.jpg": "not_a_file",
        "pipe.jpg": "not_a_file",
        "dangling.jpg": "missing",
        "loop.jpg": "unreadable",
        "vanished.jpg": "missing",
    }


def test_hostile_files_are_quarantined_with_a_reason_and_a_message_that_names_them(tmp_path: Path) -> None:
    expected = hostile_files(tmp_path)
    files = [LabelledFile(path=tmp_path / name, label=0) for name in expected]

    refused = outcomes(files)

    assert all(isinstance(outcome, Quarantined) for outcome in refused)
    assert {item.path.name: item.reason for item in refused if isinstance(item, Quarantined)} == expected
    assert all(str(item.path) in item.detail for item in refused if isinstance(item, Quarantined))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_read_permission_is_quarantined(tmp_path: Path) -> None:
    file = write(tmp_path / "secret.png", encoded(make_slice()))
    file.path.chmod(0)

    (outcome,) = outcomes([file])

    assert isinstance(outcome, Quarantined) and outcome.reason == "permission_denied"


def test_name_that_is_not_utf8_is_admitted(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    inventory = tmp_path / "inventory.jsonl"
    file = write(path, encoded(make_slice()))

    first = outcomes([file], inventory=inventory)

    assert isinstance(first[0], Scan)
    assert outcomes([file], inventory=inventory) == first


def test_limits_that_no_image_can_meet_are_refused() -> None:
    with pytest.raises(ValidationError, match="no image could pass"):
        AdmissionSettings(min_side_pixels=100, max_pixels=9_999)


def test_limits_are_the_settings_own(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", encoded(make_slice(height=64, width=64)))

    strict = AdmissionSettings(min_side_pixels=65)
    narrow = AdmissionSettings(max_pixels=64 * 64 - 1)

    assert [item.reason for item in outcomes([file], settings=strict)] == ["too_small"]  # type: ignore[union-attr]
    assert [item.reason for item in outcomes([file], settings=narrow)] == ["too_large"]  # type: ignore[union-attr]
    assert isinstance(outcomes([file])[0], Scan)


def test_consumer_may_stop_early(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{index}.png", encoded(make_slice(index))) for index in range(40)]
    inventory = tmp_path / "inventory.jsonl"

    stream = admit(files, SETTINGS, inventory)
    next(stream)
    stream.close()  # type: ignore[attr-defined]

    assert [scan.path for scan in outcomes(files, inventory=inventory)] == [file.path for file in files]


def test_inventory_saves_reading_unchanged_files_and_notices_changed_ones(tmp_path: Path) -> None:
    data = stored(make_slice(1))
    files = [write(tmp_path / f"{name}.png", data) for name in "ab"]
    inventory = tmp_path / "cache" / "inventory.jsonl"
    first = admitted(files, inventory=inventory)

    # Same size: "a" keeps its mtime, so the remembered result is used; "b" is given another.
    other = stored(make_slice(2))
    write(files[0].path, other)
    write(files[1].path, other)
    os.utime(files[1].path, (OLD_SECONDS + 1, OLD_SECONDS + 1))
    second = admitted(files, inventory=inventory)

    assert second[0] == first[0]
    assert second[1] != first[1]
    assert second[1].pixels_sha256 == pixels_digest(make_slice(2))


def test_inventory_keeps_what_other_folders_put_into_it(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{name}.png", stored(make_slice(1))) for name in "ab")
    inventory = tmp_path / "inventory.jsonl"
    truth = admitted([first], inventory=inventory)
    admitted([second], inventory=inventory)

    write(first.path, stored(make_slice(2)))  # same size and mtime: only the inventory knows the old

    assert admitted([first], inventory=inventory) == truth


def test_inventory_forgets_what_was_made_with_other_limits(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", encoded(make_slice(height=64, width=64)))
    inventory = tmp_path / "inventory.jsonl"
    admitted([file], inventory=inventory)

    strict = outcomes([file], settings=AdmissionSettings(min_side_pixels=65), inventory=inventory)

    assert isinstance(strict[0], Quarantined)


def test_label_comes_from_the_folder_and_not_from_the_inventory(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", encoded(make_slice()), label=1)
    inventory = tmp_path / "inventory.jsonl"
    admitted([file], inventory=inventory)

    assert admitted([LabelledFile(path=file.path, label=2)], inventory=inventory)[0].label == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "empty", "binary", "not_an_object", "folder"])
def test_damaged_inventory_is_rebuilt_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    files = [write(tmp_path / f"{index}.png", encoded(make_slice(index))) for index in range(3)]
    inventory = tmp_path / "inventory.jsonl"
    truth = admitted(files, inventory=inventory)
    text = inventory.read_text()
    damaged = {
        "cut": text[: len(text) - 30].encode(),
        "flipped": text.replace(truth[1].pixels_sha256, "0" * 64).encode(),
        "garbage": b"{]\n",
        "empty": b"",
        "binary": bytes(range(256)),
        "not_an_object": b"[]\n1\n",
    }
    inventory.unlink()
    if damage == "folder":
        inventory.mkdir()
    else:
        inventory.write_bytes(damaged[damage])

    assert admitted(files, inventory=inventory) == truth
    if damage != "folder":
        assert inventory.read_text() == text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".inventory")]


def test_freshly_written_files_are_not_remembered(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", stored(make_slice(1)))
    os.utime(file.path)
    inventory = tmp_path / "inventory.jsonl"
    admitted([file], inventory=inventory)
    status = file.path.stat()

    file.path.write_bytes(stored(make_slice(2)))
    os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert admitted([file], inventory=inventory)[0].pixels_sha256 == pixels_digest(make_slice(2))


def test_flat_images_hash_to_zero_and_recompression_changes_few_bits() -> None:
    assert perceptual_hash(np.full((300, 200), 77, np.uint8)) == 0
    gray_HW = make_slice(5, 224, 224)
    buffer = io.BytesIO()
    Image.fromarray(gray_HW).resize((448, 448)).save(buffer, "JPEG", quality=60)
    again_HW = np.asarray(Image.open(buffer))

    distance = (perceptual_hash(gray_HW) ^ perceptual_hash(again_HW)).bit_count()

    assert distance <= 2
    assert (perceptual_hash(gray_HW) ^ perceptual_hash(make_slice(6, 224, 224))).bit_count() > 10
    assert 0 <= perceptual_hash(gray_HW) < 2**63
