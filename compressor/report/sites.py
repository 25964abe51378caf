"""Cost by layer, before and after, and what was done to each."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepress.compressor.cost import NodeCost, node_costs
from edgepress.compressor.job import Findings
from edgepress.compressor.model import parameter_tensors
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.base import site_name
from edgepress.compressor.passes.constants import packed
from edgepress.compressor.passes.low_rank import CORE, INNER
from edgepress.compressor.passes.parts import COPIES
from edgepress.compressor.passes.separable import DEPTHWISE
from edgepress.compressor.predict import computed_at_load
from edgepress.compressor.report.record import SiteCost, SiteRow
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.sites import int_attribute

_UNPACKING = frozenset({"DequantizeLinear", "Cast", "Mul"})
_PARTS = (INNER, CORE, DEPTHWISE, COPIES)
"""What passes append to a site's name for the nodes that it becomes."""


def site_rows(found: Findings, model: ir.Model, recipe: Sequence[Pass]) -> list[SiteRow]:
    """Cost by site, before and after; a site that was split is the sum of its parts.

    Args:
        found: by the session, for the normalised original.
        model: the result, its nodes still named.
        recipe: what made it.
    """
    engine, target = found.host.engine, found.host.target
    parts: dict[str, list[NodeCost]] = {}
    names = {site_name(node) for node in found.normalized.model.graph}
    for cost in node_costs(model, shapes_in_one_run(model, engine, found.one_row), target):
        parts.setdefault(origin_of(cost.name, names), []).append(cost)
    stored = _weights_by_node(model)
    rows = []
    for cost in node_costs(found.normalized.model, found.shapes, target):
        if not cost.macs:
            continue
        now = parts.get(cost.name, [])
        rows.append(
            SiteRow(
                name=cost.name,
                op=cost.op,
                before=_sum([cost], {}),
                after=_sum(now, stored) if now else None,
                treatment=_treatment(
                    cost, now, recipe, {stored[part.name].bits for part in now if part.macs}
                ),
            )
        )
    return rows


def origin_of(name: str, known: Collection[str]) -> str:
    """The original's node of which a node is a part, or itself.

    Args:
        name: of a node.
        known: the original's nodes.
    """
    while name not in known:
        shorter = next((name.removesuffix(end) for end in _PARTS if name.endswith(end)), name)
        if shorter == name:
            break
        name = shorter
    return name


@dataclass
class Held:
    """Constants of one node as the file holds them.

    Attributes:
        parameters: how many.
        bytes: what they take.
        bits: of each of the largest of them.
        largest: how many that has.
    """

    parameters: int = 0
    bytes: int = 0
    bits: int = 32
    largest: int = 0

    def add(self, count: int, size: int, bits: int) -> None:
        """Count one more constant."""
        self.parameters, self.bytes = self.parameters + count, self.bytes + size
        if count > self.largest:
            self.largest, self.bits = count, bits


def _sum(parts: Sequence[NodeCost], stored: dict[str, Held]) -> SiteCost:
    """Several nodes as one; `stored` has parameters and bytes of nodes whose weights are packed."""
    weights = [stored.get(part.name, Held(part.parameters, part.weight_bytes)) for part in parts]
    return SiteCost(
        parameters=sum(held.parameters for held in weights),
        bytes=sum(held.bytes for held in weights),
        macs=sum(part.macs for part in parts),
        latency_ns=sum(part.latency_ns for part in parts),
    )


def _weights_by_node(model: ir.Model) -> dict[str, Held]:
    """Each node's constants, seen through the nodes that only unpack them."""
    found, at_load = {}, computed_at_load(model)
    for node in model.graph:
        held = found[site_name(node)] = Held()
        stack = [value for value in node.inputs if value is not None]
        if (blocks := in_blocks(node)) is not None:
            count, bits = blocks
            held.add(count, sum(v.const_value.nbytes for v in stack if v.const_value is not None), bits)
            continue
        while stack:
            value = stack.pop()
            maker, tensor = value.producer(), value.const_value
            if maker is not None and (what := packed(maker)) is not None:
                count, bits, constants = what
                held.add(
                    count, sum(c.const_value.nbytes for c in constants if c.const_value is not None), bits
                )
            elif tensor is not None:
                held.add(tensor.size, tensor.nbytes, tensor.dtype.bitwidth)
            elif maker is not None and maker.op_type in _UNPACKING and maker in at_load:
                stack += [each for each in maker.inputs if each is not None]
    return found


def in_blocks(node: ir.Node) -> tuple[int, int] | None:
    """How many weights a MatMulNBits has, of what bits; None for other nodes."""
    if node.op_type != "MatMulNBits":
        return None
    inputs, outputs, bits = (int_attribute(node, name, 0) for name in ("K", "N", "bits"))
    return inputs * outputs, bits


def _treatment(cost: NodeCost, parts: Sequence[NodeCost], recipe: Sequence[Pass], bits: set[int]) -> str:
    """What was done to a site, in words; `bits` are those of its parts' weights."""
    words = []
    for step in recipe:
        width = dict(getattr(step, "widths", ())).get(cost.name)
        rank = dict(getattr(step, "ranks", ())).get(cost.name)
        words += [f"{width} channels"] if width else []
        words += [f"rank {rank}"] if rank else []
    structure = bool(words)
    few = " and ".join(str(each) for each in sorted(bits))
    arithmetic = any(s.kind == "quantize" and cost.name not in getattr(s, "leave", ()) for s in recipe)
    arithmetic |= any(part.op == "MatMulInteger" for part in parts)
    if arithmetic and max(bits, default=32) <= 8:
        words.append(
            "8-bit arithmetic" + (f" on weights stored in {few} bits" if min(bits, default=8) < 8 else "")
        )
    elif min(bits, default=32) < 32:
        words.append(f"weights stored in {few} bits")
    if parts and not structure and sum(part.macs for part in parts) < cost.macs:
        words.insert(0, "split" if sum(part.macs > 0 for part in parts) > 1 else "fewer inputs")
    return ", ".join(words) or "as it was"


def scales(at_load: Iterable[ir.Node]) -> int:
    """Scales of stored weights: like those of a DequantizeLinear, they are no parameters of the net."""
    found: dict[str, int] = {}
    for node in at_load:
        makers = [maker for value in node.inputs if value is not None and (maker := value.producer())]
        if node.op_type == "Mul" and any(m.op_type == "Cast" or packed(m) is not None for m in makers):
            for value in node.inputs:
                if value is not None and value.const_value is not None:
                    found[value.name or ""] = value.const_value.size
    return sum(found.values())


def packed_away(model: ir.Model, at_load: Iterable[ir.Node]) -> int:
    """How many more weights there are than constants that hold them, several to a word."""
    found = [what for node in at_load if (what := packed(node)) is not None]
    words = {value.name for _, _, constants in found for value in constants}
    count = sum(count for count, _, _ in found)
    for node in model.graph:
        weights = node.inputs[1] if (blocks := in_blocks(node)) is not None else None
        if blocks is not None and weights is not None and weights.name not in words:
            words, count = words | {weights.name}, count + blocks[0]
    return count - sum(tensor.size for name, tensor in parameter_tensors(model) if name in words)
