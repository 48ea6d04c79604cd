"""The viewer in a real browser: the system's Chromium, headless, in front of a real endpoint with a small real model.

Where a state of the answer matters that no small model gives on demand (one hot cell, an abstention, a busy server),
the answer to POST /v1/predict alone is replaced on its way into the browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Debian's chromium at {CHROMIUM}")

DESK, NARROW = {"width": 1280, "height": 800}, {"width": 420, "height": 900}
LABELS = ["glioma", "meningioma", "notumor", "pituitary"]
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""
DROP = """([name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.getElementById("stage").dispatchEvent(
      new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
  }
}"""
PIXELS = """() => {
  const canvas = document.getElementById("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let text = "";
  for (let at = 0; at < pixels.length; at += 32768) text += String.fromCharCode(...pixels.subarray(at, at + 32768));
  return [canvas.height, canvas.width, btoa(text)];
}"""
FAINT_TEXTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest(":disabled")) continue;
    const pair = [luminance(channels(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) faint.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


def make_head(height: int = 150, width: int = 120, seed: int = 0) -> np.ndarray:
    """Return a noisy bright ellipse on black: a slice that preprocessing finds a head in."""
    gray = np.zeros((height, width), np.uint8)
    cv2.ellipse(gray, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 150, -1)
    noise = np.random.default_rng(seed).integers(-30, 30, gray.shape)
    return np.where(gray > 0, gray + noise, 0).astype(np.uint8)


def png(gray: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", gray)
    assert done
    return data.tobytes()


def an_answer(cells: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """Return an answer as the endpoint words it, about a flat grey slice of 120 x 150 pixels."""
    cells = np.full((6, 5), 0.1) if cells is None else cells
    box = [10, 15, 110, 135]
    answer: dict[str, Any] = {
        "model": {
            "name": "small",
            "version": "3",
            "digest": "c0ffee" * 10 + "0123",
            "precision": "int8",
            "signer": "radiology",
            "data_kind": "mri",
            "labels": LABELS,
        },
        "label": "glioma",
        "probabilities": dict(zip(LABELS, (0.7, 0.2, 0.06, 0.04), strict=True)),
        "calibrated": True,
        "uncertainty": 0.61,
        "prediction_set": ["glioma", "meningioma"],
        "out_of_distribution": False,
        "ood_score": 1.8,
        "ood_threshold": 2.5,
        "abstains": False,
        "cautions": [],
        "head_found": True,
        "box": box,
        "image_size": [120, 150],
        "image": {"sha256": "0" * 64, "kind": "png", "frame": 0, "num_frames": 1},
        "heatmap": {
            "shape": list(cells.shape),
            "maps": {label: cells.tolist() for label in LABELS},
            "cell_pixels": [100 / cells.shape[1], 120 / cells.shape[0]],
            "box": box,
        },
        "slice_png": base64.b64encode(png(np.full((150, 120), 90, np.uint8))).decode(),
    }
    return answer | changes


class Viewer:
    """One page of the viewer, and what a reader does with it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.requests: list[Any] = []
        self.complaints: list[str] = []
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        page.add_init_script(WATCH_POLICY)
        page.goto(address + "/")

    def _note(self, request: Any) -> None:
        self.requests.append(request)

    def _hear(self, message: Any) -> None:
        refused = message.text.startswith("Failed to load resource")  # Chromium's word for a 4xx or 503 answer
        if message.type == "error" and not refused:
            self.complaints.append(message.text)

    def drop(self, data: bytes, name: str = "slice.png", kind: str = "image/png") -> None:
        self.page.evaluate(DROP, [name, kind, base64.b64encode(data).decode()])

    def answer_with(self, *answers: tuple[int, dict[str, Any]]) -> None:
        """Replace the endpoint's answers, in turn; the last one stays."""
        waiting = list(answers)

        def fulfil(route: Any) -> None:
            status, body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            route.fulfill(status=status, json=body, headers={"Retry-After": "1"} if status == 503 else {})

        self.page.route("**/v1/predict*", fulfil)

    def see(self, selector: str) -> str:
        """Wait until it is on view and return its text."""
        self.page.wait_for_selector(selector, timeout=20_000)
        return str(self.page.inner_text(selector)).replace("\u00a0", " ")

    def pixels(self) -> np.ndarray:
        """The canvas, int16 [H,W,4]."""
        height, width, text = self.page.evaluate(PIXELS)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4).astype(np.int16)

    def heat(self) -> np.ndarray:
        """How much the heat changes each canvas pixel, summed over the channels, [H,W]."""
        with_heat = self.pixels()
        self.page.keyboard.press("h")
        without = self.pixels()
        self.page.keyboard.press("h")
        return np.abs(with_heat - without).sum(axis=2)

    def slide(self, name: str, value: float) -> None:
        self.page.fill(f"#{name}", str(value))


@pytest.fixture(scope="module")
def endpoint_address(serve_module: Callable[..., Any], tiny_bundle: Path) -> str:
    return str(serve_module(tiny_bundle).url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_viewer(browser: Any, endpoint_address: str) -> Iterator[Callable[..., Viewer]]:
    """Open viewers; afterwards none of them may have complained, broken the policy or asked another server."""
    opened: list[Viewer] = []

    def open_one(size: dict[str, int] = DESK, **options: Any) -> Viewer:
        opened.append(Viewer(browser.new_context(viewport=size, **options).new_page(), endpoint_address))
        return opened[-1]

    yield open_one
    for viewer in opened:
        assert viewer.complaints == []
        assert viewer.page.evaluate("violations") == []
        assert {request.url.split("/")[2] for request in viewer.requests if not request.url.startswith("blob:")} == {
            endpoint_address.split("/")[2]
        }
        viewer.page.context.close()


def test_a_dropped_slice_shows_what_the_endpoint_says(
    open_viewer: Callable[..., Viewer], endpoint_address: str
) -> None:
    viewer, data = open_viewer(), png(make_head())
    said = httpx.post(endpoint_address + "/v1/predict", content=data, headers={"Content-Type": "image/png"}).json()
    viewer.drop(data, name="DOE^JANE.png")
    assert viewer.see(".verdict-label") in (said["label"], "The model abstains")
    shown = dict(
        line.split("\n") for line in viewer.page.eval_on_selector_all(".class-row", "all => all.map(a => a.innerText)")
    )
    assert list(shown) == list(said["probabilities"])
    for label, text in shown.items():
        assert abs(float(text.strip("<> %\u00a0")) / 100 - said["probabilities"][label]) <= 0.001
    assert said["model"]["digest"].startswith(viewer.see(".digest code"))
    assert viewer.see("#phantom").startswith("PHANTOM MODEL")
    assert "Not a medical device" in viewer.see(".research")
    assert said["label"] in viewer.see("#live") or "abstains" in viewer.see("#live")
    assert viewer.heat().max() > 30 or not np.any(np.array(said["heatmap"]["maps"][said["label"]]) > 0)


def test_nothing_but_the_bytes_of_the_file_leaves_the_page(open_viewer: Callable[..., Viewer]) -> None:
    viewer, data = open_viewer(), png(make_head())
    viewer.drop(data, name="DOE^JANE.png")
    viewer.see(".verdict-label")
    (sent,) = [request for request in viewer.requests if request.method == "POST"]
    assert sent.headers["content-type"] == "image/png"
    with viewer.page.expect_download() as download:
        viewer.page.keyboard.press("j")
    received = json.loads(Path(download.value.path()).read_text())["image"]["sha256"]
    assert received == hashlib.sha256(data).hexdigest()
    assert not any("DOE" in text for request in viewer.requests for text in (request.url, *request.headers.values()))
    kept = viewer.page.evaluate(
        "async () => [localStorage.length, sessionStorage.length, document.cookie,"
        " (await indexedDB.databases()).length]"
    )
    assert kept == [0, 0, "", 0]


@pytest.mark.parametrize(("cell", "size"), [((0, 0), DESK), ((1, 3), NARROW), ((3, 1), DESK)], ids=str)
def test_a_hot_cell_is_drawn_where_the_answer_says(
    open_viewer: Callable[..., Viewer], cell: tuple[int, int], size: dict[str, int]
) -> None:
    viewer, cells = open_viewer(size, device_scale_factor=1.5), np.full((4, 5), -0.5)  # of 20 x 30 pixels each
    cells[cell] = 4.0
    viewer.answer_with((200, an_answer(cells)))
    viewer.drop(b"any")
    viewer.see(".verdict-label")
    viewer.slide("threshold", 0)
    smooth = viewer.heat()
    viewer.page.keyboard.press("s")
    heat = viewer.heat()

    height, width = heat.shape
    scale = min(width / 120, height / 150)
    left, top = (width - 120 * scale) / 2, (height - 150 * scale) / 2
    row, column = cell
    expected = [left + (10 + 20 * column) * scale, top + (15 + 30 * row) * scale]
    expected += [expected[0] + 20 * scale, expected[1] + 30 * scale]
    rows, columns = np.nonzero(heat)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(found) - expected).max() <= 1.5
    centre = (int((expected[1] + expected[3]) / 2), int((expected[0] + expected[2]) / 2))
    assert smooth[centre] >= 0.95 * smooth.max()

    frame = viewer.page.locator("#canvas").bounding_box()
    viewer.page.mouse.move(frame["x"] + centre[1] / 1.5, frame["y"] + centre[0] / 1.5)
    assert f"row {row + 1}, column {column + 1} · map value 4" in viewer.see("#readout")
    assert f"row {row + 1} of 4, column {column + 1} of 5" in viewer.page.get_attribute("#canvas", "aria-label")
    viewer.page.mouse.wheel(0, -300)
    viewer.page.wait_for_selector("#canvas.zoomed")
    zoomed = viewer.heat()
    assert zoomed[centre] == heat[centre]
    assert np.count_nonzero(zoomed) > np.count_nonzero(heat)


def test_smooth_heat_lies_halfway_between_two_cells_halfway_up(open_viewer: Callable[..., Viewer]) -> None:
    viewer, cells = open_viewer(), np.zeros((1, 2))
    cells[0] = [1.0, 0.5]
    viewer.answer_with((200, an_answer(cells)))
    viewer.drop(b"any")
    viewer.see(".verdict-label")
    viewer.slide("opacity", 1)
    viewer.slide("threshold", 0)
    colours = np.array(
        viewer.page.evaluate("import('/viewer/colormap.js').then((m) => [...m.COLOUR_MAPS.ember.colours])")
    ).reshape(256, 3)
    pixels, scale = viewer.pixels(), 0.0
    scale = min(pixels.shape[1] / 120, pixels.shape[0] / 150)
    left, top = (pixels.shape[1] - 120 * scale) / 2, (pixels.shape[0] - 150 * scale) / 2
    for x, strength in ((35, 1.0), (60, 0.75), (85, 0.5), (108, 0.5)):
        seen = pixels[int(top + 75 * scale), int(left + x * scale), :3]
        assert np.abs(seen - colours[round(255 * strength)]).max() <= 4


def test_sliders_keys_and_classes_change_the_picture(open_viewer: Callable[..., Viewer]) -> None:
    viewer, cells = open_viewer(), np.linspace(0, 2, 30).reshape(6, 5)
    answer = an_answer(cells)
    answer["heatmap"]["maps"]["pituitary"] = np.full((6, 5), -1.0).tolist()
    viewer.answer_with((200, answer))
    viewer.drop(b"any")
    viewer.see(".verdict-label")
    half = viewer.heat()
    viewer.slide("opacity", 1)
    full = viewer.heat()
    assert full.max() > 1.5 * half.max()
    viewer.slide("threshold", 0.8)
    assert 0 < np.count_nonzero(viewer.heat()) < 0.5 * np.count_nonzero(full)
    before = viewer.pixels()
    viewer.page.keyboard.press("m")
    assert np.abs(viewer.pixels() - before).max() > 30
    viewer.page.check("input[value=pituitary]")
    assert not viewer.heat().any()
    assert "no heat" in viewer.see("#legend-text")
    viewer.page.keyboard.press("+")
    assert np.abs(viewer.pixels() - before).max() > 0


def test_the_whole_way_by_keyboard(open_viewer: Callable[..., Viewer], tmp_path: Path) -> None:
    viewer = open_viewer()
    page, files = viewer.page, []
    page.on("filechooser", lambda _: None)  # else the key may be faster than Playwright's interception
    for index in range(3):
        files.append(tmp_path / f"slice{index}.png")
        files[-1].write_bytes(png(make_head(seed=index)))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("o")
    chooser.value.set_files(files)
    viewer.see(".verdict-label")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("[aria-selected=true] .file-name") == "slice1.png"
    page.keyboard.press("ArrowUp")
    assert page.inner_text("[aria-selected=true] .file-name") == "slice0.png"
    page.keyboard.press("?")
    assert "Heatmap on or off" in viewer.see("#help")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(() => { const f = document.activeElement, s = getComputedStyle(f);"
            " const name = f === document.body ? '' : f.id || f.name || f.textContent;"
            " return [name, s.outlineStyle, parseFloat(s.outlineWidth)] })()"
        )
        if not focused[0]:
            break
        assert focused[1] != "none" and focused[2] >= 2, f"no visible focus on {focused[0]}"
        reached.add(focused[0])
    assert {"zoom-in", "heat", "opacity", "threshold", "map", "save-picture", "heat-class", "Copy"} <= reached
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#opacity") == "0.55"
    assert page.inner_text("[aria-selected=true] .file-name") == "slice0.png"


def test_a_text_file_is_refused_in_the_servers_words(open_viewer: Callable[..., Viewer], endpoint_address: str) -> None:
    viewer, text = open_viewer(), b"Dear colleague, thank you for sending this patient.\n" * 20
    said = httpx.post(
        endpoint_address + "/v1/predict", content=text, headers={"Content-Type": "application/octet-stream"}
    )
    assert 400 <= said.status_code < 500
    viewer.drop(text, name="letter.txt", kind="text/plain")
    told = viewer.see("[role=alert]")
    assert said.json()["error"] in told
    assert "no answer" in viewer.see("#list")
    viewer.drop(png(make_head()))
    viewer.see(".verdict-label")


def test_a_busy_server_is_asked_again(open_viewer: Callable[..., Viewer]) -> None:
    viewer = open_viewer()
    viewer.answer_with((503, {"error": "16 requests are waiting"}), (200, an_answer()))
    viewer.drop(b"any")
    assert "busy" in viewer.see(".under-way")
    assert viewer.see(".verdict-label") == "glioma"


def test_a_key_is_asked_for_and_kept_in_memory_only(open_viewer: Callable[..., Viewer]) -> None:
    viewer = open_viewer()
    viewer.page.route(
        "**/v1/predict*",
        lambda route: (
            route.fulfill(json=an_answer())
            if route.request.headers.get("authorization") == "Bearer s3cret"
            else route.fulfill(status=401, json={"error": "an API key is needed"})
        ),
    )
    viewer.drop(b"any")
    assert "an API key is needed" in viewer.see("#key")
    viewer.page.keyboard.type("s3cret")
    viewer.page.keyboard.press("Enter")
    assert viewer.see(".verdict-label") == "glioma"
    assert "s3cret" not in viewer.page.content()
    assert viewer.page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]


def test_frames_are_asked_for_one_by_one_from_the_servers_choice(open_viewer: Callable[..., Viewer]) -> None:
    viewer = open_viewer()
    image = {"sha256": "0" * 64, "kind": "dicom", "num_frames": 5}
    viewer.answer_with(*[(200, an_answer(image=image | {"frame": frame})) for frame in (2, 3, 4)])
    viewer.drop(b"any", name="volume.dcm")
    viewer.see("#frames")
    assert viewer.see("#frame-text") == "3 of 5"
    for number in (4, 5):
        viewer.page.keyboard.press("ArrowRight")
        viewer.page.locator("#live", has_text=f"frame {number}:").wait_for(state="attached")
    viewer.page.keyboard.press("ArrowRight")  # there is none behind the last
    viewer.page.keyboard.press("ArrowLeft")  # known already
    viewer.page.locator("#live", has_text="frame 4:").wait_for(state="attached")
    assert viewer.see("#frame-text") == "4 of 5"
    frames = [httpx.URL(request.url).params.get("frame") for request in viewer.requests if request.method == "POST"]
    assert frames == [None, "3", "4"]


STATES: dict[str, dict[str, Any]] = {
    "sure": {},
    "unlike": {
        "out_of_distribution": True,
        "abstains": True,
        "ood_score": 9.25,
        "cautions": [{"code": "out_of_distribution", "text": "The image lies far from those the model was made for."}],
    },
    "unsure": {
        "abstains": True,
        "uncertainty": 0.97,
        "prediction_set": LABELS,
        "cautions": [{"code": "unsure", "text": "No class can be ruled out."}],
    },
    "phantom": {
        "model": an_answer()["model"] | {"data_kind": "phantom", "signer": None},
        "calibrated": False,
        "ood_score": None,
        "ood_threshold": None,
        "cautions": [{"code": "phantom_model", "text": "Trained on phantoms."}],
    },
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_told_legible_and_fits(open_viewer: Callable[..., Viewer], state: str, tmp_path: Path) -> None:
    cells = np.zeros((6, 5))
    cells[2, 3] = 1.0
    answer = an_answer(cells, **STATES[state])
    for name, size in (("desk", DESK), ("narrow", NARROW)):
        viewer = open_viewer(size)
        viewer.answer_with((200, answer))
        viewer.drop(b"any")
        viewer.see(".verdict")
        told = viewer.see("#answer")
        assert ("The model abstains" in told) == answer["abstains"]
        assert viewer.page.is_visible("#badge") == answer["abstains"]
        assert viewer.page.is_visible("#phantom") == (state == "phantom")
        assert all(caution["text"] in told for caution in answer["cautions"])
        assert viewer.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert viewer.page.evaluate(FAINT_TEXTS) == []
        for loud in [".research"] + ["#phantom"] * (state == "phantom"):
            viewer.page.mouse.wheel(0, 5000)
            place = viewer.page.locator(loud).bounding_box()
            assert place["y"] >= 0 and place["y"] + place["height"] <= size["height"]
        viewer.page.screenshot(path=tmp_path / f"{state}-{name}.png", full_page=size is NARROW)


def test_picture_and_answer_can_be_saved(open_viewer: Callable[..., Viewer], tmp_path: Path) -> None:
    viewer, cells = open_viewer(), np.zeros((6, 5))
    cells[2, 3] = 1.0
    answer = an_answer(cells)
    viewer.answer_with((200, answer))
    viewer.drop(b"any", name="axial 12.png")
    viewer.see(".verdict-label")
    with viewer.page.expect_download() as download:
        viewer.page.keyboard.press("j")
    assert download.value.suggested_filename == "axial 12_gliofed.json"
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved == {key: value for key, value in answer.items() if key != "slice_png"}
    with viewer.page.expect_download() as download:
        viewer.page.click("#save-picture")
    assert download.value.suggested_filename == "axial 12_gliofed_glioma.png"
    picture = cv2.imdecode(np.frombuffer(Path(download.value.path()).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    scale = picture.shape[1] / 120
    assert scale == int(scale) and picture.shape[0] > 150 * scale
    blue, green, red = picture[int((15 + 50) * scale), int((10 + 70) * scale)].tolist()
    assert red > green > blue
    cv2.imwrite(str(tmp_path / "picture.png"), picture)


@pytest.mark.parametrize("name", ["ember", "lagoon"])
def test_colour_maps_are_even_to_the_eye_and_rise_in_lightness(open_viewer: Callable[..., Viewer], name: str) -> None:
    table = open_viewer().page.evaluate(f"import('/viewer/colormap.js').then((m) => [...m.COLOUR_MAPS.{name}.colours])")
    colours = np.array(table).reshape(256, 3) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    steps = np.linalg.norm(np.diff(ok_lab(linear)[::8], axis=0), axis=1)
    assert steps.max() < 1.25 * steps.min()
    # Vienot 1999, deuteranopia and protanopia: what is left of the colours must still rise
    for rows in ([0.29275, 0.70725, 0], [0.11238, 0.88762, 0]):
        blind = linear.copy()
        blind[:, 0] = blind[:, 1] = linear @ np.array(rows)
        assert (np.diff(ok_lab(np.clip(blind, 0, 1))[::8, 0]) > 0).all()
    assert (np.diff(ok_lab(linear)[::4, 0]) > 0).all()


def ok_lab(linear: np.ndarray) -> np.ndarray:
    """OKLab (Ottosson 2020) of linear sRGB, by way of XYZ."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    to_lms = np.array(
        [
            [0.8189330101, 0.3618667424, -0.1288597137],
            [0.0329845436, 0.9293118715, 0.0361456387],
            [0.0482003018, 0.2643662691, 0.633851707],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.793617785, -0.0040720468],
            [1.9779984951, -2.428592205, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.808675766],
        ]
    )
    return np.cbrt(linear @ to_xyz.T @ to_lms.T) @ to_lab.T
