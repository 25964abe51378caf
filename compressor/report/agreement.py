"""A TFLite file and its certificate in words, for the terminal and the page."""

from collections.abc import Iterator, Mapping

from edgepress.compressor.report.tflite import Certificate, GridDifference, OutputParity, Tflite
from edgepress.compressor.report.words import quantity

MOST_NAMED = 3
"""Nodes that a line names at most."""


def share(percent: float) -> str:
    """A percentage that says 100 only where all are meant: 100 %, 99.98 %, 99.9999 %."""
    if percent in (0.0, 100.0):
        return f"{percent:.0f} %"
    for digits in range(1, 8):
        text = f"{percent:.{digits}f}"
        if float(text) not in (0.0, 100.0):
            return f"{text} %"
    return "not quite 100 %" if percent > 50 else "not quite 0 %"


def counts(kinds: Mapping[str, int]) -> str:
    """`9 operators: CONV_2D 4, ADD 3, …`, the most frequent first."""
    total = sum(kinds.values())
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    each = ", ".join(f"{kind} {count}" for kind, count in ordered)
    return f"{total} operator{'' if total == 1 else 's'}" + (f": {each}" if each else "")


def output_text(output: OutputParity) -> str:
    """`y: 99.8 % bit-identical, at most 1 step apart, same class in 100 % of rows`."""
    text = f"{output.name}: {_alike(output)}"
    if output.same_class_percent is not None:
        text += f", same class in {share(output.same_class_percent)} of rows"
    return text


def _alike(output: OutputParity) -> str:
    """Share and largest difference; the latter first where an output lies on no grid, and sums round as they come."""
    same, apart = f"{share(output.identical_percent)} bit-identical", _apart(output)
    if not apart:
        return same
    return f"{same}, {apart}" if output.step is not None else f"{apart}, {same}"


def _apart(output: OutputParity) -> str:
    """The largest difference: `at most 1 step apart`; empty where there is none."""
    if output.identical_percent == 100:
        return ""
    if output.step is not None and output.largest_steps is not None:
        steps = f"{output.largest_steps:.3g}"
        return f"at most {steps} step{'' if steps == '1' else 's'} apart"
    if output.step is None and output.largest_percent is not None:
        return f"at most {output.largest_percent:.2g} % of its range apart"
    return "apart beyond measure"


def delegate_text(certificate: Certificate) -> str:
    """`litert 2.3.0, XNNPACK in 1 piece, all operators in it`."""
    text = f"{certificate.engine}, "
    if certificate.partitions is None or certificate.outside is None:
        return f"{text}which does not tell what runs the operators"
    if not certificate.partitions:
        return f"{text}no delegate"
    pieces = f"{certificate.partitions} piece{'' if certificate.partitions == 1 else 's'}"
    text += f"{certificate.delegate} in {pieces}, "
    return text + (
        f"outside of it {counts(certificate.outside)}" if certificate.outside else "all operators in it"
    )


def grids_text(certificate: Certificate) -> str:
    """`45 compared, all the same`."""
    if not certificate.grids:
        return "none: the file computes in floats"
    text = f"{certificate.grids} read back, "
    if certificate.differing:
        text += f"{len(certificate.differing)} other than in the ONNX file"
    else:
        text += "all as in the ONNX file"
    own = certificate.own_grids
    return text + (f"; {own} of them within an operator, where ONNX has none" if own else "")


def difference_text(each: GridDifference) -> str:
    """`h[3]: scale 0.012, zero point 5 instead of scale 0.013, zero point 5`."""
    place = each.tensor + ("" if each.channel is None else f"[{each.channel}]")
    return (
        f"{place}: scale {each.tflite_scale!r}, zero point {each.tflite_zero_point} "
        f"instead of scale {each.onnx_scale!r}, zero point {each.onnx_zero_point}"
    )


def brief(tflite: Tflite) -> str:
    """One line: `92.9 kB; 99.2 % bit-identical, at most 1 step apart, same class in 100 % of rows`."""
    if tflite.reason:
        return none_text(tflite)
    text = quantity(tflite.size_bytes, "bytes")
    if tflite.instructions is not None:
        text += f", {quantity(tflite.instructions.total, 'count')} instructions"
    if tflite.certificate is None:
        return f"{text}; not compared with the ONNX file: {tflite.unproven}"
    outputs = tflite.certificate.outputs
    if len(outputs) == 1:
        text += f"; {_alike(outputs[0])}"
    else:
        same = sum(each.identical_percent * each.elements for each in outputs)
        text += f"; {share(same / max(sum(each.elements for each in outputs), 1))} of outputs bit-identical"
    classes = [each.same_class_percent for each in outputs if each.same_class_percent is not None]
    return text + (f", same class in {share(min(classes))} of rows" if classes else "")


def none_text(tflite: Tflite) -> str:
    """Why there is no file, with the first few nodes that are to blame."""
    text = f"none: {tflite.reason}"
    if tflite.problems:
        more = len(tflite.problems) - MOST_NAMED
        text += f": {'; '.join(tflite.problems[:MOST_NAMED])}" + (f"; and {more} more" if more > 0 else "")
    return text


def lines(tflite: Tflite) -> Iterator[tuple[str, str]]:
    """(label, text) of all that is known; the first line stands for the file."""
    if tflite.reason:
        yield "TFLite", none_text(tflite)
        return
    yield "TFLite", counts(tflite.operators) + ("" if tflite.transposes else "; no TRANSPOSE")
    for note in tflite.notes:
        yield "Note", note
    if tflite.instructions is not None:
        yield "Instructions", f"{quantity(tflite.instructions.total, 'count')} on the target, emulated"
    if tflite.certificate is None:
        if tflite.unproven:
            yield "Parity", f"not shown: {tflite.unproven}"
        return
    yield from certificate_lines(tflite.certificate)


def certificate_lines(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """(label, text) of a certificate."""
    yield "Run by", delegate_text(certificate)
    for output in certificate.outputs:
        yield "Parity", f"{output_text(output)} ({certificate.rows} samples)"
    yield "Scales", grids_text(certificate)
    for each in certificate.differing[:5]:
        yield "", difference_text(each)
