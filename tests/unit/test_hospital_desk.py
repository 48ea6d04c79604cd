"""What leaves a hospital: every message that a site can be asked is asked, and every answer is taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fl.data.admission import AdmissionSettings
from fl.data.layout import plain_files
from fl.errors import DataError, GliofedError, ProtocolError
from fl.hospital.desk import SiteDesk
from fl.hospital.folders import SiteSettings
from fl.hospital.setup import RUN_KEY, SETUP_KEY, SiteSetup, pack_setup, setup_digest
from fl.model.speed import SpeedSettings
from fl.model.vgg import NetworkSettings, SplitVgg19
from fl.runtime.client import ANSWERS, VIEWS
from fl.runtime.flower_app import SETUP, answering, client_app
from fl.runtime.flower_internals import ensure_identity
from fl.runtime.messages import CONFIG, DESCRIBE, EVALUATE, PREPARE, TRAIN, pack_parameters, pack_tasks
from fl.runtime.secure import STATISTICS
from fl.training.augment import AugmentSettings
from fl.training.exchange import RoundTask
from fl.training.local import LocalSettings
from fl.training.trainer import ModelState, model_state
from fl.types import CLASSES
from kernels.spec import PreprocessSpec

SCANS_PER_CLASS = 5
NORTH = SiteSettings(name="north", coordinator="127.0.0.1:9443")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital's folder; its files' names and pixels are such that they would be known again anywhere."""
    folder, generator = tmp_path_factory.mktemp("patient-smith"), np.random.default_rng(4)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(SCANS_PER_CLASS):
            image = np.zeros((80, 80), np.uint8)
            image[10:70, 10:70] = generator.integers(60, 255, (60, 60))
            cv2.imwrite(str(folder / name / f"smith-{number}.png"), image)
    return folder


@pytest.fixture(scope="module")
def job() -> tuple[SiteSetup, ModelState]:
    network = NetworkSettings(width=0.125, head="wide")
    setup = SiteSetup(
        network=network,
        speed=SpeedSettings(precision="float32"),
        preprocess=PreprocessSpec(size=64).to_json(),
        crop_backend="native",
        augment=AugmentSettings(views=1),
        local=LocalSettings(epochs=1, batch_size=8),
        admission=AdmissionSettings(),
        validation_fraction=0.2,
        seed=3,
    )
    return setup, model_state(SplitVgg19(network))


class Site:
    """A site's app as a SuperNode would use it."""

    def __init__(self, scans: Path, state: Path, digest: str, settings: SiteSettings | None = None) -> None:
        self.said: list[str] = []
        self._app = client_app(SiteDesk(settings or NORTH, scans, state, self.said.append))
        config = {SETUP_KEY: digest, RUN_KEY: "0" * 32}
        self._context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=config)

    def ask(self, kind: str, content: RecordDict) -> RecordDict:
        ensure_identity()
        return self._app(Message(content, dst_node_id=7, message_type=kind), self._context).content


@pytest.fixture(scope="module")
def site(scans: Path, job: tuple[SiteSetup, ModelState], tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(scans, tmp_path_factory.mktemp("state"), setup_digest(*job))
    made.ask(SETUP, pack_setup(*job))
    return made


@pytest.fixture(scope="module")
def answers(site: Site, job: tuple[SiteSetup, ModelState]) -> dict[str, RecordDict]:
    """Answers to every kind of message outside of secure rounds, which have tests of their own."""
    (task,) = pack_tasks(RoundTask(round=1, parameters=flat(job)), [0])
    asked = {
        SETUP: pack_setup(*job),
        DESCRIBE: RecordDict(),
        PREPARE: RecordDict({CONFIG: ConfigRecord({VIEWS: [0]})}),
        TRAIN: task,
        EVALUATE: pack_parameters(flat(job)),
        STATISTICS: pack_parameters(flat(job)),
    }
    assert {kind for kind in ANSWERS if "secure" not in kind} <= set(asked), "a new kind of message: inspect it here"
    return {kind: site.ask(kind, content) for kind, content in asked.items()}


def test_arrays_are_the_flat_parameters_or_sums_whose_size_is_the_models(
    answers: dict[str, RecordDict], job: tuple[SiteSetup, ModelState]
) -> None:
    num_features = SplitVgg19(job[0].network).head.in_features
    num_sums = num_features * (num_features + 1) // 2 + num_features * len(CLASSES) + len(CLASSES)
    allowed = {TRAIN: {"arrays/parameters": flat(job).shape}, STATISTICS: {"arrays/sums": (num_sums,)}}
    for kind, content in answers.items():
        records = content.array_records.items()
        sent = {f"{record}/{name}": array.shape for record, found in records for name, array in found.items()}
        assert sent == allowed.get(kind, {}), f"{kind} returns other arrays"


def test_no_answer_holds_a_name_a_path_a_pixel_or_a_figure_of_one_scan(
    answers: dict[str, RecordDict], scans: Path
) -> None:
    pixels = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[40, 10:26] for path in sorted(scans.rglob("*.png"))]
    for kind, content in answers.items():
        for where, value in leaves(content):
            raw = value.numpy().tobytes() if isinstance(value, Array) else str(value).encode()
            assert b"smith" not in raw, f"{kind}: {where} names a file or folder"
            for row in pixels:
                for dtype in (np.uint8, np.float32, np.int64):
                    assert row.astype(dtype).tobytes() not in raw, f"{kind}: {where} holds pixels"
            if isinstance(value, list):
                assert len(value) <= len(CLASSES) ** 2, f"{kind}: {where} has a figure for every scan?"


def test_what_is_said_of_the_scans_is_counts(answers: dict[str, RecordDict]) -> None:
    described = answers[SETUP].config_records["site"]
    assert described["class-counts"] == [4, 4, 4, 4]
    assert described["num-validation"] == 4
    metrics = answers[EVALUATE].metric_records["metrics"]
    assert np.reshape(metrics["confusion"], (4, 4)).sum(1).tolist() == [1, 1, 1, 1]


def test_a_site_that_was_started_again_answers_without_being_set_up_again(
    scans: Path, job: tuple[SiteSetup, ModelState], tmp_path: Path
) -> None:
    first = Site(scans, tmp_path, setup_digest(*job))
    first.ask(SETUP, pack_setup(*job))
    again = Site(scans, tmp_path, setup_digest(*job))
    (task,) = pack_tasks(RoundTask(round=2, parameters=flat(job)), [1])
    replies = [one.ask(TRAIN, task).array_records["arrays"]["parameters"].numpy() for one in (first, again)]
    assert replies[0].tobytes() == replies[1].tobytes()
    stranger = Site(scans, tmp_path / "new", setup_digest(*job))
    with pytest.raises(GliofedError, match="has no setup"):
        stranger.ask(TRAIN, task)


def test_a_setup_that_is_not_the_one_announced_is_refused(
    scans: Path, job: tuple[SiteSetup, ModelState], tmp_path: Path
) -> None:
    setup, state = job
    content = pack_setup(setup.model_copy(update={"seed": 4}), state)
    with pytest.raises(ProtocolError, match="does not match its digest"):
        Site(scans, tmp_path, setup_digest(*job)).ask(SETUP, content)
    with pytest.raises(ProtocolError, match="expected hex digits"):
        Site(scans, tmp_path, "../../elsewhere").ask(SETUP, pack_setup(*job))
    broken = RecordDict({"settings": ConfigRecord({"json": "{}"}), "state": ArrayRecord()})
    with pytest.raises(ProtocolError, match="cannot be read"):
        Site(scans, tmp_path, setup_digest(*job)).ask(SETUP, broken)


def test_a_site_whose_scans_are_gone_says_where_to_its_own_people_only(
    job: tuple[SiteSetup, ModelState], tmp_path: Path
) -> None:
    site = Site(tmp_path / "patient-jones", tmp_path / "state", setup_digest(*job))
    with pytest.raises(ProtocolError) as caught:
        site.ask(SETUP, pack_setup(*job))
    assert "jones" not in str(caught.value)
    assert any("jones" in line for line in site.said)
    with pytest.raises(DataError, match="jones"):
        plain_files(tmp_path / "patient-jones")


def test_a_site_may_insist_on_masks(scans: Path, job: tuple[SiteSetup, ModelState], tmp_path: Path) -> None:
    masked = Site(scans, tmp_path, setup_digest(*job), NORTH.model_copy(update={"masked_only": True}))
    masked.ask(SETUP, pack_setup(*job))
    masked.ask(EVALUATE, pack_parameters(flat(job)))
    (task,) = pack_tasks(RoundTask(round=1, parameters=flat(job)), [0])
    for kind, content in ((TRAIN, task), (STATISTICS, pack_parameters(flat(job)))):
        with pytest.raises(ProtocolError, match="masked sums only"):
            masked.ask(kind, content)


def test_a_failure_is_told_without_this_hospitals_folders(
    scans: Path, job: tuple[SiteSetup, ModelState], tmp_path: Path
) -> None:
    ensure_identity()
    said: list[str] = []
    answer = answering(SiteDesk(NORTH, scans, tmp_path, said.append), said.append)
    config = {SETUP_KEY: setup_digest(*job), RUN_KEY: "0" * 32}
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=config)
    answer(Message(pack_setup(*job), dst_node_id=7, message_type=SETUP), context)
    memories = tmp_path / "runs" / ("0" * 32)
    memories.rmdir()
    memories.write_text("a file where a folder should be")
    (task,) = pack_tasks(RoundTask(round=3, parameters=flat(job), encoding="int8"), [2])
    reply = answer(Message(task, dst_node_id=7, message_type=TRAIN), context)
    assert reply.has_error()
    assert str(tmp_path) not in reply.error.reason and "round 2" in reply.error.reason
    assert any(str(tmp_path) in line for line in said)


def flat(job: tuple[SiteSetup, ModelState]) -> np.ndarray[Any, np.dtype[np.float32]]:
    from fl.model.flat import gather
    from fl.training.trainer import load_model_state

    model = SplitVgg19(job[0].network)
    load_model_state(model, job[1])
    return gather(model.trained_parameters())


def leaves(content: RecordDict) -> Iterator[tuple[str, Any]]:
    for name, record in content.items():
        for key, value in record.items():
            yield f"{name}/{key}", value
