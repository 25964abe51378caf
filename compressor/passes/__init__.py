"""All passes: an import list is the registry."""

from edgepress.compressor.passes.base import Pass
from edgepress.compressor.passes.low_rank import LowRank
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.separable import Separable
from edgepress.compressor.passes.shrink import Shrink
from edgepress.compressor.passes.store import StoreWeights

ALL: tuple[type[Pass], ...] = (Shrink, LowRank, Separable, Quantize, StoreWeights)

__all__ = ["ALL", "LowRank", "Pass", "Quantize", "Separable", "Shrink", "StoreWeights"]
