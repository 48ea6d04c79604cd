"""TensorRT engines from our ONNX files: built, described, held to ONNX Runtime, refused where they do not belong."""
