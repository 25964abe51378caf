"""Sparse evolutionary training: perceptrons whose connections are few from the start and move while they learn."""
