"""Which handler reads which operator."""

from edgepress.compressor.certify.operators import (
    MOVES,
    average_pool,
    batch_normalization,
    concat,
    conv,
    conv_transpose,
    gemm,
    matmul,
    max_pool,
    mean,
    move,
)
from edgepress.compressor.certify.pointwise import arithmetic, clip, hard, leaky, norm, smooth, softmax
from edgepress.compressor.certify.program import Handler
from edgepress.compressor.certify.quantizers import dequantizer, quantizer

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), arithmetic),
    **dict.fromkeys(("Relu", "Clip"), clip),
    **dict.fromkeys(("LeakyRelu", "PRelu"), leaky),
    **dict.fromkeys(("Sigmoid", "Tanh"), smooth),
    **dict.fromkeys(("HardSigmoid", "HardSwish"), hard),
    **dict.fromkeys(("ReduceMean", "GlobalAveragePool"), mean),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), max_pool),
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul, "Concat": concat,
    "BatchNormalization": batch_normalization, "Softmax": softmax, "LRN": norm, "AveragePool": average_pool,
    "QuantizeLinear": quantizer, "DequantizeLinear": dequantizer,
}  # fmt: skip
