"""The endpoint: a bundle's model over HTTP. Imports no torch, Ray, Flower, onnx or SciPy."""
