"""Compress trained ONNX networks for small devices within an accuracy budget."""
