"""The order of samples over steps, workers and loading processes."""

from __future__ import annotations

import itertools
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchdct import data, scenes
from patchdct.errors import DataError
from tests.patchdct import small


def steps(count: int, size: int = 10, *, world: int = 1, step: int = 0, **options: Any) -> list[list[Any]]:
    """What all workers together draw in each of `count` steps, by worker and micro-batch."""
    drawn: list[list[Any]] = [[] for _ in range(count)]
    for rank in range(world):
        batches = iter(data.MicroBatches(size, rank=rank, world=world, step=step, **{"seed": 3, **options}))
        parts = data.shares(options["batch_size"], rank=rank, world=world, micro_batch=options.get("micro_batch"))
        for one in drawn:
            one.append([next(batches) for _ in parts])
    return drawn


def flat(step: list[Any]) -> list[tuple[int, int]]:
    """The samples of a step in the order of their places: place p is that of worker p % world."""
    workers = [list(itertools.chain(*parts)) for parts in step]
    rounds = itertools.zip_longest(*workers)
    return [place for places in rounds for place in places if place is not None]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 12, 33])
def test_every_sample_once_an_epoch(batch_size):
    """However steps and epochs overlap: a sample drawn twice stands for one that is never seen."""
    drawn = list(itertools.chain(*map(flat, steps(60, batch_size=batch_size))))
    epochs = len(drawn) // 10
    for epoch in range(epochs):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == [(epoch, index) for index in range(10)]
    orders = {tuple(index for _, index in drawn[10 * e : 10 * e + 10]) for e in range(epochs)}
    assert len(orders) == epochs
    other = list(itertools.chain(*map(flat, steps(60, batch_size=batch_size, seed=4))))
    assert other != drawn


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [3, 8, 25])
def test_steps_do_not_depend_on_workers(batch_size, micro_batch):
    """A run that goes on with fewer or more workers takes the steps that it would have taken."""
    alone = [flat(step) for step in steps(9, batch_size=batch_size)]
    for world in (1, 2, 3):
        shared = steps(9, batch_size=batch_size, world=world, micro_batch=micro_batch)
        assert [flat(step) for step in shared] == alone
        sizes = [sum(map(len, parts)) for parts in shared[0]]
        assert max(sizes) - min(sizes) <= 1
        late = steps(4, batch_size=batch_size, world=world, step=5, micro_batch=micro_batch)
        assert late == shared[5:]


@pytest.mark.parametrize("places", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3, 4, 20])
def test_micro_batches_are_alike(places, micro_batch):
    """A last one of a single image would leave the device idle; one above the limit does not fit into its memory."""
    parts = data.shares(places, rank=0, world=1, micro_batch=micro_batch)
    assert list(itertools.chain(*parts)) == list(range(places))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= (micro_batch or places)
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-places // (micro_batch or places))


def test_more_workers_than_images():
    """A worker without an image in a step would wait for ever, and the others for it."""
    with pytest.raises(DataError, match=r"^the batch size is 2, less than one image for each of the 3 workers$"):
        data.MicroBatches(9, batch_size=2, seed=1, rank=2, world=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> data.TrainingSet:
    """Five small scenes, of which the third cannot be read."""
    folder = tmp_path_factory.mktemp("scenes")
    truth = data.read_coco(scenes.write_scenes(folder, images=5, seed=2, size=64), folder / "images")
    Path(truth.records[2]["file_name"]).write_bytes(b"no image")
    return data.TrainingSet(truth, small.config(), seed=1)


def batches(
    dataset: Any, count: int, *, workers: int = 0, context: str | None = None, **options: Any
) -> list[list[dict[str, Any]]]:
    order = data.MicroBatches(len(dataset), **{"batch_size": 3, "seed": 1, **options})
    return list(itertools.islice(data.loader(dataset, order, workers=workers, context=context), count))


def assert_equal(found: list[list[dict[str, Any]]], expected: list[list[dict[str, Any]]]) -> None:
    assert [len(batch) for batch in found] == [len(batch) for batch in expected]
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
        assert torch.equal(one["instances"].gt_masks.tensor, other["instances"].gt_masks.tensor)
        assert torch.equal(one["instances"].gt_classes, other["instances"].gt_classes)
        assert (one["file_name"], one["skipped"]) == (other["file_name"], other["skipped"])


def test_loading_processes_change_nothing(dataset):
    """With and without them the samples are the same bit for bit, skipped images included; also from a later step."""
    alone = batches(dataset, 8)
    assert sum(len(sample["skipped"]) for batch in alone for sample in batch) >= 4
    assert_equal(batches(dataset, 8, workers=2), alone)
    assert_equal(batches(dataset, 5, workers=1, step=3), alone[3:])
    halves = [batches(dataset, 8, rank=rank, world=2, workers=rank) for rank in range(2)]
    joined = [[first[0], second[0], first[1]] for first, second in zip(*halves, strict=True)]
    assert_equal(joined, alone)


def test_everything_can_be_sent(dataset):
    """Processes that do not come about by forking get the data set as bytes."""
    loader = data.loader(dataset, data.MicroBatches(len(dataset), batch_size=1, seed=1))
    sent = ForkingPickler.loads(ForkingPickler.dumps(loader.dataset))
    assert_equal([[sent[0, 1]]], [[dataset[0, 1]]])


@pytest.mark.slow
def test_processes_that_are_spawned(dataset):
    """They are what a program with threads and a GPU may have to use; everything must then cross by pickling."""
    assert_equal(batches(dataset, 2, workers=1, context="spawn"), batches(dataset, 2))


def test_a_loader_leaves_random_numbers_alone(dataset):
    """Else a run that goes on would sample other proposals than the one that was never stopped."""
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    np.random.seed(4)
    before = np.random.get_state()[1].copy()
    batches(dataset, 2)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


class Failing(torch.utils.data.Dataset):
    """Fails at one sample of the first epoch."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: tuple[int, int]) -> Any:
        if place == (0, 4):
            raise self.error
        return place


class OutageError(Exception):
    """An error of whoever reads the images."""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [DataError("the bucket is gone"), OutageError("storage does not answer")])
def test_errors_are_sentences(workers, error):
    """torch would put a traceback of another process in front of the sentence that the user is to read."""
    order = data.MicroBatches(6, batch_size=1, seed=1)
    loader = data.loader(Failing(error), order, workers=workers, errors=(DataError, OutageError))
    seen: list[Any] = []
    with pytest.raises(type(error)) as caught:
        seen.extend(place for [place] in loader)
    assert str(caught.value) == str(error)
    assert (0, 4) not in seen
    places = [place for [place] in itertools.islice(order, 6)]
    assert seen == places[: places.index((0, 4))]
