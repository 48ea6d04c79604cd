"""No class of phantom can be told by anything but its lesion."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fl.data.phantoms import NOMINAL_SCANNER, Atlas, Phantom, PhantomSettings, load_atlas, make_phantom
from fl.data.phantoms.folder import plan_tasks
from fl.data.phantoms.scene import draw_scene
from fl.types import CLASSES

NOTUMOR = CLASSES.index("notumor")
SMALL = PhantomSettings(size_pixels=64)
NUM_CLASSIFIED = 480

Pairs = tuple[NDArray[np.int64], list[Phantom], list[Phantom]]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return load_atlas(tmp_path_factory.mktemp("atlas"))


@pytest.fixture(scope="module")
def pairs(atlas: Atlas) -> Pairs:
    """Labels in turn, a slice of each label, and the lesion-free twin of each slice."""
    labels_N = np.arange(NUM_CLASSIFIED) % len(CLASSES)

    def make(label: int, index: int) -> Phantom:
        return make_phantom(atlas, label=label, index=index, settings=SMALL, scanner=NOMINAL_SCANNER)

    slices = [make(int(label), index) for index, label in enumerate(labels_N)]
    return labels_N, slices, [p if p.label == NOTUMOR else make(NOTUMOR, p.index) for p in slices]


@settings(deadline=None, max_examples=25)
@given(index=st.integers(0, 3_000_000), seed=st.integers(0, 2**63 - 1), difficulty=st.floats(0, 1))
def test_twins_share_their_scene_and_differ_only_within_the_lesions_reach(
    atlas: Atlas, index: int, seed: int, difficulty: float
) -> None:
    chosen = SMALL.model_copy(update={"seed": seed, "difficulty": difficulty})
    twins = [
        make_phantom(atlas, label=label, index=index, settings=chosen, scanner=NOMINAL_SCANNER)
        for label in range(len(CLASSES))
    ]
    healthy_HW = twins[NOTUMOR].image_HW
    for twin in twins:
        assert twin.scene == twins[NOTUMOR].scene
        assert np.array_equal(twin.image_HW[~twin.reach_HW], healthy_HW[~twin.reach_HW])
        assert twin.mask_HW.any() == (twin.label != NOTUMOR)


def test_scenes_are_distributed_alike_in_all_classes() -> None:
    """Every scalar of the scenes of a planned folder, tested against the class; Bonferroni over all."""
    tasks = plan_tasks(PhantomSettings(num_train=4000, num_test=0))
    labels_N = np.array([task.label for task in tasks])
    columns = _columns([asdict(draw_scene(SMALL, task.index)) for task in tasks])
    p_values = {name: _p_value(values_N, labels_N) for name, values_N in columns.items()}
    assert len(p_values) > 20
    assert min(p_values.values()) > 0.01 / len(p_values), p_values


def test_what_surrounds_the_lesion_does_not_give_the_class_away(pairs: Pairs) -> None:
    """A linear classifier on lesion-free twins stays at chance; on the slices themselves it does not."""
    labels_N, slices, twins = pairs
    chance = 1 / len(CLASSES)
    four_sigma = 4 * np.sqrt(chance * (1 - chance) / NUM_CLASSIFIED)
    of_twins, of_slices = (
        _cross_validated_accuracy(np.stack([_features(phantom) for phantom in phantoms]), labels_N)
        for phantoms in (twins, slices)
    )
    assert abs(of_twins - chance) < four_sigma
    assert of_slices > chance + four_sigma


def test_file_sizes_hardly_tell_the_class(pairs: Pairs) -> None:
    """A lesion has edges, which cost bytes; the best guess from the size alone stays near chance."""
    labels_N, slices, _ = pairs
    ranks_N = np.argsort(np.argsort([_jpeg_bytes(phantom) for phantom in slices]))
    one_hot_of_size = np.eye(12)[ranks_N * 12 // NUM_CLASSIFIED]
    assert _cross_validated_accuracy(one_hot_of_size, labels_N) < 0.35


def _jpeg_bytes(phantom: Phantom) -> int:
    _, encoded = cv2.imencode(".jpg", phantom.image_HW, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return len(encoded)


def _features(phantom: Phantom) -> NDArray[np.float64]:
    """The slice at 12 × 12 pixels, and its deviation."""
    reduced_HW = cv2.resize(phantom.image_HW, (12, 12), interpolation=cv2.INTER_AREA)
    return np.append(reduced_HW.ravel() / 255.0, phantom.image_HW.std() / 255)


def _cross_validated_accuracy(features_NF: NDArray[np.float64], labels_N: NDArray[np.int64]) -> float:
    """Ridge regression on one-hot labels, four folds of whole blocks of indices."""
    fold_N = np.arange(len(labels_N)) * 4 // len(labels_N)
    inputs_NF = np.column_stack([features_NF - features_NF.mean(axis=0), np.ones(len(labels_N))])
    targets_NK = np.eye(len(CLASSES))[labels_N]
    num_correct = 0
    for fold in range(4):
        train = fold_N != fold
        gram = inputs_NF[train].T @ inputs_NF[train] + 0.3 * np.eye(inputs_NF.shape[1])
        weights_FK = np.linalg.solve(gram, inputs_NF[train].T @ targets_NK[train])
        num_correct += int((np.argmax(inputs_NF[~train] @ weights_FK, axis=1) == labels_N[~train]).sum())
    return num_correct / len(labels_N)


def _columns(scenes: list[dict[str, object]]) -> dict[str, NDArray[np.object_]]:
    """Scalars of all scenes by name; tuples become one column an element."""
    columns: dict[str, list[object]] = {}
    for scene in scenes:
        for name, value in scene.items():
            for position, element in enumerate(value if isinstance(value, tuple) else (value,)):
                columns.setdefault(f"{name}_{position}", []).append(element)
    return {name: np.array(values, dtype=object) for name, values in columns.items()}


def _p_value(values_N: NDArray[np.object_], labels_N: NDArray[np.int64]) -> float:
    """Chi-squared for names, flags and counts; Kruskal-Wallis for numbers."""
    if isinstance(values_N[0], float):
        groups = [values_N[labels_N == label].astype(float) for label in range(len(CLASSES))]
        return float(stats.kruskal(*groups).pvalue)
    kinds = sorted(set(values_N))
    table = np.array(
        [[int(((values_N == kind) & (labels_N == label)).sum()) for kind in kinds] for label in range(len(CLASSES))]
    )
    return float(stats.chi2_contingency(table[:, table.sum(axis=0) >= 20]).pvalue)
