"""What values of a model hang on: whether what was worked out for one still holds.

Copies of a model share their tensors and attributes, so these are told apart by identity. A digest stands for all in
front of a value: written down node by node for every value, a chain of n nodes would take n² / 2 entries.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from edgepress.compressor.model import captured


@dataclass(frozen=True)
class Origin:
    """All that some values hang on; equal for models that are equal so far.

    With a body (If, Loop) in front of it a value has an origin that no copy's is equal to.

    Attributes:
        digest: of nodes, names, and the identities of attributes and tensors.
        held: these, so that no other object gets the identity of one as long as the digest is kept.
    """

    digest: bytes
    held: list[object] = field(compare=False, repr=False)


class Origins:
    """Origins of the values of one model, as long as nothing in front of them changes; each node is looked at once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._known: dict[ir.Value, bytes] = {}
        self._held: list[object] = []

    def of(self, *values: ir.Value) -> Origin:
        """The origin of some values together."""
        for value in values:
            self._look(value)
        return Origin(_digest(*(self._known[value] for value in values)), self._held)

    def _look(self, value: ir.Value) -> None:
        stack = [value]
        while stack:
            node = stack[-1].producer()
            reads = [] if node is None else [read for read in self._reads(node) if read not in self._known]
            if reads:
                stack += reads
            else:
                self._note(stack.pop(), node)

    def _reads(self, node: ir.Node) -> Iterator[ir.Value]:
        yield from (value for value in node.inputs if value is not None)
        yield from captured(node, self._graph)

    def _note(self, value: ir.Value, node: ir.Node | None) -> None:
        """Write a value's digest down, once those of all that its node reads are."""
        if node is None:
            self._held.append(value.const_value)
            self._known[value] = _digest(value.name, id(value.const_value))
            return
        attributes = list(node.attributes.data.values())
        self._held += attributes
        places = [None if read is None else self._known[read] for read in node.inputs]
        said = (
            node.domain,
            node.op_type,
            [output.name for output in node.outputs],
            list(map(id, attributes)),
        )
        own = _digest(said, places, [self._known[read] for read in captured(node, self._graph)])
        self._known |= {output: _digest(own, place) for place, output in enumerate(node.outputs)}


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
