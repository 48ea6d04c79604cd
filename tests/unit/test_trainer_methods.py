"""Rounds of a trainer under each method: what it sends, what a site remembers, and that repeating changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl.data.admission import AdmissionSettings, admit
from fl.data.layout import LabelledFile
from fl.errors import GliofedError, SiteStateError
from fl.model.flat import gather
from fl.model.speed import SpeedSettings
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from fl.server.aggregate import decode_reply
from fl.server.scaffold import Scaffold
from fl.training.augment import AugmentSettings
from fl.training.corrections import CONTROL, CONTROL_DELTA
from fl.training.encoding import RESIDUAL, EncodedDelta, Encoding
from fl.training.exchange import Reply, RoundTask
from fl.training.local import LocalSettings
from fl.training.personal import PersonalSettings
from fl.training.site_state import SiteStates
from fl.training.trainer import SiteTrainer, TrainerSetup, model_state
from fl.types import Scan, Site
from kernels.spec import PreprocessSpec

NETWORK = NetworkSettings(width=0.125, frozen_through="block5_conv3")
SGD = LocalSettings(optimizer="sgd", learning_rate=0.05, steps=3, batch_size=4)


def start_model() -> SplitVgg19:
    model = SplitVgg19(NETWORK)
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    return model


START: NDArray[np.float32] = gather(start_model().trained_parameters())


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scan, ...]:
    folder, random, files = tmp_path_factory.mktemp("scans"), np.random.default_rng(3), []
    for index in range(20):
        gray_HW = random.integers(0, 30, (96, 96)).astype(np.uint8)
        cv2.circle(gray_HW, (48, 48), 44, 90, -1)
        cv2.circle(gray_HW, (30 + 10 * (index % 4), 48), 12, 250, -1)
        path = folder / f"{index}.png"
        assert cv2.imwrite(str(path), gray_HW)
        files.append(LabelledFile(path=path, label=index % 4))
    return tuple(scan for scan in admit(files, AdmissionSettings()) if isinstance(scan, Scan))


@pytest.fixture
def sites(scans: tuple[Scan, ...]) -> tuple[Site, Site]:
    return Site(name="a", scans=scans[:8]), Site(name="b", scans=scans[8:14])


@pytest.fixture
def setup(tmp_path: Path) -> TrainerSetup:
    return TrainerSetup(
        network=NETWORK,
        speed=SpeedSettings(precision="float32", compile="off"),
        preprocess=PreprocessSpec(size=64),
        augment=AugmentSettings(views=2),
        local=SGD,
        store_root=tmp_path / "store",
        crop_backend="auto",
        seed=7,
        num_threads=1,
        state=model_state(start_model()),
        state_root=tmp_path / "sites",
    )


def same(one: Reply, other: Reply) -> bool:
    return arrays_of(one) == arrays_of(other)


def parameters_of(reply: Reply) -> NDArray[np.float32]:
    assert isinstance(reply.update, np.ndarray)
    return reply.update


def arrays_of(reply: Reply) -> list[bytes]:
    update = reply.update
    own = [update.values, update.scales] if isinstance(update, EncodedDelta) else [update]
    return [array.tobytes() for array in (*own, *reply.extra.values())]


def test_one_step_of_sgd_sends_the_gradient_and_loses_nothing(setup: TrainerSetup, sites: tuple[Site, Site]) -> None:
    """Another rate, a power of two, sends the same gradient: what is sent is parameters - rate x gradient."""
    ways: list[NDArray[np.float64]] = []
    for rate in (1.0, 2.0**-6):
        local = LocalSettings(optimizer="sgd", learning_rate=rate, steps=1, batch_size=32)
        reply = SiteTrainer(replace(setup, local=local)).train(RoundTask(round=3, parameters=START), sites[0], 0)
        assert reply.summary.num_steps == 1
        ways.append((START.astype(np.float64) - parameters_of(reply)) / rate)

    half_a_step = np.abs(np.spacing(START)) * 2.0**6
    assert np.abs(ways[0]).max() > 1e-3 and (np.abs(ways[0] - ways[1]) <= half_a_step + 1e-6 * np.abs(ways[0])).all()


def test_walked_steps_read_the_views_that_were_prepared(setup: TrainerSetup, sites: tuple[Site, Site]) -> None:
    """6 examples at 4 a step are two steps an epoch: rounds of 3 steps change the view in their midst."""
    trainer = SiteTrainer(setup)
    assert trainer.prepare(sites[1].scans, (0, 1)) == 12

    read: list[set[str]] = []
    load = trainer._training_features.features

    def watched(requests: Any) -> Any:
        read.append({request.key for request in requests})
        return load(requests)

    trainer._training_features.features = watched  # type: ignore[method-assign]
    for round in (1, 2):
        trainer.train(RoundTask(round=round, parameters=START), sites[1], 0)
    views = [{trainer._request(scan, view).key for scan in sites[1].scans} for view in (0, 1)]

    assert [[keys <= view for view in views].index(True) for keys in read] == [0, 0, 1, 1, 0, 0]
    assert read[0] | read[1] == views[0] and read[2] | read[3] == views[1]


def test_proximal_term_shortens_the_way(setup: TrainerSetup, sites: tuple[Site, Site]) -> None:
    trainer, configs = SiteTrainer(setup), [{}, {"proximal-mu": 0.0}, {"proximal-mu": 10.0}]
    tasks = [RoundTask(round=1, parameters=START, config=config) for config in configs]
    ways = [parameters_of(trainer.train(task, sites[0], 0)) - START for task in tasks]

    assert ways[0].tobytes() == ways[1].tobytes()
    assert np.linalg.norm(ways[2]) < 0.9 * np.linalg.norm(ways[0])
    with pytest.raises(GliofedError, match=r"proximal-mu is -1\.0"):
        trainer.train(RoundTask(round=1, parameters=START, config={"proximal-mu": -1.0}), sites[0], 0)
    assert not (setup.state_root or Path()).exists(), "nothing is remembered where nothing has to be"


def scaffold_rounds(trainer: SiteTrainer, sites: Sequence[Site], num_rounds: int) -> tuple[Any, list[list[Reply]]]:
    strategy = Scaffold(num_sites=len(sites))
    parameters, state, replies = START, strategy.initial(START), []
    for round in range(1, num_rounds + 1):
        aggregate = strategy.begin(round, sites, parameters, state)
        replies.append([trainer.train(aggregate.task, site, round - 1) for site in sites])
        for site, reply in zip(sites, replies[-1], strict=True):
            aggregate.add(site, decode_reply(reply, aggregate.task), reply)
        learned = aggregate.result()
        parameters, state = learned.parameters, learned.state
    return learned, replies


def test_scaffold_keeps_each_sites_control_and_the_server_their_mean(
    setup: TrainerSetup, sites: tuple[Site, Site]
) -> None:
    assert setup.state_root is not None
    learned, replies = scaffold_rounds(SiteTrainer(setup), sites, 3)

    states = SiteStates(setup.state_root)
    controls = [states.load(site.name, 3, [CONTROL], len(START)).arrays[CONTROL] for site in sites]
    assert np.abs(controls[0] - controls[1]).max() > 1e-3, "sites are told apart"
    np.testing.assert_allclose(learned.state[CONTROL], np.mean(controls, axis=0), rtol=0, atol=1e-6)
    plain = SiteTrainer(setup).train(RoundTask(round=1, parameters=START), sites[0], 0)
    assert arrays_of(plain)[0] == arrays_of(replies[0][0])[0], "the first round has no correction"

    again, repeated = scaffold_rounds(SiteTrainer(setup), sites, 3)
    assert again.parameters.tobytes() == learned.parameters.tobytes()
    for one, other in zip(replies, repeated, strict=True):
        assert all(same(*pair) for pair in zip(one, other, strict=True))


def test_scaffolds_correction_is_added_to_every_gradient(setup: TrainerSetup, sites: tuple[Site, Site]) -> None:
    """One step: the parameters move by the gradient and by c - c_i; the new c_i is the gradient itself."""
    trainer = SiteTrainer(replace(setup, local=LocalSettings(optimizer="sgd", learning_rate=0.5, steps=1)))
    control = np.random.default_rng(1).normal(scale=0.01, size=len(START)).astype(np.float32)
    plain = parameters_of(trainer.train(RoundTask(round=1, parameters=START), sites[0], 0))

    reply = trainer.train(RoundTask(round=1, parameters=START, broadcast={CONTROL: control}), sites[0], 0)

    np.testing.assert_allclose(parameters_of(reply), plain - np.float32(0.5) * control, atol=1e-6)
    gradient = (START - plain) / np.float32(0.5)
    np.testing.assert_allclose(reply.extra[CONTROL_DELTA], gradient, atol=1e-5)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_what_an_encoding_leaves_out_is_sent_in_the_next_round(
    setup: TrainerSetup, sites: tuple[Site, Site], encoding: Encoding
) -> None:
    assert setup.state_root is not None
    trainer, site, states = SiteTrainer(setup), sites[0], SiteStates(setup.state_root)
    exact = parameters_of(trainer.train(RoundTask(round=1, parameters=START), site, 0))
    first = RoundTask(round=1, parameters=START, encoding=encoding)

    decoded = decode_reply(trainer.train(first, site, 0), first)

    residual = states.load(site.name, 1, [RESIDUAL], len(START)).arrays[RESIDUAL]
    assert 0 < np.abs(residual).max() < 0.02 * np.abs(exact - START).max()
    np.testing.assert_allclose(decoded + residual, exact, atol=1e-7)

    second = replace(first, round=2, parameters=decoded)
    counted = decode_reply(trainer.train(second, site, 1), second)
    left = states.load(site.name, 2, [RESIDUAL], len(START)).arrays[RESIDUAL]
    plain = parameters_of(trainer.train(RoundTask(round=2, parameters=decoded), site, 0))
    np.testing.assert_allclose(counted + left, plain + residual, atol=1e-7)
    uncounted = decode_reply(trainer.train(second, site, 0), second)
    assert counted.tobytes() != uncounted.tobytes(), "the residual of a round that was not counted is not sent"


def test_repeated_call_gives_the_same_bytes_and_leaves_the_same_file(
    setup: TrainerSetup, sites: tuple[Site, Site]
) -> None:
    assert setup.state_root is not None
    task = RoundTask(round=1, parameters=START, broadcast={CONTROL: np.zeros_like(START)}, encoding="int8")
    path = SiteStates(setup.state_root).path("a", 1)

    first, first_file = SiteTrainer(setup).train(task, sites[0], 0), path.read_bytes()
    again, again_file = SiteTrainer(setup).train(task, sites[0], 0), path.read_bytes()

    assert same(first, again) and first_file == again_file


def test_task_that_cannot_be_done_as_asked_is_refused_before_training(
    setup: TrainerSetup, sites: tuple[Site, Site]
) -> None:
    control = RoundTask(round=4, parameters=START, broadcast={CONTROL: np.zeros_like(START)})

    with pytest.raises(GliofedError, match=r"fl\.local\.optimizer is `adam`; set it to sgd"):
        SiteTrainer(replace(setup, local=LocalSettings())).train(control, sites[0], 0)
    with pytest.raises(GliofedError, match="sends momentum, which this version does not know"):
        SiteTrainer(setup).train(RoundTask(round=4, parameters=START, broadcast={"momentum": START}), sites[0], 0)
    with pytest.raises(SiteStateError, match=r"site 'a' goes on from its round 2, but .* is missing"):
        SiteTrainer(setup).train(control, sites[0], 2)
    for task in (control, RoundTask(round=4, parameters=START, encoding="int8")):
        with pytest.raises(GliofedError, match="state_root"):
            SiteTrainer(replace(setup, state_root=None)).train(task, sites[0], 0)


def test_diverged_site_is_not_hidden_by_its_encoding(setup: TrainerSetup, sites: tuple[Site, Site]) -> None:
    wild = LocalSettings(optimizer="sgd", learning_rate=1e30, steps=3, batch_size=4)
    task = RoundTask(round=1, parameters=START, encoding="int8")

    reply = SiteTrainer(replace(setup, local=wild)).train(task, sites[0], 0)

    with pytest.raises(GliofedError, match="NaN or infinity"):
        decode_reply(reply, task)


def test_personal_head_is_tuned_on_the_sites_own_scans_and_touches_nothing(
    setup: TrainerSetup, scans: tuple[Scan, ...]
) -> None:
    trainer, settings = SiteTrainer(setup), PersonalSettings(epochs=20, learning_rate=0.02)
    site = Site(name="a", scans=tuple(scan for scan in scans[:12] if scan.label < 2))
    held_out = scans[12:]
    before = trainer.train(RoundTask(round=1, parameters=START), site, 0)

    answers = trainer.personalise(START, site, held_out, settings)

    assert answers.of_global.tobytes() == trainer.evaluate(START, held_out).tobytes()
    assert answers.of_tuned.shape == answers.of_global.shape and answers.of_tuned.dtype == np.float32
    assert set(answers.of_tuned.argmax(axis=1)) <= {0, 1}, "the site has these two classes alone"
    assert same(before, trainer.train(RoundTask(round=1, parameters=START), site, 0)), "a later round was changed"


def test_personal_head_depends_on_site_seed_and_parameters_alone(setup: TrainerSetup, scans: tuple[Scan, ...]) -> None:
    settings, site, busy = PersonalSettings(epochs=2), Site(name="a", scans=scans[:17]), SiteTrainer(setup)
    fresh = SiteTrainer(setup).personalise(START, site, scans[17:], settings).of_tuned.tobytes()
    busy.train(RoundTask(round=1, parameters=START), site, 0)
    torch.rand(3)

    assert busy.personalise(START, site, scans[17:], settings).of_tuned.tobytes() == fresh
    for other in (replace(site, name="b"), replace(site, scans=scans[:16])):
        assert busy.personalise(START, other, scans[17:], settings).of_tuned.tobytes() != fresh
    assert busy.personalise(START * np.float32(1.1), site, scans[17:], settings).of_tuned.tobytes() != fresh
    assert busy.personalise(START, site, (), settings).of_tuned.shape == (0, 4)
