"""The head in closed form: ridge regression's own answer, made into logits, from sums that cannot be off by a bit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from fl.errors import StatisticsError
from fl.evaluation.metrics import evaluate
from fl.model.flat import gather, scatter
from fl.model.speed import SpeedSettings, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from fl.server.analytic import AnalyticHead, AnalyticSettings, candidates, choose_head, scale_to, with_head
from fl.training.statistics import (
    MAX_EXAMPLES,
    SiteStatistics,
    candidate_logits,
    head_features,
    network_statistics,
    site_statistics,
)

CLASSES = ("a", "b", "c")
LARGEST = 8.0
EXECUTION = resolve_execution(SpeedSettings(precision="float32", compile="off"))


def make_examples(
    num: int = 300, num_features: int = 12, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three overlapping clouds of non-negative features."""
    random = np.random.default_rng(seed)
    centres_KJ = np.random.default_rng(9).uniform(0.5, 2.5, (len(CLASSES), num_features))
    labels_N = random.integers(0, len(CLASSES), num)
    return np.abs(random.normal(centres_KJ[labels_N], 0.9)).astype(np.float32), labels_N


def sums(features_NJ: NDArray[np.float32], labels_N: NDArray[np.int64]) -> SiteStatistics:
    return site_statistics(
        [(features_NJ, labels_N)], num_features=features_NJ.shape[1], num_classes=3, largest_feature=LARGEST
    )


def ridge_by_hand(features_NJ: NDArray[np.float64], labels_N: NDArray[np.int64], ridge: float) -> NDArray[np.float64]:
    """Return [K, J + 1] by least squares on a system stretched with the penalty's rows; no Gram matrix."""
    centred_NJ = features_NJ - features_NJ.mean(0)
    target_NK = np.eye(3)[labels_N] - np.eye(3)[labels_N].mean(0)
    penalty = np.sqrt(ridge * np.square(centred_NJ).sum() / centred_NJ.shape[1])
    stretched = np.concatenate([centred_NJ, penalty * np.eye(centred_NJ.shape[1])])
    zeros = np.zeros((centred_NJ.shape[1], 3))
    weight_JK = np.linalg.lstsq(stretched, np.concatenate([target_NK, zeros]), rcond=None)[0]
    bias_K = np.eye(3)[labels_N].mean(0) - features_NJ.mean(0) @ weight_JK
    return np.concatenate([weight_JK, bias_K[None]]).T


@pytest.mark.parametrize("ridge", [1.0, 1e-2, 1e-5])
def test_head_is_the_ridge_solution_of_the_features_as_they_were_read(ridge: float) -> None:
    features_NJ, labels_N = make_examples()
    statistics = sums(features_NJ, labels_N)
    read_NJ = np.rint(features_NJ.astype(np.float64) / statistics.unit) * statistics.unit

    (head,) = candidates(statistics, [ridge])

    found = np.concatenate([head.weight_KJ, head.bias_K[:, None]], axis=1)
    np.testing.assert_allclose(found, ridge_by_hand(read_NJ, labels_N, ridge), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found, ridge_by_hand(features_NJ.astype(np.float64), labels_N, ridge), atol=1e-5)
    assert head.ridge == ridge


def test_one_class_a_site_gives_the_central_head_and_it_tells_classes_apart() -> None:
    features_NJ, labels_N = make_examples()
    by_class = [sums(features_NJ[labels_N == k], labels_N[labels_N == k]) for k in (2, 0, 1)]
    test_NJ, test_N = make_examples(seed=1)

    together = by_class[0] + by_class[1] + by_class[2]
    (head,), (central,) = candidates(together, [0.01]), candidates(sums(features_NJ, labels_N), [0.01])

    assert head.weight_KJ.tobytes() == central.weight_KJ.tobytes()
    assert head.bias_K.tobytes() == central.bias_K.tobytes()
    assert ((test_NJ @ head.weight_KJ.T + head.bias_K).argmax(1) == test_N).mean() > 0.85


def test_more_rows_than_float64_sums_exactly_are_summed_exactly() -> None:
    features_NJ = np.tile(np.array([[LARGEST, LARGEST / 3]], np.float32), (20_000, 1))
    labels_N = np.zeros(len(features_NJ), np.int64)

    statistics = sums(features_NJ, labels_N)

    third = round(float(features_NJ[0, 1]) / LARGEST * 2**20)
    assert statistics.gram.tolist() == [20_000 * 2**40, 20_000 * 2**20 * third, 20_000 * third**2]
    assert statistics.num_examples == 20_000


def test_scale_makes_logits_of_scores_without_changing_an_answer() -> None:
    features_NJ, labels_N = make_examples()
    (head,) = candidates(sums(features_NJ, labels_N), [0.01])
    validation_NJ, validation_N = make_examples(seed=1)
    scores_NK = validation_NJ @ head.weight_KJ.T + head.bias_K

    scaled = scale_to(head, scores_NK, validation_N)

    logits_NK = validation_NJ @ scaled.weight_KJ.T + scaled.bias_K
    before, after = (evaluate(validation_N, logits, CLASSES) for logits in (scores_NK, logits_NK))
    assert (logits_NK.argmax(1) == scores_NK.argmax(1)).all()
    assert before.loss is not None and after.loss is not None and before.calibration_error is not None
    assert after.loss == pytest.approx(scaled.validation_loss, rel=1e-5) and after.loss < before.loss / 1.5
    assert after.calibration_error is not None and after.calibration_error < before.calibration_error / 3
    for factor in (0.9, 1.1):
        worse = evaluate(validation_N, logits_NK * np.float32(factor), CLASSES)
        assert worse.loss is not None and worse.loss > after.loss


def test_scores_without_an_error_are_scaled_to_the_limit_and_no_further() -> None:
    head = AnalyticHead(weight_KJ=np.eye(3, dtype=np.float32), bias_K=np.zeros(3, np.float32), ridge=1.0)

    scaled = scale_to(head, np.eye(3, dtype=np.float32), np.arange(3))

    assert 90 < scaled.scale <= 100 and np.isfinite(scaled.validation_loss)


def test_chosen_ridge_is_the_one_that_predicts_scans_not_seen_best() -> None:
    features_NJ, labels_N = make_examples(num=30, num_features=25)
    validation_NJ, validation_N = make_examples(num=400, num_features=25, seed=1)
    tried = list(candidates(sums(features_NJ, labels_N), [1e-8, 0.1, 1e4]))
    logits_MNK = np.stack([validation_NJ @ head.weight_KJ.T + head.bias_K for head in tried])

    chosen = choose_head(tried, logits_MNK, validation_N)

    losses = [
        scale_to(head, logits, validation_N).validation_loss for head, logits in zip(tried, logits_MNK, strict=True)
    ]
    assert chosen.ridge == 0.1 and chosen.validation_loss == min(losses)
    assert max(losses) > min(losses) * 1.05


def test_stronger_ridges_give_smaller_weights_and_penalise_no_bias() -> None:
    features_NJ, labels_N = make_examples()

    heads = list(candidates(sums(features_NJ, labels_N), [1e-3, 1e-1, 10, 1e9]))

    norms = [np.linalg.norm(head.weight_KJ) for head in heads]
    assert all(weaker > stronger for weaker, stronger in pairwise(norms))
    np.testing.assert_allclose(heads[-1].bias_K, np.bincount(labels_N) / len(labels_N), atol=1e-5)


def test_sums_of_nothing_or_of_one_class_give_no_head() -> None:
    features_NJ, labels_N = make_examples()
    only = labels_N == 1
    for statistics in (sums(features_NJ[:0], labels_N[:0]), sums(features_NJ[only], labels_N[only])):
        with pytest.raises(StatisticsError, match="examples of two classes at least"):
            list(candidates(statistics, [0.1]))


def test_features_that_do_not_differ_give_no_head() -> None:
    with pytest.raises(StatisticsError, match="try larger ones"):
        list(candidates(sums(np.ones((6, 4), np.float32), np.arange(6) % 3), [0.1]))


@pytest.mark.parametrize("value", [-0.01, LARGEST * 1.01, np.nan, np.inf])
def test_feature_out_of_its_bounds_is_refused(value: float) -> None:
    features_NJ, labels_N = make_examples(num=5)
    features_NJ[3, 2] = value
    with pytest.raises(StatisticsError, match=r"expected 0\.\.8"):
        sums(features_NJ, labels_N)


def test_sums_of_another_model_or_beyond_what_is_exact_are_refused() -> None:
    features_NJ, labels_N = make_examples(num=5)
    statistics = sums(features_NJ, labels_N)
    with pytest.raises(StatisticsError, match="all sites must have the same model"):
        statistics + sums(features_NJ[:, :4], labels_N)
    with pytest.raises(StatisticsError, match=r"is uint64\[117\], got uint64\[116\]"):
        SiteStatistics.from_vector(statistics.as_vector()[1:], num_features=12, num_classes=3, unit=statistics.unit)
    with pytest.raises(StatisticsError, match=r"expected int64\[78\] from 0"):
        SiteStatistics(
            gram=-statistics.gram,
            class_sums_JK=statistics.class_sums_JK,
            counts_K=statistics.counts_K,
            unit=statistics.unit,
        )
    for gram, class_sums_JK in ((statistics.gram, statistics.class_sums_JK + 2**25), (statistics.gram + 2**45, None)):
        with pytest.raises(StatisticsError, match="larger than 5 examples"):
            SiteStatistics(
                gram=gram,
                class_sums_JK=statistics.class_sums_JK if class_sums_JK is None else class_sums_JK,
                counts_K=statistics.counts_K,
                unit=statistics.unit,
            )
    with pytest.raises(StatisticsError, match="stay exact"):
        SiteStatistics(
            gram=statistics.gram,
            class_sums_JK=statistics.class_sums_JK,
            counts_K=np.array([MAX_EXAMPLES, 0, 1]),
            unit=statistics.unit,
        )


def test_head_replaces_the_end_of_the_flat_parameters() -> None:
    model = SplitVgg19(NetworkSettings(width=0.125, head="wide", random_features=16))
    before = gather(model.trained_parameters())
    random = np.random.default_rng(1)
    head = AnalyticHead(
        weight_KJ=random.random(model.head.weight.shape, np.float32), bias_K=random.random(4, np.float32), ridge=0.1
    )

    scatter(with_head(before, head), model.trained_parameters())

    assert np.array_equal(model.head.weight.detach(), head.weight_KJ)
    assert np.array_equal(model.head.bias.detach(), head.bias_K)
    assert np.array_equal(gather(list(model.trained_parameters())[:-2]), before[: -head.weight_KJ.size - 4])
    with pytest.raises(ValueError, match=r"cannot hold a head"):
        with_head(before[:10], head)


def make_network(head: str = "wide") -> SplitVgg19:
    model = SplitVgg19(NetworkSettings(width=0.125, head=head, random_features=24 if head == "wide" else 0))  # type: ignore[arg-type]
    initialise_from_nothing(model, torch.Generator().manual_seed(3))
    return model.train()  # dropout on: statistics must turn it off


def make_maps(model: SplitVgg19, num: int = 37) -> Tensor:
    images_NCHW = torch.rand(num, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.prefix(images_NCHW)


def statistics_of(model: SplitVgg19, maps: Tensor, labels: Sequence[int], chosen: Sequence[int]) -> SiteStatistics:
    picked = np.array(chosen, np.int64)
    return network_statistics(model, lambda at, _: maps[picked[at]], [labels[i] for i in chosen], execution=EXECUTION)


def test_network_gives_the_same_sums_whoever_holds_which_images() -> None:
    model = make_network()
    maps, labels = make_maps(model), [i % 4 for i in range(37)]
    order = np.random.default_rng(2).permutation(37).tolist()

    whole = statistics_of(model, maps, labels, range(37))
    parts = [statistics_of(model, maps, labels, part) for part in (order[20:], order[:3], [], order[3:20])]

    together = parts[0] + parts[1] + parts[2] + parts[3]
    assert together.as_vector().tobytes() == whole.as_vector().tobytes()
    assert whole.counts_K.tolist() == [10, 9, 9, 9]


def test_logits_of_candidates_are_those_of_the_model_with_each_head() -> None:
    model = make_network()
    maps = make_maps(model)
    statistics = statistics_of(model, maps, [i % 4 for i in range(37)], range(37))
    heads = list(candidates(statistics, [1.0, 0.01]))
    flat = gather(model.trained_parameters())

    logits_MNK = candidate_logits(
        model, lambda at, _: maps[at], 37, [(head.weight_KJ, head.bias_K) for head in heads], execution=EXECUTION
    )

    assert logits_MNK.shape == (2, 37, 4)
    for head, logits_NK in zip(heads, logits_MNK, strict=True):
        scatter(with_head(flat, head), model.trained_parameters())
        with torch.no_grad():
            np.testing.assert_allclose(logits_NK, model.eval().classify(maps).numpy(), atol=2e-5)
    nothing = candidate_logits(
        model, lambda at, _: maps[at], 0, [(heads[0].weight_KJ, heads[0].bias_K)], execution=EXECUTION
    )
    assert nothing.shape == (1, 0, 4)


def test_features_come_without_dropout_and_batch_by_batch() -> None:
    model = make_network()
    maps = make_maps(model)

    batches = list(head_features(model, lambda at, _: maps[at], 37, execution=EXECUTION))

    assert [len(batch) for batch in batches] == [16, 16, 5]
    with torch.no_grad():
        expected = model.eval().head_features(maps).numpy()
    np.testing.assert_allclose(np.concatenate(batches), expected, rtol=1e-4, atol=1e-5)


def test_average_head_is_refused() -> None:
    model = make_network("average")
    with pytest.raises(StatisticsError, match=r"set model\.network\.head: wide"):
        statistics_of(model, make_maps(model, 4), [0, 1, 2, 3], range(4))


def test_settings_need_a_ridge_to_try() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        AnalyticSettings(ridges=())
    with pytest.raises(ValidationError, match="greater than 0"):
        AnalyticSettings(ridges=(0.1, 0.0))
