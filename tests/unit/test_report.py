"""The report page: made from a run folder alone, complete for a rich run, calm when pieces are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from export.heatmap import encode_png, overlay_heatmap
from fl.evaluation.metrics import evaluate, evaluate_paired
from fl.types import CLASSES
from service.report import write_report
from service.report_data import ReportError

Change = Callable[[dict[str, Any]], object]
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


def make_run(
    root: Path,
    *,
    change: Change = lambda result: None,
    num_rounds: int = 23,
    sites_per_class: int = 8,
    data_kind: str = "phantom",
    num_samples: int = 8,
) -> Path:
    """Write a run folder such as a job leaves, of made-up but consistent numbers; return its path."""
    rng = np.random.default_rng(11)
    sites = [f"{name}-{index:02d}" for name in CLASSES for index in range(sites_per_class)]
    result = {
        "format": 1,
        "run_id": "20250305-140212-synthetic-7f3a",
        "name": "Eight sites per class, synthetic warm start",
        "scenario": "synthetic",
        "data_kind": data_kind,
        "created": "2025-03-05T14:02:12+00:00",
        "seed": 7,
        "arms": {
            "noniid": _arm(rng, "baseline", sites, num_rounds + 5, start=0.26, end=0.44, skill=0.1),
            "synthetic": _arm(rng, "scenario", sites, num_rounds, start=0.64, end=0.94, skill=3.2),
        },
        "sites": [_site(rng, name) for name in sites],
        "quarantined": [
            {
                "path": "Training/glioma/Tr-gl_0412.jpg",
                "reason": "truncated",
                "detail": "ends after 8,192 of 20,316 bytes",
            },
            {
                "path": "Training/pituitary/notes.txt",
                "reason": "not_an_image",
                "detail": "starts with 'patient list'",
            },
            {
                "path": "Testing/notumor/Te-no_0003.jpg",
                "reason": "too_small",
                "detail": "12 x 12 px; 32 px is the least",
            },
        ],
        "data": {"num_training": 5136, "num_validation": 576, "num_test": 1311, "num_shared": 1140}
        | {"exact_test_copies": 216, "near_test_copies": 539},
        "phases": [
            {"name": name, "seconds": seconds}
            for name, seconds in [
                *(("admission", 9.4), ("frozen features", 84.1), ("warm-up", 31.0), ("rounds", 412.6)),
                *(("baseline rounds", 388.2), ("evaluation", 22.8), ("export", 12.9)),
            ]
        ],
        "peak_memory_bytes": 5_871_222_784,
        "software": {
            "python": "3.11.9",
            "torch": "2.14.1",
            "ray": "2.60.0",
            "numpy": "2.4.1",
            "gliofed": "0.1.0",
        },
        "hardware": {"cpu": "AMD EPYC 9354", "cores": 16, "memory_bytes": 67_430_000_000, "gpus": []},
        "samples": [],
        "bundle": "bundle",
        "spec": {
            "name": "Eight sites per class",
            "fl": {"rounds": 50, "participation": 0.5, "sampling": "stratified"},
        },
    }
    root.mkdir(parents=True, exist_ok=True)
    result["samples"] = _write_samples(root, rng, num_samples)
    change(result)
    (root / "result.json").write_text(json.dumps(result))
    (root / "events.jsonl").write_text("\n".join(json.dumps(event) for event in _events()) + '\n{"time": "2025-0')
    return root


def _arm(
    rng: np.random.Generator,
    role: str,
    sites: list[str],
    num_rounds: int,
    *,
    start: float,
    end: float,
    skill: float,
) -> dict[str, Any]:
    labels = np.repeat(np.arange(4), [300, 306, 405, 300])
    logits = rng.normal(0, 1, (1311, 4))
    logits[np.arange(1311), labels] += skill
    logits[:, 1] -= 0.5
    near = np.zeros(1311, dtype=bool)
    near[rng.choice(1311, 539, replace=False)] = True
    history = [_round(rng, number, num_rounds, sites, start=start, end=end) for number in range(1, num_rounds + 1)]
    best = max(history, key=lambda entry: entry["validation_accuracy"])["round"]
    warmup = {"epochs": 10, "validation_accuracy": start, "seconds": 31.0} if role == "scenario" else None
    return {
        "role": role,
        "rounds_run": num_rounds,
        "best_round": best,
        "stopped_early": role == "scenario",
        "warmup": warmup,
        "validation": evaluate(labels[::2], logits[::2], CLASSES).to_json(),
        "test": evaluate_paired(labels, logits, near, CLASSES).to_json(),
        "seconds_total": 412.6,
        "seconds_per_round": 17.9,
        "bytes_per_round": 1_510_539_776,
        "bytes_per_site_round": 94_408_736,
        "history": history,
    }


def _round(
    rng: np.random.Generator, number: int, num_rounds: int, sites: list[str], *, start: float, end: float
) -> dict[str, Any]:
    accuracy = start + (end - start) * (1 - np.exp(-4 * number / max(num_rounds, 8))) + rng.normal(0, 0.015)
    asked = sorted(rng.choice(sites, max(1, len(sites) // 2), replace=False).tolist())
    reasons = ["late: no answer within 120 s", "refused: update is not finite", "worker died, twice"]
    left_out = [{"site": asked[0], "reason": reasons[number % 3]}] if number % 4 == 2 else []
    return {
        "round": number,
        "train_loss": float(1.3 * np.exp(-number / 9)),
        "validation_accuracy": float(min(accuracy, 0.99)),
        "validation_loss": float(-1.3 * np.log(max(accuracy, 0.05)) + 0.1),
        "seconds": float(rng.uniform(15, 21)),
        "bytes_down": 755_269_888,
        "bytes_up": 755_269_888,
        "sites": [site for site in asked if site not in {fault["site"] for fault in left_out}],
        "left_out": left_out,
    }


def _site(rng: np.random.Generator, name: str) -> dict[str, Any]:
    group = name.rsplit("-", 1)[0]
    return {
        "name": name,
        "group": group,
        "class_counts": {group: int(rng.integers(60, 200))},
        "num_shared": 570,
        "rounds_trained": int(rng.integers(6, 14)),
        "failures": int(rng.integers(0, 6) == 0),
        "seconds_mean": float(rng.uniform(6, 12)),
        "last_loss": float(rng.uniform(0.02, 0.2)),
    }


def _events() -> list[dict[str, Any]]:
    return [
        {"time": "2025-03-05T14:02:13Z", "event": "run_started", "level": "info", "sites": 32},
        {
            "time": "2025-03-05T14:04:40Z",
            "event": "site_left_out",
            "level": "warning",
            "site": "glioma-00",
            "round": 2,
        },
        {"time": "2025-03-05T14:05:01Z", "event": "update_refused", "site": "pituitary-03", "round": 3},
    ]


def _write_samples(root: Path, rng: np.random.Generator, num_samples: int) -> list[dict[str, Any]]:
    (root / "samples").mkdir(exist_ok=True)
    samples = []
    for index in range(num_samples):
        gray = np.zeros((160, 160), np.uint8)
        cv2.ellipse(gray, (80, 80), (52, 66), 0, 0, 360, 190, 3)
        cv2.ellipse(gray, (80, 80), (47, 61), 0, 0, 360, 92, -1)
        x, y = (int(v) for v in rng.integers(60, 100, 2))
        cv2.circle(gray, (x, y), 11, 200, -1)
        gray = cv2.GaussianBlur(gray, (5, 5), 0)
        heat = np.zeros((12, 12), np.float32)
        heat[y * 12 // 160, x * 12 // 160] = 1.0
        pictures = {
            f"{index:02d}.png": gray,
            f"{index:02d}-cam.png": overlay_heatmap(gray, cv2.GaussianBlur(heat, (5, 5), 0), None, image_size=192),
        }
        for name, picture in pictures.items():
            (root / "samples" / name).write_bytes(encode_png(picture))
        label = CLASSES[index % 4]
        samples.append(
            {"image": f"samples/{index:02d}.png", "overlay": f"samples/{index:02d}-cam.png", "label": label}
            | {"predicted": CLASSES[1] if index == 4 else label, "probability": 0.9997 - 0.06 * index}
            | {"source": f"Testing/{label}/Te_{index:04d}.jpg"}
        )
    return samples


class _Page(HTMLParser):
    """Tags, attributes and text of a page; complains about elements that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes the wrong element at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u202f", " "))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _page(run: Path) -> _Page:
    return _Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "rich")


@pytest.fixture(scope="module")
def rich(rich_run: Path) -> _Page:
    return _page(rich_run)


def test_the_headline_gives_both_accuracies_with_intervals_and_the_baseline_beside_them(
    rich: _Page, rich_run: Path
) -> None:
    arms = json.loads((rich_run / "result.json").read_text())["arms"]
    for protocol in ("deduplicated", "as_published"):
        metrics = arms["synthetic"]["test"][protocol]
        low, high = metrics["accuracy_interval"]
        assert f"{metrics['accuracy'] * 100:.1f} %" in rich.text
        assert f"{low * 100:.1f} to {high * 100:.1f} %" in rich.text
        assert f"{arms['noniid']['test'][protocol]['accuracy'] * 100:.1f} %" in rich.text
    assert "94.4 MB" in rich.text and "17.9 s" in rich.text


def test_every_part_of_a_rich_run_is_on_the_page(rich: _Page) -> None:
    sections = {attributes["id"] for attributes in rich.all("section")}
    assert sections == {*("result", "learning", "classes", "samples", "sites", "faults", "data", "resources", "spec")}
    for words in (
        *("glioma-00", "pituitary-07", "late: no answer within 120 s", "refused: update is not finite"),
        *(
            "starts with 'patient list'",
            "AMD EPYC 9354",
            "2.60.0",
            "true class glioma",
            "stratified",
            "site_left_out",
        ),
    ):
        assert words in rich.text
    assert "run_started" not in rich.text  # an event that is no warning


def test_the_page_says_phantom_and_not_for_clinical_use(rich: _Page, tmp_path: Path) -> None:
    assert "Phantom data." in rich.text and "Not for clinical use." in rich.text
    real = _page(make_run(tmp_path / "real", data_kind="mri", num_samples=0))
    assert "hantom" not in real.text and "Not for clinical use." in real.text


def test_the_page_needs_no_network_and_allows_no_script_but_its_own(rich: _Page, rich_run: Path) -> None:
    text = (rich_run / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    for tag, name in [("img", "src"), ("link", "href")]:
        assert all((attributes[name] or "").startswith("data:") for attributes in rich.all(tag))
    assert all((attributes["href"] or "").startswith("#") for attributes in rich.all("a"))
    (policy,) = [a["content"] for a in rich.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert len(rich.all("script")) == 1 and rich.all("script")[0] == {}


def test_pictures_and_charts_have_words_and_anchors_lead_somewhere(rich: _Page) -> None:
    assert len(rich.all("img")) == 16
    assert all(attributes["alt"] for attributes in rich.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in rich.all("svg"))
    ids = {a["id"] for _, a in rich.tags if "id" in a}
    assert {(a["href"] or "")[1:] for a in rich.all("a")} <= ids
    assert all(a.get("scope") for a in rich.all("th"))


def test_a_hostile_name_anywhere_is_only_text(tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                (HOSTILE if key in {"synthetic", "torch", "glioma"} else key): poison(v) for key, v in value.items()
            }
        if isinstance(value, list):
            return [poison(item) for item in value]
        kept = ("scenario", "baseline", "phantom", "2025-03-05T14:02:12+00:00")
        return HOSTILE if isinstance(value, str) and value not in kept and not value.startswith("samples/") else value

    def change(result: dict[str, Any]) -> None:
        result.update(poison(result))

    run = make_run(tmp_path / "hostile", change=change, num_rounds=3, num_samples=1)
    (run / "events.jsonl").write_text(json.dumps({"time": HOSTILE, "event": "fault " + HOSTILE, HOSTILE: [HOSTILE]}))
    page = _page(run)
    assert len(page.all("script")) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.words)


def _only_scenario(result: dict[str, Any]) -> None:
    result["arms"] = {"synthetic": result["arms"]["synthetic"]}


def _nothing_but_arms(result: dict[str, Any]) -> None:
    kept = {"format", "run_id", "name", "scenario", "data_kind", "created", "arms"}
    for key in set(result) - kept:
        del result[key]


def _no_history(result: dict[str, Any]) -> None:
    for arm in result["arms"].values():
        arm["history"] = []


def _not_numbers(result: dict[str, Any]) -> None:
    for arm in result["arms"].values():
        for entry in arm["history"][1:3]:
            entry.update(validation_loss=float("nan"), validation_accuracy=None, train_loss=float("inf"))
        arm["seconds_per_round"] = None
    result["sites"][0]["last_loss"] = float("nan")


def _all_losses_gone(result: dict[str, Any]) -> None:
    for arm in result["arms"].values():
        for entry in arm["history"]:
            entry.update(validation_loss=None, validation_accuracy=None)


def _no_test_image_left(result: dict[str, Any]) -> None:
    for arm in result["arms"].values():
        empty = evaluate_paired([0, 1], np.eye(4)[:2], np.ones(2, dtype=bool), CLASSES)
        arm["test"] = empty.to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_only_scenario, "After 4 rounds over 8 sites"),
        (_nothing_but_arms, "None: every file that was offered was admitted."),
        (_no_history, "No site was left out"),
        (_not_numbers, "Loss was not a number in rounds 2–3"),
        (_all_losses_gone, "Loss was not a number in rounds 1–4"),
        (_no_test_image_left, "all of them have a near-duplicate in training"),
    ],
)
def test_missing_pieces_leave_a_whole_page(tmp_path: Path, change: Change, words: str) -> None:
    page = _page(make_run(tmp_path / "run", change=change, num_rounds=4, sites_per_class=2, num_samples=1))
    assert words in page.text
    assert not re.search(r"\b(nan|inf|None)\b(?!:)", page.text)
    for tag, attributes in page.tags:
        for name in ("d", "x", "y", "cx", "cy", "width", "height"):
            assert "nan" not in str(attributes.get(name, "")), (tag, attributes)


def test_one_round_and_fifty_rounds_of_fifty_sites_both_fit(tmp_path: Path) -> None:
    one = _page(make_run(tmp_path / "one", num_rounds=1, sites_per_class=1, num_samples=0))
    assert "After 1 round over 4 sites" in one.text
    large = make_run(tmp_path / "large", num_rounds=45, sites_per_class=13, num_samples=0)
    assert "After 45 rounds over 52 sites" in _page(large).text
    assert (large / "report.html").stat().st_size < 600_000


def test_a_picture_outside_the_run_folder_or_absent_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")

    def change(result: dict[str, Any]) -> None:
        result["samples"][0]["image"] = "../secret.png"
        result["samples"][0]["overlay"] = "samples/none.png"

    page = _page(make_run(tmp_path / "run", change=change, num_samples=1))
    assert page.all("img") == []
    assert page.text.count("no picture") == 2


def test_the_page_is_made_again_without_leaving_anything_else(rich_run: Path) -> None:
    first = write_report(rich_run).read_bytes()
    assert write_report(rich_run).read_bytes() == first
    assert sorted(path.name for path in rich_run.iterdir()) == [
        "events.jsonl",
        "report.html",
        "result.json",
        "samples",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"result\.json does not exist.*resume the run"),
        ("{", r"result\.json is not JSON"),
        ('{"format": 2}', "has format 2; this version reads format 1"),
        ('{"format": 1}', r"result\.json, field run_id: Field required \(6 fields do not fit\)"),
    ],
)
def test_a_result_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
