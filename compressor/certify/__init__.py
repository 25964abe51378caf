"""Bounds, proved and not observed, on how far a changed net's outputs can be from the original's."""
