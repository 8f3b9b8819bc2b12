"""What the user of a model can get wrong. Each message is one sentence that names the file or key."""

from __future__ import annotations


class ModelError(ValueError):
    """A model config or checkpoint that cannot be used."""


class MissingDetectron2Error(ModelError, ImportError):
    """detectron2 is not installed, or does not fit the installed PyTorch."""


class DataError(ValueError):
    """Annotations or images that cannot be trained on or evaluated against."""
