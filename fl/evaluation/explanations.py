"""Do class maps point at the lesion? Measured where the lesion is known, against maps that know nothing.

Energy in lesion: the share of a map's values that lies inside the lesion (Wang et al. 2020, "Score-CAM", section 4.3).
Pointing game: whether the map's largest value does (Zhang et al. 2018, "Top-down Neural Attention by Excitation
Backprop", section 4.3). Deletion and insertion: the area under the class's probability while pixels are taken away, or
given back, in the map's order (Petsiuk et al. 2018, "RISE", section 4.2); a good map makes the first small, the second
large. Each figure stands beside that of two baselines over the same region:

- `random`: the same map, turned over the region's edges by a random shift: as much area, as peaked, elsewhere;
- `centre`: a bell at the region's centre, as wide as the map's own strong part: what "the middle" would score.

Shape legend: H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fl.random import stream
from kernels.spec import Box

Heat = NDArray[np.float32]
Score = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]
"""Images uint8 [H,W] of one scan to the probability of its class, float32 [N]."""

NUM_SHIFTS = 16
NUM_STEPS = 8
BLUR_SIGMA_SHARE = 0.06
"""What a pixel is taken away to: the image blurred by this share of its side. Black would be an edge of its own."""
_STRONG = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExplainedScan:
    """One scan with a lesion, and where the model saw its class.

    image_HW: uint8. lesion_HW: bool, not empty. heat_HW: float32 >= 0, Grad-CAM of the scan's true class at the image's
    pixels, zero outside region. region: what the network saw. predicted: whether it named the class.
    """

    image_HW: NDArray[np.uint8]
    lesion_HW: NDArray[np.bool_]
    heat_HW: Heat
    region: Box
    predicted: bool

    def __post_init__(self) -> None:
        if not self.image_HW.shape == self.lesion_HW.shape == self.heat_HW.shape:
            raise ValueError(
                f"image {self.image_HW.shape}, lesion {self.lesion_HW.shape} and heat {self.heat_HW.shape} "
                "must have one shape"
            )
        if not self.lesion_HW.any():
            raise ValueError("the lesion is empty; explanations are measured on scans that have one")
        if not (np.isfinite(self.heat_HW).all() and self.heat_HW.min() >= 0):
            raise ValueError("heat must be finite and not negative; pass relu of the class map")


@dataclass(frozen=True, kw_only=True, slots=True)
class MapFigures:
    """Means over scans. energy, pointing, deletion, insertion: 0 to 1."""

    energy: float
    pointing: float
    deletion: float
    insertion: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplanationQuality:
    """The class maps' figures beside their baselines'.

    lesion_share: mean share of the region that is lesion, what a map without any idea would score.
    energy_interval, pointing_interval: 95 %, of the class maps, by bootstrap over scans. num_curves: scans that
    deletion and insertion were measured on.
    """

    num_scans: int
    num_curves: int
    num_predicted: int
    lesion_share: float
    class_maps: MapFigures
    random: MapFigures
    centre: MapFigures
    energy_interval: tuple[float, float]
    pointing_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        figures = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in figures.items()}


def measure_explanations(
    scans: Sequence[ExplainedScan], scores: Sequence[Score], *, num_curves: int, seed: int
) -> ExplanationQuality:
    """Return how well the scans' maps find their lesions.

    scores: one for each scan. num_curves: so many scans, evenly spaced, get deletion and insertion curves, which cost
    6 * (NUM_STEPS + 1) predictions each. Raises ValueError without scans.
    """
    if not scans or len(scores) != len(scans) or not 1 <= num_curves <= len(scans):
        raise ValueError(f"{len(scans)} scans, {len(scores)} scores, {num_curves} curves: expected one score a scan")
    maps = [_rivals(scan, stream(seed, "explanations", at)) for at, scan in enumerate(scans)]
    places = np.array([[_placed(scan, rivals) for rivals in ways] for scan, ways in zip(scans, maps, strict=True)])
    curved = [int(at) for at in np.linspace(0, len(scans) - 1, num_curves)]
    curves = np.array([_curves(scans[at], [ways[0] for ways in maps[at]], scores[at]) for at in curved])
    means = np.concatenate([places.mean(axis=0), curves.mean(axis=0)], axis=1)
    figures = [MapFigures(**dict(zip(MapFigures.__slots__, map(float, row), strict=True))) for row in means]
    return ExplanationQuality(
        num_scans=len(scans),
        num_curves=num_curves,
        num_predicted=sum(scan.predicted for scan in scans),
        lesion_share=float(np.mean([_inside(scan.lesion_HW, scan.region).mean() for scan in scans])),
        class_maps=figures[0],
        random=figures[1],
        centre=figures[2],
        energy_interval=_interval(places[:, 0, 0], seed),
        pointing_interval=_interval(places[:, 0, 1], seed),
    )


def energy_inside(heat_HW: Heat, lesion_HW: NDArray[np.bool_]) -> float:
    """Return the share of the map's sum that lies in the lesion; 0 for a map of zeros, which points nowhere."""
    total = float(heat_HW.sum(dtype=np.float64))
    return float(heat_HW[lesion_HW].sum(dtype=np.float64)) / total if total > 0 else 0.0


def points_inside(heat_HW: Heat, lesion_HW: NDArray[np.bool_]) -> float:
    """Return which share of the places where the map is largest lies in the lesion: 0 or 1 unless there are ties."""
    peak = heat_HW.max()
    return float(lesion_HW[heat_HW == peak].mean()) if peak > 0 else 0.0


def shifted(heat_HW: Heat, region: Box, generator: np.random.Generator) -> Heat:
    """Return the map moved within the region by a random shift; what leaves at one edge enters at the other."""
    heat = np.zeros_like(heat_HW)
    inside = _inside(heat_HW, region)
    shift = tuple(int(generator.integers(side)) for side in inside.shape)
    _inside(heat, region)[:] = np.roll(inside, shift, axis=(0, 1))
    return heat


def centre_prior(heat_HW: Heat, region: Box) -> Heat:
    """Return a bell at the region's centre whose part above half its height is as large as the map's."""
    inside = _inside(heat_HW, region)
    strong = max(1, int((inside > _STRONG * inside.max()).sum()))
    variance = strong / (2 * np.pi * np.log(1 / _STRONG))  # area above half height: 2 pi log(2) sigma^2
    rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
    middle_row, middle_column = (inside.shape[0] - 1) / 2, (inside.shape[1] - 1) / 2
    distance2 = (rows - middle_row) ** 2 + (columns - middle_column) ** 2
    heat = np.zeros_like(heat_HW)
    _inside(heat, region)[:] = np.exp(-distance2 / (2 * variance))
    return heat


def deletion_insertion(image_HW: NDArray[np.uint8], heat_HW: Heat, region: Box, score: Score) -> tuple[float, float]:
    """Return the areas under the class's probability while the region's pixels go, and come, in the map's order.

    NUM_STEPS equal steps from none to all, trapezoids; the substrate is the blurred image. Equal values keep the order
    of rows and columns.
    """
    substrate_HW = cv2.GaussianBlur(image_HW, (0, 0), BLUR_SIGMA_SHARE * max(image_HW.shape))
    inside = _inside(heat_HW, region)
    rank = np.empty(inside.size, np.int64)
    rank[np.argsort(-inside.ravel(), kind="stable")] = np.arange(inside.size)
    rank_HW = np.full(image_HW.shape, inside.size)
    _inside(rank_HW, region)[:] = rank.reshape(inside.shape)
    counts = [inside.size * step // NUM_STEPS for step in range(NUM_STEPS + 1)]
    deleted = [np.where(rank_HW < count, substrate_HW, image_HW) for count in counts]
    inserted = [np.where((rank_HW < count) | (rank_HW == inside.size), image_HW, substrate_HW) for count in counts]
    probabilities = score([*deleted, *inserted]).astype(np.float64)
    down, up = np.split(probabilities, 2)
    return float(np.trapezoid(down) / NUM_STEPS), float(np.trapezoid(up) / NUM_STEPS)


def _rivals(scan: ExplainedScan, generator: np.random.Generator) -> tuple[list[Heat], list[Heat], list[Heat]]:
    """Return the class map, its shifted twins, and the centre prior."""
    shifts = [shifted(scan.heat_HW, scan.region, generator) for _ in range(NUM_SHIFTS)]
    return [scan.heat_HW], shifts, [centre_prior(scan.heat_HW, scan.region)]


def _placed(scan: ExplainedScan, maps: Sequence[Heat]) -> tuple[float, float]:
    energy = [energy_inside(heat_HW, scan.lesion_HW) for heat_HW in maps]
    pointing = [points_inside(heat_HW, scan.lesion_HW) for heat_HW in maps]
    return float(np.mean(energy)), float(np.mean(pointing))


def _curves(scan: ExplainedScan, maps: Sequence[Heat], score: Score) -> list[tuple[float, float]]:
    return [deletion_insertion(scan.image_HW, heat_HW, scan.region, score) for heat_HW in maps]


def _inside(array_HW: NDArray[Any], region: Box) -> NDArray[Any]:
    return array_HW[region.top : region.bottom, region.left : region.right]


def _interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    picks = stream(seed, "explanations", "bootstrap").integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
