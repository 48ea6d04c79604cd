"""Everything that `export` raises on purpose.

ExportError
├── UnsupportedModel  a network or setting that the exporter does not write
├── ExportMismatch    ONNX Runtime and torch disagree; carries the worst difference and where it is
├── Int8Rejected      an int8 graph loses too much; carries the figures
├── BundleError       a bundle cannot be written or read; carries the file
│   └── UntrustedBundle  what lies there is not what a trusted key signed
├── SigningKeyError   a key for signing or checking bundles is missing or not usable
├── PredictorError    a bundle cannot be served here, or an answer is not usable
├── ParityError       a narrower or faster form of a network computes something else; never serve it
├── TritonError       a model repository cannot be written
└── EngineError       TensorRT cannot parse, build or load here, or an engine is not for this file and machine
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.acceptance import Acceptance


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


class Int8Rejected(ExportError):
    """An int8 graph answers too much worse than its float32 graph, or not in finite numbers.

    acceptance: the figures, None where there are none.
    """

    def __init__(self, message: str, acceptance: Acceptance | None = None) -> None:
        super().__init__(message)
        self.acceptance = acceptance


class BundleError(ExportError):
    """A bundle cannot be written or read.

    file: path inside the bundle that is at fault, or the bundle's folder.
    """

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file


class UntrustedBundle(BundleError):
    """What lies there is not what a trusted key signed: it must not be served, and the message says what to do."""


class SigningKeyError(ExportError):
    """A key for signing or checking bundles is missing or not usable."""


class PredictorError(ExportError):
    """A bundle cannot be served on this machine, or an answer is not usable."""


class ParityError(ExportError):
    """A narrower or faster form of a network gives other answers than the network; it must not be served."""


class TritonError(ExportError):
    """A model repository for Triton cannot be written from what was given."""


class EngineError(ExportError):
    """TensorRT cannot parse, build or load something here, or an engine was built for another file or machine."""
