"""What a release measured of its model, as the report reads it: how sure it is, where it looks, what int8 costs.

The pieces are those of the bundle's metrics.json, each absent where it was not measured. `rules` are the numbers that
the bundle's answers go by, of its confidence.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field

from service.report_base import NAN, Number, Read


class Bin(Read):
    """Scans whose answers were given at about the same probability."""

    confidence: Number
    accuracy: Number
    count: int = 0


class Reliability(Read):
    """Probabilities beside what came true. Decisions (from set_coverage on) are NaN where none were taken."""

    num_scans: int = 0
    loss: Number = NAN
    brier: Number = NAN
    calibration_error: Number = NAN
    bins: tuple[Bin, ...] = ()
    set_coverage: Number = NAN
    set_mean_size: Number = NAN
    set_of_one: Number = NAN
    answered: Number = NAN
    error_of_answered: Number = NAN
    error_of_all: Number = NAN
    called_strange: Number = NAN


class StrangeKind(Read):
    """One kind of images that the model should not answer."""

    num_images: int = 0
    flagged: Number = NAN
    auroc: Number = NAN


class ValidationQuality(Read):
    """`Confidence.quality`. cross_fitted: each scan judged by rules that were fitted on other scans."""

    as_scored: Reliability | None = None
    cross_fitted: Reliability | None = None
    strange_images: dict[str, StrangeKind] = Field(default_factory=dict)


class ConfidenceFigures(Read):
    """What the model knows of itself, on validation scans and on scans that chose nothing."""

    validation: ValidationQuality = ValidationQuality()
    test: Reliability | None = None

    @property
    def views(self) -> dict[str, Reliability]:
        """The sets of figures that there are, by their headings, in the order of the page."""
        named = {
            "validation, before": self.validation.as_scored,
            "validation, after": self.validation.cross_fitted,
            "test": self.test,
        }
        return {name: figures for name, figures in named.items() if figures is not None}


class Rules(Read):
    """What the answers promise; NaN where nothing could be promised."""

    temperature: Number = NAN
    coverage: Number = NAN
    max_error: Number = NAN
    abstain_below: Number = NAN
    accepted: Number = NAN


class MapFigures(Read):
    """One way of drawing maps, scored; means over scans."""

    energy: Number = NAN
    pointing: Number = NAN
    deletion: Number = NAN
    insertion: Number = NAN


class Explanations(Read):
    """The JSON of `fl.evaluation.explanations.ExplanationQuality`, measured on phantoms."""

    num_scans: int = 0
    num_curves: int = 0
    num_predicted: int = 0
    lesion_share: Number = NAN
    class_maps: MapFigures = MapFigures()
    random: MapFigures = MapFigures()
    centre: MapFigures = MapFigures()
    energy_interval: tuple[Number, Number] = (NAN, NAN)
    pointing_interval: tuple[Number, Number] = (NAN, NAN)

    @property
    def beats_baselines(self) -> bool | None:
        """Whether both intervals lie above both baselines; None where a figure is missing."""
        compared = list(self._compared())
        if not all(math.isfinite(value) for pair in compared for value in pair):
            return None
        return all(low > baseline for low, baseline in compared)

    def _compared(self) -> Iterator[tuple[float, float]]:
        for baseline in (self.random, self.centre):
            yield self.energy_interval[0], baseline.energy
            yield self.pointing_interval[0], baseline.pointing


class Int8(Read):
    """The JSON of `export.acceptance.Acceptance`."""

    macro_f1_float32: Number = NAN
    macro_f1_int8: Number = NAN
    drop_points: Number = NAN
    agreement: Number = NAN
    largest_probability_difference: Number = NAN
    maps_cosine_median: Number = NAN
    maps_cosine_lowest: Number = NAN
    maps_energy_ratio: Number = NAN
    num_images: int = 0
    accepted: bool = False


class Release(Read):
    """Everything that a release measured."""

    confidence: ConfidenceFigures | None = None
    rules: Rules = Rules()
    explanations: Explanations | None = None
    int8: Int8 | None = None
