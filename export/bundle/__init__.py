"""A model bundle: one folder with all that serving needs, whose every byte is accounted for and signed.

    MANIFEST.json           format version; SHA-256 and size of every other file but the signature
    model.sig               OpenSSF model signature over all other files (see export/signing.py)
    model.onnx              graph and weights                 model.int8.onnx  its quantized twin
    engines/<arch>-<precision>.engine, engines/report.json    TensorRT engines and how they were built
    preprocess.json         the preprocessing spec, the only one that serving reads
    configs/metadata.json   in the manner of a MONAI bundle: inputs, outputs, labels, intended use
    metrics.json            figures of this model             provenance.json  where it comes from
    confidence.json, .npz   calibration, and statistics of the images that the model is made for
    MODEL_CARD.md           all of this for people
    golden/*.npy            images and the scores they must give, to check an installation

Reading goes from the signature down: a trusted key signed the manifest's very bytes, and the manifest names every
other byte. What was hashed is what is handed out; nothing is looked at twice.

Needs neither torch nor ONNX Runtime nor model-signing to read.
"""

from export.bundle.encoding import canonical_json
from export.bundle.golden import Golden
from export.bundle.layout import FORMAT_VERSION, INT8_MODEL, LABELS_KEY, MODEL, PREPROCESS_KEY
from export.bundle.read import Bundle, load_bundle
from export.bundle.write import write_bundle

__all__ = [
    "FORMAT_VERSION",
    "INT8_MODEL",
    "LABELS_KEY",
    "MODEL",
    "PREPROCESS_KEY",
    "Bundle",
    "Golden",
    "canonical_json",
    "load_bundle",
    "write_bundle",
]
