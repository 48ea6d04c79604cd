"""The structured report, TID 1500: what the model says of one image, with every class's probability.

Concepts are of DICOM, SNOMED CT and UCUM where their dictionaries have them; class names and the rest are of the
private scheme 99GLIOFED (docs/dicom.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ParametricMapStorage

from export.answer import Answer
from service.dicom.capture import NOT_FOR_CLINICAL_USE
from service.dicom.header import MANUFACTURER
from service.dicom.model import ModelIdentity, derived_uid
from service.dicom.source import Source

SCHEME = "99GLIOFED"
_MEANINGS = {"glioma": "Glioma", "meningioma": "Meningioma", "notumor": "No tumour", "pituitary": "Pituitary tumour"}


def concept(value: str, meaning: str) -> hd.sr.CodedConcept:
    """Return a concept of our own scheme."""
    return hd.sr.CodedConcept(value=value[:16], scheme_designator=SCHEME, meaning=meaning[:64])


def class_concept(label: str) -> hd.sr.CodedConcept:
    """Return a class as a coded value."""
    return concept(label, _MEANINGS.get(label, label))


def structured_report(
    source: Source,
    stand_in: Dataset,
    answer: Answer,
    *,
    model: ModelIdentity,
    results: Sequence[Dataset],
    remarks: Sequence[str],
    identifiers: dict[str, Any],
) -> Dataset:
    """Return the report of one answer. results: the objects made beside it, referenced by it. remarks: on the image."""
    tracking = derived_uid("tracking", source.sop_instance, source.frame, model.digest, model.precision)
    frames = None if source.frame is None else [source.frame + 1]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=tracking, identifier="gliofed answer"),
        algorithm_id=_algorithm(model),
        finding_sites=[hd.sr.FindingSite(codes.SCT.Brain)],
        measurements=_measurements(answer),
        qualitative_evaluations=_evaluations(answer),
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.sop_class, source.sop_instance, frames)],
    )
    texts = [NOT_FOR_CLINICAL_USE, *(caution.text for caution in answer.cautions), *remarks]
    group[0].ContentSequence.extend(_comment(text) for text in texts)
    group[0].ContentSequence.extend(_picture(result) for result in results)
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", model.digest, model.precision),
        name=model.name,
        manufacturer_name=MANUFACTURER,
        model_name=model.name,
        serial_number=model.digest,
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.BrainMRI,
        imaging_measurements=[group],
    )
    made: Dataset = hd.sr.EnhancedSR(
        evidence=[stand_in, *results], content=content, is_complete=True, is_final=False, **identifiers
    )
    return made


def _algorithm(model: ModelIdentity) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(
        name=model.name,
        version=model.version,
        parameters=[
            f"model SHA-256 {model.digest}",
            f"precision {model.precision}",
            f"gliofed {model.software}",
        ],
        manufacturer=MANUFACTURER,
        family=codes.DCM.ArtificialIntelligence,
    )


def _measurements(answer: Answer) -> list[hd.sr.Measurement]:
    named = [
        (concept(f"p-{label}", f"Probability of {_MEANINGS.get(label, label).lower()}"), float(probability))
        for label, probability in zip(answer.labels, answer.probabilities_C, strict=True)
    ]
    named.append((concept("uncertainty", "Entropy of the probabilities, share of its maximum"), answer.uncertainty))
    if answer.ood_score is not None:
        named.append((concept("ood-score", "Distance from the images the model was made for"), answer.ood_score))
    if answer.ood_threshold is not None:
        named.append(
            (concept("ood-threshold", "Largest distance that is not out of distribution"), answer.ood_threshold)
        )
    return [hd.sr.Measurement(name=name, value=_sixteen(value), unit=codes.UCUM.NoUnits) for name, value in named]


def _sixteen(value: float) -> float:
    """Round so that the number fits the 16 characters that a decimal string may have."""
    return float(f"{value:.6g}")


def _evaluations(answer: Answer) -> list[hd.sr.QualitativeEvaluation]:
    def told(value: str, meaning: str, holds: bool) -> hd.sr.QualitativeEvaluation:
        return hd.sr.QualitativeEvaluation(concept(value, meaning), codes.SCT.Yes if holds else codes.SCT.No)

    return [
        hd.sr.QualitativeEvaluation(concept("class", "Predicted class"), class_concept(answer.label)),
        *(
            hd.sr.QualitativeEvaluation(concept("not-ruled-out", "Class that is not ruled out"), class_concept(label))
            for label in answer.prediction_set
        ),
        told("abstains", "Model abstains: do not rely on its class", answer.abstains),
        told("ood", "Image is out of distribution", answer.out_of_distribution),
        told("calibrated", "Probabilities are calibrated", answer.calibrated),
        told("head-found", "Head was found in the image", answer.head_found),
    ]


def _comment(text: str) -> hd.sr.TextContentItem:
    plain = text.encode("ascii", "replace").decode()
    return hd.sr.TextContentItem(name=codes.DCM.Comment, value=plain, relationship_type="CONTAINS")


def _picture(result: Dataset) -> hd.sr.ImageContentItem:
    names = {ParametricMapStorage: ("class-maps", "Class activation maps")}
    value, meaning = names.get(result.SOPClassUID, ("overlay", "Slice with class activation map"))
    return hd.sr.ImageContentItem(
        name=concept(value, meaning),
        referenced_sop_class_uid=result.SOPClassUID,
        referenced_sop_instance_uid=result.SOPInstanceUID,
        relationship_type="CONTAINS",
    )
