"""The one kind of pass: a frozen dataclass whose fields are its recipe entry.

Rules:
    1. Fields are parameters and are never changed; data comes through `Context`, by `bind`.
    2. A pass changes the model in place and says truthfully whether it did.
    3. A site that it leaves alone is a `Skipped`, not an exception.
    4. Values that stay keep their names: a stage after it pairs them with the original's by name.
    5. Inputs and outputs keep name, dtype and shape.
    6. Pairs in fields begin with the name of a site; `leave` holds names, `sites` regular expressions of names;
       a misspelt one is refused before the pass runs (`recipe.check_names`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from edgepress.compressor.context import Context, Skipped, Stream
from edgepress.compressor.errors import UsageError
from edgepress.compressor.sites import site_name

__all__ = ["BoundPass", "Context", "Outcome", "Pass", "Skipped", "Stream", "check_patterns", "site_name"]


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Outcome:
    """What a pass did.

    Attributes:
        modified: whether the model changed at all.
        changed: names of the sites that changed.
        skipped: sites left alone, with the reason.
    """

    modified: bool
    changed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Pass:
    """Base of all passes; subclasses add fields and `apply`."""

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the pass puts behind a site's name to name parts of it."""

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Change `model` in place; needs `context.stream` where the pass uses data."""
        raise TypeError(f"{type(self).__name__} does not say what it does")

    def candidates(self, model: ir.Model) -> set[str]:
        """Names of the nodes that `sites` is matched with: here those that read weights."""
        return {
            site_name(node)
            for node in model.graph
            if any(
                v is not None
                and v.is_initializer()
                and v.dtype in FLOATS
                and v.shape is not None
                and len(v.shape) > 1
                for v in node.inputs
            )
        }

    def bind(self, context: Context) -> "BoundPass":
        """The runnable form, for onnx-ir's pass managers."""
        return BoundPass(self, context)


@dataclass(eq=False)
class BoundPass(ir.passes.InPlacePass):
    """A pass with its data; `outcome` holds what it did after the call."""

    bound: Pass
    context: Context
    outcome: Outcome = field(default_factory=lambda: Outcome(modified=False))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to `model` in place."""
        self.outcome = self.bound.apply(model, self.context)
        return ir.passes.PassResult(model, self.outcome.modified)


def check_patterns(kind: str, patterns: Sequence[str]) -> None:
    """Refuse what is no regular expression.

    Raises:
        UsageError: one of `patterns` does not compile.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{kind}: sites: {pattern!r} is no regular expression: {error}") from error
