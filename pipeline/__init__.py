"""From images in object storage to committed instance masks."""

__version__ = "0.2.0"
