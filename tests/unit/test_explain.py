"""An exported model's maps are measured on phantoms, through the same door as any image."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.bundle import load_bundle
from export.predictor import Predictor
from export.signing import Trust
from fl.evaluation.explanations import ExplanationQuality
from service.explain import explain_lesions
from service.probes import LESIONS
from service.spec import JobSpec, load_spec


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("job")
    path = folder / "job.yaml"
    path.write_text(
        f"name: probe\nscenario: iid\ndata:\n  source: phantom\n  cache_dir: {folder / 'cache'}\n"
        "  phantom:\n    size_pixels: 64\n"
    )
    return load_spec(path)


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path, trust: Trust) -> Predictor:
    return Predictor(load_bundle(tiny_bundle, trust))


@pytest.fixture(scope="module")
def found(predictor: Predictor, spec: JobSpec) -> ExplanationQuality:
    return explain_lesions(predictor, spec)


def test_every_class_with_a_lesion_is_probed_and_every_figure_is_a_share(found: ExplanationQuality) -> None:
    assert found.num_scans == 12 * len(LESIONS) and 1 <= found.num_curves <= found.num_scans
    assert found.num_predicted <= found.num_scans
    for figures in (found.class_maps, found.random, found.centre):
        assert all(0 <= getattr(figures, name) <= 1 for name in ("energy", "pointing", "deletion", "insertion"))
    low, high = found.energy_interval
    assert low <= found.class_maps.energy <= high


def test_a_map_moved_at_random_puts_as_much_weight_on_the_lesion_as_the_lesion_is_large(
    found: ExplanationQuality,
) -> None:
    assert 0.005 < found.lesion_share < 0.2
    assert found.random.energy == pytest.approx(found.lesion_share, rel=0.3)


def test_the_same_model_and_job_give_the_same_figures(
    predictor: Predictor, spec: JobSpec, found: ExplanationQuality
) -> None:
    assert explain_lesions(predictor, spec) == found
