"""Networks whose right answer is known exactly, to test a device with (Kepner et al. 2018)."""
