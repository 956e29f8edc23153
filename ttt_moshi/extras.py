"""Packages that some commands need and others do not, and the extra of this package that installs each."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from ttt_moshi.errors import UserError

EXTRAS = {
    "espeakng_loader": "demo",
    "faster_whisper": "annotate",
    "matplotlib": "report",
    "pocketsphinx": "align",
    "onnxruntime": "separate",
    "pyarrow": "parquet",
    "ray": "ray",
    "silero_vad": "separate",
    "speechmos": "dnsmos",
    "tensorboard": "tensorboard",
    "torchao": "int8",
    "wandb": "wandb",
}


class MissingPackageError(UserError):
    """A package of an extra is not installed. The message has the command that installs it."""


def need(package: str, purpose: str) -> ModuleType:
    """Imports a package of an extra.

    Args:
        purpose: what needs it, as the message begins: "made-up speech", "`wandb.project`".

    Raises:
        MissingPackageError: it is not installed.
    """
    if not installed(package):
        raise MissingPackageError(f"{purpose} needs the package {package}: {remedy(package)}")
    return importlib.import_module(package)


def installed(package: str) -> bool:
    """Whether a package of an extra can be imported."""
    return find_spec(package) is not None


def remedy(package: str) -> str:
    """The command that installs a package of an extra."""
    return f"pip install 'ttt-moshi[{EXTRAS[package]}]'"
