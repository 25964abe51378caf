"""Folders as runs leave them."""

from pathlib import Path

from edgepress.compressor.report import manifest as manifests


def fill(folder: Path, text: str) -> None:
    """What a run leaves: a model and our manifest."""
    (folder / "model.onnx").write_text(text)
    manifests.write(
        manifests.Manifest(
            tool_version="0",
            versions={},
            seed=0,
            options={},
            recipe=(),
            inputs=(),
            files=manifests.hash_files(folder),
        ),
        folder,
    )
