"""All passes: an import list is the registry."""

from edgepress.compressor.passes.base import Pass
from edgepress.compressor.passes.cluster import Cluster
from edgepress.compressor.passes.dynamic import Dynamic
from edgepress.compressor.passes.equalize import Equalize
from edgepress.compressor.passes.half import Half
from edgepress.compressor.passes.low_rank import LowRank
from edgepress.compressor.passes.prune import Prune
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.reset import Reset
from edgepress.compressor.passes.separable import Separable
from edgepress.compressor.passes.shrink import Shrink
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.passes.threshold_relu import ThresholdReLU
from edgepress.compressor.passes.weight_only import WeightOnly

ALL: tuple[type[Pass], ...] = (
    Shrink, LowRank, Separable, Prune, Reset, ThresholdReLU, Equalize, Quantize, Dynamic, WeightOnly, Half,
    StoreWeights, Cluster,
)  # fmt: skip

__all__ = [
    "ALL", "Cluster", "Dynamic", "Equalize", "Half", "LowRank", "Pass", "Prune", "Quantize", "Reset", "Separable",
    "Shrink", "StoreWeights", "ThresholdReLU", "WeightOnly",
]  # fmt: skip
