"""onnxruntime on the CPU, with its default kernels: what is judged here is what users get.

The thread pools do not spin: on a shared machine a spinning pool makes tenfold outliers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike, fspath

import onnxruntime as ort

from edgepress.runtime.engines.base import Array, Feeds, InPlace, Port
from edgepress.runtime.record import EngineError

_MESSAGE_LIMIT = 300
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_SILENT = 4  # errors come back as exceptions; the engine's own log of them would only repeat them on stderr


class OrtRunner:
    """A model loaded by onnxruntime.

    Attributes:
        output_names: all outputs, in the model's order.
    """

    def __init__(self, session: ort.InferenceSession, where: str) -> None:
        self._session = session
        self._where = where
        self.output_names = tuple(port.name for port in session.get_outputs())

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs that must be fed, in the model's order."""
        return tuple(Port(port.name, port.type, tuple(port.shape)) for port in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs, in the model's order."""
        return tuple(Port(port.name, port.type, tuple(port.shape)) for port in self._session.get_outputs())

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of `inputs`."""
        return tuple(port.name for port in self._session.get_inputs())

    def __call__(self, feeds: Feeds, *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: one array per input, by name; dtypes and fixed dimensions must fit.
            outputs: names of the outputs wanted; None means all.

        Returns:
            Output name → array, in the order asked for.

        Raises:
            EngineError: the feeds do not fit, or the engine fails.
        """
        names = list(self.output_names if outputs is None else outputs)
        if not names:  # the engine would take an empty list for "all"
            return {}
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            raise EngineError(f"onnxruntime cannot run {self._where}: {shorten(str(error))}") from error
        return dict(zip(names, values))

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """The engine's own call on these feeds, for timing; it raises the engine's own errors."""
        return partial(self._session.run, list(self.output_names), dict(feeds))


class Profiled(OrtRunner):
    """A model whose nodes are timed while it runs."""

    def end(self) -> str:
        """Write what was seen so far, and return where."""
        return str(self._session.end_profiling())


class OrtEngine:
    """onnxruntime's CPU provider.

    Attributes:
        name: `onnxruntime`.
        version: its release.
    """

    def __init__(self, *, lean: bool = False) -> None:
        """Choose how weights are held.

        Args:
            lean: where they lie, without a copy in the kernels' own order: slower, and in little memory.
        """
        self.name = "onnxruntime"
        self.version: str = ort.__version__
        self._lean = lean

    def load(
        self, model: bytes | PathLike[str] | InPlace, threads: int = 1, *, optimise: bool = True
    ) -> OrtRunner:
        """Load a model.

        Args:
            model: serialized, or a file (a must above 2 GB or with external data), or its graph and where its weights
                lie.
            threads: threads that one operator may use.
            optimise: False leaves out every graph optimisation: quicker to load, each node runs as written.

        Raises:
            EngineError: the engine refuses the model.
        """
        options = _options(threads)
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self._lean:
            options.add_session_config_entry("session.disable_prepacking", "1")
        return OrtRunner(*_session(model, options))

    def profiled(self, model: bytes | PathLike[str], prefix: str, threads: int = 1) -> Profiled:
        """Load a model so that its nodes are timed; raises as `load` does.

        Args:
            model: as for `load`.
            prefix: of the path where the trace will lie.
            threads: as for `load`.
        """
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = prefix
        return Profiled(*_session(model, options))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _SILENT
    return options


def _session(
    model: bytes | PathLike[str] | InPlace, options: ort.SessionOptions
) -> tuple[ort.InferenceSession, str]:
    """The loaded model, and what to call it."""
    if isinstance(model, InPlace):
        options.add_session_config_entry(_WEIGHTS_FOLDER, model.weights_folder)
        model = model.graph
    where = "the model" if isinstance(model, bytes) else fspath(model)
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else fspath(model),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:
        raise EngineError(f"onnxruntime cannot load {where}: {shorten(str(error))}") from error
    return session, where


def shorten(message: str) -> str:
    """What an onnxruntime message tells a user: without codes, source lines and signatures."""
    text = " ".join(message.split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = text.replace(" Please fix either the inputs/outputs or the model.", "")
    source = re.search(r"/\S+\.(?:cc|cpp|h|hpp):\d+ ", text)
    if source:
        text = text[: source.start()] + _after_signature(text[source.end() :])
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"


def _after_signature(text: str) -> str:
    """What follows the C++ signature that `text` starts with, and the condition that failed there."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            rest = re.sub(r"^ (?:const )?(?:\[with [^\]]*\] )?", "", text[position + 1 :])
            return re.sub(r"^[^.]* was false\. ", "", rest) or text
    return text
