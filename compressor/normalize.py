"""The canonical form that every later stage relies on; a step that is not exact is rolled back.

    1. inputs    weights listed among the inputs (old exporters) become constants
    2. functions inlined
    3. constants Constant nodes become initializers
    4. bodies    weights inside of control flow move out of it, where techniques look for them
    5. fold      what depends on constants alone is computed, unless the file would grow
    6. observe   shapes that inference misses (operators that it does not know) are taken from a run
    7. reshape   target shapes computed from the batch size become constants with one -1
    8. identity  Identity and Dropout vanish
    9. affine    BatchNormalization and constant Mul, Add, Sub, Div go into the layer before
   10. unused    nodes and initializers that nothing reads vanish
   11. names     every node gets a unique name
   12. shapes    types and shapes of all values are inferred (a first time before step 1)

Nodes in bodies of control flow and operators of unknown domains keep their meaning and are named in `left_alone`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor.equality import interface_difference
from edgepress.compressor.fold import fold_affine
from edgepress.compressor.fold_constants import fold_constants
from edgepress.compressor.hoist import hoist_constants
from edgepress.compressor.model import CONTROL_FLOW, dims
from edgepress.compressor.passes.base import Skipped, site_name
from edgepress.compressor.shapes import Seen, infer_shapes, missing_shapes, quiet, write_shapes
from edgepress.compressor.sites import constant, taken, unique
from edgepress.compressor.sizes import check_values

KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_LISTS = frozenset({ir.AttributeType.FLOATS, ir.AttributeType.TENSOR})
_NOTHING = "nothing to do"


@dataclass(frozen=True)
class Step:
    """One step of normalisation.

    Attributes:
        name: the step.
        changed: whether it found anything to do.
        kept: whether its result was kept.
        why: what it did, or why it was rolled back.
    """

    name: str
    changed: bool
    kept: bool
    why: str


@dataclass(frozen=True)
class Normalized:
    """A model in canonical form.

    Attributes:
        model: the result; the given model is untouched, tensors are shared.
        steps: every step in order.
        left_alone: nodes that no technique will touch, and why.
    """

    model: ir.Model
    steps: tuple[Step, ...]
    left_alone: tuple[Skipped, ...]


def normalize(
    model: ir.Model,
    check: Callable[[ir.Model], bool] | None = None,
    observe: Callable[[ir.Model], Mapping[str, Seen]] | None = None,
) -> Normalized:
    """Bring a model into canonical form.

    Args:
        model: is not changed.
        check: whether a model still gives the original's outputs on samples; without it steps are trusted.
            See `same_outputs`.
        observe: what shapes a model's values have where inference misses them. See `shapes.seen_shapes`.

    Raises:
        ModelError: a single value takes more memory than there is.
    """
    refused: dict[str, str] = {}
    current, steps = model.clone(), list[Step]()
    infer_shapes(current)  # steps ask for ranks and types; what they change is inferred again at the end
    check_values(current)
    inferred = True

    def shapes(candidate: ir.Model) -> str:
        if inferred:
            return ""
        infer_shapes(candidate)
        return "inferred"

    actions: dict[str, Callable[[ir.Model], str]] = {
        "inputs": _inputs,
        "functions": _functions,
        "constants": _constants,
        "bodies": _bodies,
        "fold": lambda candidate: (shapes(candidate), _fold(candidate))[1],
        "observe": lambda candidate: _observe(candidate, observe),
        "reshape": _reshape,
        "identity": _identity,
        "affine": lambda candidate: _affine(candidate, refused),
        "unused": _unused,
        "names": _names,
        "shapes": shapes,
    }
    candidate: ir.Model | None = None
    for name, action in actions.items():
        candidate = current.clone() if candidate is None else candidate
        step = _attempt(name, action, current, candidate, check)
        steps.append(step)
        if step.kept:
            current, inferred = candidate, False
        if step.changed or step.why != _NOTHING:
            candidate = None  # else it is still what it was, and serves the next step
    check_values(current)
    return Normalized(current, tuple(steps), _left_alone(current, refused))


def _attempt(
    name: str,
    action: Callable[[ir.Model], str],
    before: ir.Model,
    after: ir.Model,
    check: Callable[[ir.Model], bool] | None,
) -> Step:
    """Run one step on `after`, a clone of `before`, and judge it."""
    try:
        with quiet("onnx_ir", "onnxscript"):
            done = action(after)
    except Exception as error:  # a library's optimizer may stumble over any model; the step is optional
        return Step(name, changed=False, kept=False, why=f"rolled back: {type(error).__name__}: {error}")
    if not done:
        return Step(name, changed=False, kept=False, why=_NOTHING)
    if difference := interface_difference(before, after):
        return Step(name, changed=True, kept=False, why=f"rolled back: {difference}")
    if check is not None and not check(after):
        return Step(name, changed=True, kept=False, why="rolled back: the outputs differ on the samples")
    return Step(name, changed=True, kept=True, why=done)


def _inputs(model: ir.Model) -> str:
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    older = model.ir_version < 4  # where every initializer had to be an input
    for value in listed:
        model.graph.inputs.remove(value)
    model.ir_version = max(model.ir_version, 4)
    if older:
        return f"{len(listed)} weights were inputs; IR version raised to 4"
    return f"{len(listed)} weights were inputs" if listed else ""


def _functions(model: ir.Model) -> str:
    count = len(model.functions)
    if count:
        common.InlinePass()(model)
        model.functions.clear()
        infer_shapes(model)
    return f"{count} functions inlined" if count else ""


def _constants(model: ir.Model) -> str:
    before = _nodes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return f"{before - _nodes(model)} Constant nodes lifted" if _nodes(model) != before else ""


def _bodies(model: ir.Model) -> str:
    count = hoist_constants(model)
    return f"{count} weights moved out of control flow" if count else ""


def _nodes(model: ir.Model) -> int:
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))


def _fold(model: ir.Model) -> str:
    before = _nodes(model)
    return f"{before - _nodes(model)} nodes computed or dropped" if fold_constants(model) else ""


def _observe(model: ir.Model, observe: Callable[[ir.Model], Mapping[str, Seen]] | None) -> str:
    """Shapes as they come out of runs; what follows from them is inferred."""
    found = observe(model) if observe is not None and missing_shapes(model) else {}
    if not found:
        return ""
    write_shapes(model, found)
    infer_shapes(model)
    return f"{len(found)} shapes taken from a run"


def _reshape(model: ir.Model) -> str:
    """A target shape with one computed dimension: the number of elements leaves it no choice, so -1."""
    count, names = 0, taken(model)
    for node in model.graph:
        target = node.inputs[1] if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        concat = target.producer() if target is not None else None
        if target is None or concat is None or concat.op_type != "Concat" or concat.graph is not model.graph:
            continue
        sizes: list[int] = []
        for part in concat.inputs:
            known = constant(part)
            if known is not None and known.ndim == 1:
                sizes.extend(int(size) for size in known)
            else:
                sizes.extend([-1] if part is not None and dims(part) == (1,) else [0])
        if sizes.count(-1) != 1 or 0 in sizes:
            continue
        name = unique(f"{target.name}_constant", names)
        value = ir.Value(name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(ir.DataType.INT64))
        value.const_value = ir.tensor(sizes, dtype=ir.DataType.INT64, name=name)
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
        count += 1
    if count:
        common.RemoveUnusedNodesPass()(model)
    return f"{count} target shapes made constant" if count else ""


def _identity(model: ir.Model) -> str:
    count = 0
    for node in list(model.graph):
        source = _passed_on(node)
        if source is None:
            continue
        result = node.outputs[0]
        if result.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not model.graph or source.is_graph_output():
                continue
            name, shape, kind = result.name, result.shape, result.type
            ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            source.name, source.shape, source.type = name, shape, kind
        else:
            ir.convenience.replace_all_uses_with(result, source)
            model.graph.remove(node, safe=True)
        count += 1
    return f"{count} Identity or Dropout nodes dropped" if count else ""


def _passed_on(node: ir.Node) -> ir.Value | None:
    """The operand that a node hands on unchanged at inference, or None."""
    if node.domain not in {"", "ai.onnx"} or node.op_type not in {"Identity", "Dropout"}:
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = constant(node.inputs[2])
        if mode is None or mode.any():
            return None
    return node.inputs[0]


def _affine(model: ir.Model, refused: dict[str, str]) -> str:
    folded = fold_affine(model)
    refused.clear()
    refused.update(folded.refused)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(folded.count.items()))


def _initializers(model: ir.Model) -> int:
    return sum(len(graph.initializers) for graph in (model.graph, *model.graph.subgraphs()))


def _unused(model: ir.Model) -> str:
    before = _nodes(model), _initializers(model)
    common.RemoveUnusedNodesPass()(model)
    for body in model.graph.subgraphs():  # the pass keeps theirs
        for value in list(body.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                body.initializers.pop(value.name or "")
    nodes, weights = before[0] - _nodes(model), before[1] - _initializers(model)
    return f"{nodes} nodes and {weights} initializers dropped" if nodes or weights else ""


def _names(model: ir.Model) -> str:
    names: set[str] = set()
    count = 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        name = unique(site_name(node), names)
        count += name != node.name
        node.name = name
    return f"{count} nodes named" if count else ""


def _left_alone(model: ir.Model, refused: Mapping[str, str]) -> tuple[Skipped, ...]:
    skipped = []
    for node in model.graph:
        site = site_name(node)
        if node.domain not in KNOWN_DOMAINS:
            skipped.append(Skipped(site, f"{node.op_type} is of the unknown domain {node.domain!r}"))
        elif node.domain == "ai.onnx.ml" and any(a.type in _LISTS for a in node.attributes.values()):
            skipped.append(
                Skipped(site, f"{node.op_type} keeps its numbers in attributes, which nothing compresses")
            )
        elif node.op_type in CONTROL_FLOW:
            skipped.append(
                Skipped(site, f"control flow ({node.op_type}): the nodes of its bodies are left alone")
            )
        elif node.op_type == "BatchNormalization":
            why = refused.get(site, "it could not be folded")
            skipped.append(Skipped(site, f"BatchNormalization stays: {why}"))
    return tuple(skipped)
