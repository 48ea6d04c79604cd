"""Everything that `export` raises on purpose.

ExportError
├── UnsupportedModel  a network or setting that the exporter does not write
├── ExportMismatch    ONNX Runtime and torch disagree; carries the worst difference and where it is
├── BundleError       a bundle cannot be written, or is not what its manifest says; carries the file
└── PredictorError    a bundle cannot be served here, or an answer is not usable
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of all deliberate failures of this package; the message is complete."""


class UnsupportedModel(ExportError):
    """A network or setting that the exporter does not write."""


class ExportMismatch(ExportError):
    """ONNX Runtime and torch give different answers for the same images.

    output: name of the graph output. worst: largest absolute difference there (NaN if a value is not finite).
    index: where it is, in the output's axes.
    """

    def __init__(self, message: str, *, output: str, worst: float, index: tuple[int, ...]) -> None:
        super().__init__(message)
        self.output = output
        self.worst = worst
        self.index = index


class BundleError(ExportError):
    """A bundle cannot be written, or is not what its manifest says.

    file: path inside the bundle that is at fault, or the bundle's folder.
    """

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file


class PredictorError(ExportError):
    """A bundle cannot be served on this machine, or an answer is not usable."""
