"""The Parametric Map: every class's map as floating-point pixels that lie where they belong in the patient."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from export.answer import Answer
from service.dicom.model import derived_uid
from service.dicom.source import Plane, Source, decimals


def map_plane(plane: Plane, answer: Answer) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return where the centre of the map's first cell lies, millimetres, and the spacing of its rows and columns.

    A cell (row, column) covers image columns [left + column·w, left + (column+1)·w) and rows likewise, where the box
    starts at (left, top) and a cell is w pixels wide; pixel 0 covers [0, 1) and its centre is its own coordinate 0.
    """
    left, top = (0, 0) if answer.box is None else (answer.box.left, answer.box.top)
    width, height = answer.cell_pixels
    first = plane.at(left + width / 2 - 0.5, top + height / 2 - 0.5)
    return first, (height * plane.row_spacing, width * plane.column_spacing)


def parametric_map(
    source: Source, plane: Plane, stand_in: Dataset, answer: Answer, identifiers: dict[str, Any]
) -> Dataset:
    """Return the Parametric Map of one answer: one frame a class, as the graph gives it, not scaled."""
    first, spacing = map_plane(plane, answer)
    maps_1hwC = np.ascontiguousarray(np.moveaxis(answer.class_maps_Chw, 0, -1)[None].astype(np.float32))
    low, high = float(maps_1hwC.min()), float(maps_1hwC.max())
    peak = max(high, float(np.finfo(np.float32).tiny))
    made: Dataset = hd.pm.ParametricMap(
        source_images=[stand_in],
        pixel_array=maps_1hwC,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[[_mapping(label, low, high)] for label in answer.labels],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=peak / 2, window_width=peak)],
        content_label="CLASS_MAPS",
        content_description="Class activation maps, one frame a class",
        content_qualification="RESEARCH",
        image_flavor="VOLUME",
        derived_pixel_contrast="QUANTITY",
        pixel_measures=hd.PixelMeasuresSequence(pixel_spacing=decimals(*spacing), slice_thickness=plane.thickness),
        plane_orientation=hd.PlaneOrientationSequence(
            "PATIENT", image_orientation=decimals(*plane.along_row, *plane.along_column)
        ),
        plane_positions=[hd.PlanePositionSequence("PATIENT", image_position=decimals(*first))],
        transfer_syntax_uid=hd.UID("1.2.840.10008.1.2.1"),
        **identifiers,
    )
    _name_dimensions(made)
    if source.frame is not None:
        _name_frame(made, source.frame + 1)
    return made


def _mapping(label: str, low: float, high: float) -> hd.pm.RealWorldValueMapping:
    return hd.pm.RealWorldValueMapping(
        lut_label=label[:16],
        lut_explanation=f"Class activation for {label}"[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ClassActivation,
    )


def _name_dimensions(made: Dataset) -> None:
    """Replace the dimensions' random UID by one that belongs to the map, so that it is the same when made again."""
    uid = derived_uid("dimensions", made.SOPInstanceUID)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _name_frame(made: Dataset, number: int) -> None:
    for groups in made.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", []):
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = number
