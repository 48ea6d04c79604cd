"""The head in closed form, over any sites: their sums in, the head that validation scans like best out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fl.errors import ProtocolError, QuorumLost, StatisticsError
from fl.model.flat import FlatParameters
from fl.privacy.secagg.encoding import ArraySpec
from fl.privacy.secagg.plan import SecureAggregationSettings
from fl.runtime.messages import CONFIG, pack_parameters, unpack_array
from fl.runtime.secure import SECURE_STATISTICS, STATISTICS, SUMS, UNIT, Ask, secure_sum
from fl.server.analytic import AnalyticHead, AnalyticSettings, candidates, choose_head, with_head
from fl.training.exchange import LeftOut
from fl.training.statistics import SiteStatistics
from fl.types import CLASSES, Site

TIMEOUT_SECONDS = 3600.0

HeadLogits = Callable[[Sequence[AnalyticHead]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Returns (labels_N, logits_MNK) of the validation scans under each head."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FederatedSums:
    """The sums over all sites that answered, and which did not."""

    statistics: SiteStatistics
    num_sites: int
    left_out: tuple[LeftOut, ...]
    bytes_up_per_site: int


def gather_sums(ask: Ask, sites: Sequence[Site], parameters: FlatParameters, *, num_features: int) -> FederatedSums:
    """Ask every site for its sums under the parameters [P], and add them up as they come.

    num_features: what the model's head reads. Raises QuorumLost where no site answers.
    """
    content = pack_parameters(parameters)
    total: SiteStatistics | None = None
    left_out: list[LeftOut] = []
    answered: list[str] = []
    num_bytes = 0
    for site, answer in ask({site.name: content for site in sites}, STATISTICS, TIMEOUT_SECONDS):
        try:
            if isinstance(answer, LeftOut):
                left_out.append(answer)
                continue
            if site in answered:
                raise ProtocolError("it has answered before; its first sums were counted")
            vector = unpack_array(answer, SUMS)
            sums = SiteStatistics.from_vector(
                vector, num_features=num_features, num_classes=len(CLASSES), unit=_unit(answer)
            )
            total = sums if total is None else total + sums
        except (ProtocolError, StatisticsError) as refused:
            left_out.append(LeftOut(site=site, reason=f"sums refused: {refused}"))
            continue
        answered.append(site)
        num_bytes = vector.nbytes
    if total is None:
        raise QuorumLost(f"no site sent its sums ({_reasons(left_out)}); mend them, then continue with --resume")
    return FederatedSums(
        statistics=total, num_sites=len(answered), left_out=tuple(left_out), bytes_up_per_site=num_bytes
    )


def gather_secure_sums(
    ask: Ask,
    sites: Sequence[Site],
    parameters: FlatParameters,
    settings: SecureAggregationSettings,
    *,
    num_features: int,
    context: bytes,
) -> FederatedSums:
    """The same under secure aggregation: one sum over all sites is seen, and no site's own.

    Raises SecureAggregationError where too few sites stay to the end.
    """
    length = num_features * (num_features + 1) // 2 + num_features * len(CLASSES) + len(CLASSES)
    plan = settings.plan(
        round=0,
        sites=[site.name for site in sites],
        arrays=[ArraySpec(name=SUMS, length=length, whole=True)],
        context=context,
        ring_bits=64,
    )
    content = pack_parameters(parameters)
    units: dict[str, float] = {}

    def hear(site: str, answer: RecordDict) -> None:
        units[site] = _unit(answer)

    contents = {site.name: content for site in sites}
    total, left_out = secure_sum(
        ask, plan, SECURE_STATISTICS, contents, hear=hear, weighted=False, timeout_seconds=TIMEOUT_SECONDS
    )
    used = {units[site] for site in total.sites}
    if len(used) != 1:
        raise StatisticsError(f"sites measure features in units of {sorted(used)}; all must have the same model")
    statistics = SiteStatistics.from_vector(
        total.whole(SUMS), num_features=num_features, num_classes=len(CLASSES), unit=used.pop()
    )
    return FederatedSums(
        statistics=statistics,
        num_sites=len(total.sites),
        left_out=tuple(left_out),
        bytes_up_per_site=total.total.nbytes,
    )


def solve(
    statistics: SiteStatistics, parameters: FlatParameters, settings: AnalyticSettings, head_logits: HeadLogits
) -> tuple[FlatParameters, AnalyticHead]:
    """Return the parameters [P] with the head that does best on validation scans. Raises StatisticsError."""
    absent = [name for name, count in zip(CLASSES, statistics.counts_K, strict=True) if not count]
    if absent:
        raise StatisticsError(
            f"no site that answered has {', '.join(absent)}: the head would never say so; more sites must take part"
        )
    heads = list(candidates(statistics, settings.ridges))
    labels_N, logits_MNK = head_logits(heads)
    head = choose_head(heads, logits_MNK, labels_N)
    return with_head(parameters, head), head


def _unit(answer: RecordDict) -> float:
    unit = answer.config_records.get(CONFIG, ConfigRecord()).get(UNIT)
    if not isinstance(unit, float):
        raise ProtocolError(f"an answer with sums does not say their {UNIT!r}")
    return unit


def _reasons(left_out: Iterable[LeftOut]) -> str:
    return "; ".join(f"{out.site}: {out.reason}" for out in left_out) or "none was asked"
