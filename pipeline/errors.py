"""What can go wrong, as a tree.

Each message is one sentence for a person: it names the file or key, what was wrong with it and what is accepted.

    LabelingError
        UserError          the user's input was refused; the command exits 2            (also a ValueError)
        ImageError         one image cannot be used; its row is quarantined
        ShardError         one shard cannot be read, now or later; it is reported and the run goes on
        RunError           would hit every shard alike; the run stops at once
        StoreError         storage did not do what was asked, after its retries
            NotFoundError      no such object, bucket or file
            AccessError        credentials or permissions do not suffice
            UnreachableError   the endpoint does not answer
            ChangedError       the object was replaced while it was read

Ray rebuilds an exception in another process from `args` alone, so none of these has an `__init__` of its own.
"""

from __future__ import annotations


class LabelingError(Exception):
    """Base of all errors that this package raises on purpose."""


class UserError(LabelingError, ValueError):
    """The user's input (a config, a URI, a checkpoint, a run) was refused."""


class ImageError(LabelingError):
    """One image cannot be used. The message is `reason: detail` with `reason` one of `records.REASONS`."""


class ShardError(LabelingError):
    """One shard cannot be read, and trying again would not help."""


class RunError(LabelingError):
    """An error that every shard would meet, such as a worker that cannot start."""


class StoreError(LabelingError):
    """Object storage did not do what was asked, after its retries."""


class NotFoundError(StoreError):
    """No such object, bucket or file."""


class AccessError(StoreError):
    """The credentials are wrong or do not allow the operation."""


class UnreachableError(StoreError):
    """The storage endpoint does not answer."""


class ChangedError(StoreError):
    """The object was replaced while it was being read, or since it was planned."""
