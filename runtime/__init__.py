"""Run and measure models: numpy, the standard library and one engine."""
