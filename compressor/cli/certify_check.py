"""`compress certify --check`: a certificate proved again from the two files alone."""

from fractions import Fraction

import click
import numpy as np

from edgepress.compressor.certify import certificate as proofs
from edgepress.compressor.certify import recheck
from edgepress.compressor.certify.certificate import Certificate
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.nodepair import TooHardError
from edgepress.compressor.cli.certify_options import Net, Options
from edgepress.compressor.errors import UsageError
from edgepress.compressor.protocols import Tell
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.fields import parse_record

ROUNDING = 1e-6
"""Share by which a bound that is worked out again may differ from the certificate's: other libraries sum otherwise."""


def checked(original: Net, options: Options, tell: Tell) -> int:
    """Prove a certificate again, from the two files alone."""
    if options.check is None or options.candidate is None:
        raise UsageError("--check without CANDIDATE.", "Name both models.")
    path = options.check / proofs.FILE_NAME if options.check.is_dir() else options.check
    known = parse_record(Certificate, path, what="a certificate")
    candidate = Net.of(options.candidate, options.shapes)
    for net, file in ((original, known.original), (candidate, known.candidate)):
        if net.file.sha256 != file.sha256:
            raise UsageError(
                f"{net.path} is not the {file.name} that the certificate is about.", "Name that file."
            )
    if known.kind == "observed":
        raise UsageError(
            "This certificate rests on observed ranges: there is nothing to prove.", "Certify the box."
        )
    box = Interval(*(np.full((1, *original.program.row), end) for end in (known.box.low, known.box.high)))
    if known.box.sha256 is not None:
        file_of_box = path.parent / proofs.BOX_NAME
        if manifests.sha256_file(file_of_box) != known.box.sha256:
            raise UsageError(
                f"{file_of_box} is not the box of this certificate.", "Keep the two files together."
            )
        box = proofs.load_box(file_of_box, original.program.row)
    tell("bound", 0.0, "")
    exceeded, how = _exceeded(original, candidate, box, known), "by plain intervals in exact arithmetic"
    # Linear forms may claim less than plain intervals tell; plain intervals never less than exact ones.
    final = known.method == "plain" and known.compared == "together"
    if exceeded is None or (exceeded and not final):
        wrong, how = _disproved(original, candidate, box, known)
    else:
        wrong = exceeded
    if not options.quiet:
        click.echo(
            f"Proved again, {how}: no output moves by more than {known.certified_change_max:.6g}."
            if not wrong
            else f"NOT proved: {len(wrong)} outputs may move farther than the certificate says, such as {wrong[0]}."
        )
    return 1 if wrong else 0


def _exceeded(original: Net, candidate: Net, box: Interval, known: Certificate) -> list[str] | None:
    """Outputs that plain intervals find wider than the claims, by other code that never rounds; None if it cannot."""
    if known.arithmetic != "exact" or known.certified_change_max is None:
        return None
    claims = [
        known.certified_change_max,
        *(end for claim in known.outputs for end in (claim.least, claim.most)),
    ]
    if not np.isfinite(claims).all():
        return None
    try:
        found = recheck.changes(original.canonical, candidate.canonical, box)
    except TooHardError:
        return None
    ends = [pair for part in found for pair in zip(*part.fractions(), strict=True)]
    most = Fraction(known.certified_change_max)
    if len(ends) != len(known.outputs):
        return None
    return [
        f"{claim.name}[{claim.index}]"
        for claim, (low, high) in zip(known.outputs, ends, strict=True)
        if low < max(Fraction(claim.least), -most) or min(Fraction(claim.most), most) < high
    ]


def _disproved(original: Net, candidate: Net, box: Interval, known: Certificate) -> tuple[list[str], str]:
    """Outputs whose bound is not reached again; by plain intervals where these suffice, else by linear forms."""
    wrong: list[str] = []
    for tight in (False, True):
        bounds = proofs.bound(
            original.program, candidate.program, box, float32=known.arithmetic == "float32", tight=tight
        )
        again = bounds.rows(original.program.outputs, None)
        if [(o.name, o.index) for o in again] != [(o.name, o.index) for o in known.outputs]:
            raise UsageError("The certificate is about other outputs.", "Certify again.")
        allowed = [(max(-o.least, o.most), o) for o in known.outputs]
        slack = ROUNDING * max((size for size, _ in allowed), default=0.0)
        wrong = [
            f"{now.name}[{now.index}]"
            for now, (_, then) in zip(again, allowed, strict=True)
            if not (now.least >= then.least - slack and now.most <= then.most + slack)  # nor where one is NaN
        ]
        claimed = max((size for size, _ in allowed), default=0.0)
        if known.certified_change_max is None or not claimed <= known.certified_change_max * (1 + ROUNDING):
            wrong = [*wrong, "certified_change_max"]
        if not wrong:
            return (
                [],
                "by linear forms, with the code that made it"
                if tight
                else "by plain intervals, with the code that made it",
            )
    return wrong, ""
