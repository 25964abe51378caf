"""`model.tflite` beside `model.onnx`: made from the very file that is handed over, and held against it.

It never stands in the way of the ONNX file: what goes wrong here is told in the report. Where TFLite alone was asked
for, what the original model cannot give is an error before the search begins.
"""

from edgepress.compressor.errors import DeviceError, EdgepressError
from edgepress.compressor.export.parity import Proof, facts, one_batch
from edgepress.compressor.export.tflite import Converted, convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError
from edgepress.compressor.job import Findings
from edgepress.compressor.report.tflite import Certificate, Tflite
from edgepress.compressor.scoring import score_all
from edgepress.compressor.serialize import parse, serialize

NOTABLE = 0.01
"""Difference of the two files' scores, as a share of the score, from which on a user is warned."""


def refuse_early(found: Findings) -> None:
    """Try the original, where TFLite is a must.

    Raises:
        ModelError: it cannot be written as TFLite, naming every node that cannot.
        UsageError: the packages for TFLite are missing.
    """
    if found.job.needs_tflite:
        convert(found.normalized.model)


def make_tflite(found: Findings) -> None:
    """Write what goes out as TFLite too, where that was asked for, and let both files run on the unseen rows."""
    if "tflite" not in found.job.formats:
        return
    try:
        converted = _converted(found)
    except NotConvertibleError as error:
        said = tuple(f"{each.node}: {each.why}" for each in error.problems)
        count = f"{len(said)} of the model's nodes" if len(said) > 1 else "one of the model's nodes"
        found.tflite = Tflite(reason=f"{count} cannot be written as TFLite", problems=said)
        return
    except EdgepressError as error:
        found.tflite = Tflite(reason=f"{error} {error.hint}".strip())
        return
    except Exception as error:  # a fault of ours must not cost a user the search
        fault = f"{type(error).__name__}: {error}"
        found.tflite = Tflite(reason=f"the writer failed ({fault}); please report this model")
        return
    found.tflite_file = converted.data
    _prove(found, converted)


def _converted(found: Findings) -> Converted:
    """The file that goes out as TFLite; what cannot be written is named as in the model that came in."""
    try:
        return convert(parse(found.exported))
    except NotConvertibleError:
        if found.best is not None and found.best.model is not None:
            convert(found.best.model)
        raise


def _prove(found: Findings, converted: Converted) -> None:
    """Add the certificate; a file that does not run as its ONNX counterpart does is not handed over."""
    engine = found.host.tflite()
    if engine is None or not found.one_row:
        why = "nothing here runs TFLite files" if engine is None else "the model cannot be run here"
        found.tflite = facts(converted).model_copy(update={"unproven": why})
        return
    try:
        expected = found.host.engine.load(found.exported, found.job.threads)
        proof = Proof.of(parse(found.exported), converted, expected, engine, found.job.threads)
        certificate = _on_samples(found, proof)
    except DeviceError as error:
        found.tflite_file, found.tflite = None, Tflite(reason=f"the file does not do: {error}")
        return
    found.tflite = facts(converted).model_copy(update={"certificate": certificate})
    ours, theirs = certificate.score, certificate.onnx_score
    if certificate.differing:
        found.warnings.append("model.tflite has scales that model.onnx has not; please report this model.")
    if ours is not None and theirs is not None and abs(ours - theirs) > NOTABLE * abs(theirs):
        found.warnings.append(f"model.tflite scores {ours:.6g} where model.onnx scores {theirs:.6g}.")


def _on_samples(found: Findings, proof: Proof) -> Certificate:
    """Both files on the unseen rows, scored; on one row where there are none."""
    if found.test is None or found.metric is None:
        proof.comparison.run([one_batch(found.one_row)])
        return proof.certificate()
    original = found.host.engine.load(serialize(found.source), found.job.threads)
    values = score_all(
        [found.metric],
        lambda feeds: dict(proof.comparison.last),
        proof.comparison.through(found.test.batches(found.batch)),
        lambda batch: original(batch.feeds),
    )
    score = None if found.judgement is None else found.judgement.compressed_score
    return proof.certificate(found.metric.finish(values[0]), score)
