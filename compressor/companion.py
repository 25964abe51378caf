"""`model.tflite` beside `model.onnx`: made from the very file that is handed over, and held against it.

It never stands in the way of the ONNX file: what goes wrong here is told in the report. Where TFLite alone was asked
for, what the original model cannot give is an error before the search begins.
"""

from edgepress.compressor.errors import DeviceError, EdgepressError
from edgepress.compressor.export.parity import Proof, facts, one_batch
from edgepress.compressor.export.tflite import Converted, convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError
from edgepress.compressor.job import Findings
from edgepress.compressor.micro import micro_file, refuse_unfit
from edgepress.compressor.ondevice import file_there
from edgepress.compressor.report.device import Instructions
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
    if found.host.micro is not None:
        refuse_unfit(found)
    elif found.job.needs_tflite:
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
    if found.host.micro is not None:
        found.footprints = (found.footprints[0], found.host.micro.footprint(converted.data))
    _prove(found, converted)


def _converted(found: Findings) -> Converted:
    """The file that goes out as TFLite; what cannot be written is named as in the model that came in."""
    write = convert if found.host.micro is None else micro_file
    try:
        return write(parse(found.exported))
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
    found.tflite = facts(converted).model_copy(
        update={"certificate": certificate, **_on_the_device(found, converted.data)}
    )
    ours, theirs = certificate.score, certificate.onnx_score
    if certificate.differing:
        found.warnings.append("model.tflite has scales that model.onnx has not; please report this model.")
    if ours is not None and theirs is not None and abs(ours - theirs) > NOTABLE * abs(theirs):
        found.warnings.append(f"model.tflite scores {ours:.6g} where model.onnx scores {theirs:.6g}.")


def _on_the_device(found: Findings, file: bytes) -> dict[str, object]:
    """What the target tells of the file, where it is not this machine: fields of `Tflite`."""
    host = found.host
    if host.board is None or not host.board.runs_tflite:
        return {}
    try:
        counts = [] if host.counter is None else host.counter([file], found.one_row)
        score = None if found.judged is None else file_there(found, host.board, file)
    except DeviceError as error:
        found.warnings.append(f"model.tflite does not run on {host.target.name}: {error}")
        return {}
    return {
        "instructions": Instructions.of(counts[0]) if counts else None,
        "score_on_device": score,
    }


def _on_samples(found: Findings, proof: Proof) -> Certificate:
    """Both files on the unseen rows, scored; on one row where there are none."""
    if found.test is None or found.metric is None:
        proof.comparison.run([one_batch(found.one_row)])
        return proof.certificate()
    original = found.host.engine.load(serialize(found.source), found.job.threads)
    metrics = [found.metric, *found.others]
    values = score_all(
        metrics if found.host.micro is not None else metrics[:1],
        lambda feeds: dict(proof.comparison.last),
        proof.comparison.through((found.judged or found.test).batches(found.batch)),
        lambda batch: original(batch.feeds),
    )
    if found.host.micro is not None:
        found.on_device = values
    score = None if found.judgement is None else found.judgement.compressed_score
    if found.there is not None:  # the verdict's score is the device's, this one is not
        score = found.there.compressed.score_here
    return proof.certificate(found.metric.finish(values[0]), score)
