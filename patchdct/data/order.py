"""Which samples make a step, who loads them, and how they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from patchdct.errors import DataError


def shares(batch_size: int, *, rank: int, world: int, micro_batch: int | None) -> tuple[tuple[int, ...], ...]:
    """The places 0 .. batch_size - 1 of a step that one worker takes, in micro-batches.

    Place p is that of worker p % world. Micro-batches have at most `micro_batch` places, and nearly the same number.

    Raises:
        DataError: there are more workers than places.

    >>> shares(7, rank=0, world=2, micro_batch=3), shares(7, rank=1, world=2, micro_batch=None)
    (((0, 2), (4, 6)), ((1, 3, 5),))
    """
    if batch_size < world:
        raise DataError(f"the batch size is {batch_size}, less than one image for each of the {world} workers")
    places = range(rank, batch_size, world)
    parts = -(-len(places) // (micro_batch or len(places)))
    cuts = [len(places) * part // parts for part in range(parts + 1)]
    return tuple(tuple(places[start:end]) for start, end in pairwise(cuts))


class MicroBatches(Sampler[list[tuple[int, int]]]):
    """The micro-batches of one worker as lists of (epoch, index), step after step without an end.

    Each epoch has every sample once, shuffled by (seed, epoch); steps follow each other through the epochs.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        step: int = 0,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        """Begin at a step.

        Args:
            size: how many samples an epoch has.
            batch_size: how many samples a step has, over all workers.
            seed: of the order.
            step: the first one.
            rank: which worker this is.
            world: how many there are.
            micro_batch: see `shares`.

        Raises:
            DataError: see `shares`.
        """
        self._size, self._batch_size, self._seed, self._step = size, batch_size, seed, step
        self._shares = shares(batch_size, rank=rank, world=world, micro_batch=micro_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        @lru_cache(maxsize=2)
        def order(epoch: int) -> npt.NDArray[np.int64]:
            return np.random.default_rng((self._seed, epoch)).permutation(self._size)

        for step in count(self._step):
            for places in self._shares:
                positions = (divmod(step * self._batch_size + place, self._size) for place in places)
                yield [(epoch, int(order(epoch)[position])) for epoch, position in positions]


def loader(
    dataset: Dataset[dict[str, Any]],
    batches: MicroBatches,
    *,
    workers: int = 0,
    context: str | None = None,
    errors: tuple[type[Exception], ...] = (DataError,),
) -> DataLoader[list[dict[str, Any]]]:
    """The samples of one worker's micro-batches, as an endless iterable of lists.

    Args:
        dataset: maps (epoch, index) to samples, as `TrainingSet` does.
        batches: which of them, and in what order.
        workers: processes that load ahead; 0 loads when asked. What is loaded is the same.
        context: how these are started: fork, spawn, forkserver; None as is usual on the system.
        errors: exceptions that come out of such a process as they were raised; others have its traceback for a message.
    """
    return _Loader(
        _Guarded(dataset, errors),
        batch_sampler=batches,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        generator=torch.Generator(),  # else each loader would draw from torch's global one
    )


class _Guarded(Dataset[Any]):
    """A data set whose errors are values, as torch sends those unchanged from process to process."""

    def __init__(self, dataset: Dataset[dict[str, Any]], errors: tuple[type[Exception], ...]) -> None:
        self._dataset, self._errors = dataset, errors

    def __getitem__(self, place: Any) -> Any:
        try:
            return self._dataset[place]
        except self._errors as error:
            return error


class _Loader(DataLoader[Any]):
    """Raises the errors of `_Guarded`."""

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        for batch in super().__iter__():
            for sample in batch:
                if isinstance(sample, Exception):
                    raise sample
            yield batch
