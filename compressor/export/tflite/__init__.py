"""TFLite files, written directly: integers, scales and zero points are those of the ONNX graph."""

from edgepress.compressor.export.tflite.convert import Converted, convert

__all__ = ["Converted", "convert"]
