"""The step and what it goes on from: it learns, fails without harm, and can be taken up after any of its like."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from patchdct import checkpoint, data, scenes
from patchdct.build import build_model
from patchdct.schedule import learning_rate
from patchdct.train import Average, DivergedError, Trainer
from tests.patchdct import small
from tests.patchdct.lines import Line, parameters, samples, schedule


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two drawn scenes, as the model takes them."""
    folder = tmp_path_factory.mktemp("scenes")
    path = scenes.write_scenes(folder, images=2, seed=4, size=64)
    cfg = small.config("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none")
    truth = data.read_coco(path, folder / "images")
    samples = data.TrainingSet(truth, cfg, seed=1, read=read_rgb)
    return next(iter(data.loader(samples, data.MicroBatches(len(samples), batch_size=2, seed=1))))


def read_rgb(uri):
    from PIL import Image

    return np.asarray(Image.open(uri).convert("RGB"))


def model_trainer(cfg=None, **changes):
    torch.manual_seed(2)
    plan = schedule(**{"batch_size": 2, "warmup": 3, "clip": 1.0, "lr": 5e-3, "weight_decay": 0.05, **changes})
    return Trainer(small.model(cfg or small.config()), plan, seed=3)


def test_average():
    """A moving average with a short horizon at first, so that the start is soon forgotten; integers are copied."""
    model = Line()
    average = Average(model, decay=0.75)
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
            model.count.fill_(step)
        average.update(model, step)
        decay = min(0.75, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert float(average.model.weight) == pytest.approx(expected, rel=1e-5)
        assert int(average.model.count) == step
    assert float(average.model.weight) == pytest.approx(40 - 3, abs=0.1)
    assert float(model.weight.detach()) == 40


def test_a_step_says_what_it_did():
    """The log would show another loss, rate or step than the one that was taken."""
    trainer = Trainer(Line(), schedule(batch_size=2, warmup=2), seed=1)
    for step in range(3):
        taken = trainer.run([samples(1.0, 3.0)])
        assert taken.step == step
        assert trainer.step == step + 1
        assert taken.lr == learning_rate(step, trainer.schedule)
        assert set(taken.terms) == {"loss_a", "loss_b"}
        assert taken.loss == pytest.approx(sum(taken.terms.values()))
        assert taken.terms["loss_b"] == pytest.approx(1)
        assert taken.grad_norm > 0
    assert int(trainer.model.count) == 3


def test_what_is_stored_is_the_average():
    """With an average, its weights are measured and stored; without, the model's own."""
    trainer = Trainer(Line(), schedule(ema=0.9), seed=1)
    for _ in range(4):
        trainer.run([samples(1.0)])
    assert 0 < abs(float(trainer.weights.weight)) < abs(float(trainer.model.weight.detach()))
    plain = Trainer(Line(), schedule(), seed=1)
    assert plain.weights is plain.model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_micro_batches_add_up(optimizer):
    """A batch that is cut, evenly or not, would weigh its parts wrongly and train another model."""
    ends = []
    for cuts in ([5], [2, 3], [1, 1, 1, 1, 1]):
        trainer = Trainer(Line(), schedule(batch_size=5, optimizer=optimizer), seed=1)
        all_samples, start, batches = samples(1.0, 0.5, 2.0, 4.0, 0.1), 0, []
        for cut in cuts:
            batches.append(all_samples[start : start + cut])
            start += cut
        for _ in range(3):
            taken = trainer.run(batches)
        ends.append([taken.loss, *parameters(trainer)])
    # The noise of a forward pass, 1 % of the loss, differs from cut to cut.
    np.testing.assert_allclose(ends[1], ends[0], rtol=0.02)
    np.testing.assert_allclose(ends[2], ends[0], rtol=0.02)


def test_clipped_gradient():
    """A batch with a huge gradient must not throw the weights away: the norm is bounded."""
    trainer = Trainer(Line(), schedule(clip=1.0, lr=1.0, optimizer="sgd", momentum=0.0), seed=1)
    taken = trainer.run([samples(1e6)])
    assert taken.grad_norm > 1e5
    assert math.hypot(*parameters(trainer)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_loss_that_is_not_finite(factor):
    """A NaN that reaches the weights ends a training for good; it must stop before, and say where it came from."""
    trainer = Trainer(Line(), schedule(batch_size=3), seed=1)
    trainer.run([samples(1.0, 1.0, 1.0)])
    before = parameters(trainer)
    good, bad = samples(1.0, 1.0)[:1], [{"factor": factor, "file_name": "bad.jpg"}]
    with pytest.raises(
        DivergedError, match=rf"^the loss is not finite at step 2 \(loss_a {factor}\); the images: bad.jpg$"
    ):
        trainer.run([good, bad, good])
    assert parameters(trainer) == before
    assert trainer.step == 1


def test_gradient_that_is_not_finite():
    """Clipping an infinite gradient makes NaN of every weight, though the loss was finite."""

    class Root(Line):
        def forward(self, batch):
            return {"loss_a": self.weight.abs().sqrt().sum() + self.bias.sum()}

    trainer = Trainer(Root(), schedule(clip=1.0), seed=1)
    with pytest.raises(DivergedError, match=r"the gradient is not finite at step 1; the images of its batch: 0\.jpg"):
        trainer.run([samples(1.0)])
    assert parameters(trainer) == [0, 0]


def test_model_that_diverged(batch):
    """detectron2 raises an error of its own for proposals that are not finite; it is a divergence like the others."""
    trainer = model_trainer()
    with torch.no_grad():
        trainer.model.proposal_generator.rpn_head.conv.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"not finite at step 1 .*scene|not finite at step 1 .*\.jpg|\.png"):
        trainer.run([batch])


def test_float16_lets_an_overflow_pass():
    """A scale that float16 cannot hold is lowered and the step is left out; the training goes on."""
    trainer = Trainer(Line(), schedule(precision="fp16"), seed=1)
    first = trainer.run([samples(1.0)])
    before = parameters(trainer)
    overflow = trainer.run([samples(1e34)])  # times the scale of 2^16 beyond float32
    assert math.isfinite(overflow.loss)
    assert not math.isfinite(overflow.grad_norm)
    assert parameters(trainer) == before
    last = trainer.run([samples(1.0)])
    assert math.isfinite(first.grad_norm + last.grad_norm)
    assert parameters(trainer) != before
    assert trainer.step == 3


def test_two_scenes_by_heart(batch):
    """A model whose losses do not halve on two scenes learns nothing: some part gets no, or a wrong, gradient."""
    trainer = model_trainer(steps=16)
    seen = [trainer.run([batch]) for _ in range(16)]
    first, last = (sum(x.loss for x in part) for part in (seen[:3], seen[-3:]))
    assert last < 0.5 * first
    first, last = (sum(x.terms["loss_mask"] for x in part) for part in (seen[:3], seen[-3:]))
    assert last < 0.5 * first


def test_mixed_precision(batch):
    """In bf16 the losses stay those of full precision, and the weights stay float32."""
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = model_trainer(precision=precision, steps=1)
        losses[precision] = trainer.run([batch]).terms
        assert {tensor.dtype for tensor in trainer.weights.state_dict().values()} <= {torch.float32, torch.int64}
    assert losses["bf16"]["loss_mask"] == pytest.approx(losses["fp32"]["loss_mask"], rel=0.02)


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"optimizer": "sgd"}, {"precision": "bf16"}])
def test_resumed_to_the_bit(batch, tmp_path, changes):
    """A training that died must end with the weights that it would have had: storage keeps all of its state."""
    undisturbed = model_trainer(**changes)
    losses = [undisturbed.run([batch]).loss for _ in range(4)]

    dying = model_trainer(**changes)
    assert [dying.run([batch]).loss for _ in range(2)] == losses[:2]
    checkpoint.save_state(tmp_path / "state.pth", dying.state())

    torch.manual_seed(99)
    resumed = Trainer(build_model(small.config())[0], dying.schedule, seed=3)
    resumed.load_state(checkpoint.read_state(tmp_path / "state.pth"))
    assert resumed.step == 2
    assert [resumed.run([batch]).loss for _ in range(2)] == losses[2:]
    ends = resumed.weights.state_dict()
    for name, tensor in undisturbed.weights.state_dict().items():
        assert torch.equal(tensor, ends[name]), name


def test_the_seed_counts(batch):
    """Two seeds that draw the same proposals would make the spread over seeds too small."""
    ends = []
    for seed in (3, 3, 4):
        torch.manual_seed(2)
        trainer = Trainer(build_model(small.config())[0], schedule(batch_size=2, lr=5e-3), seed=seed)
        ends.append([trainer.run([batch]).loss for _ in range(2)])
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def in_processes(folder, world, *factors, steps=3):
    """What each of so many processes says, that train together on a batch of these factors."""
    words = [sys.executable, "-m", "tests.patchdct.lines", str(folder)]
    numbers = [str(number) for number in (world, steps, *factors)]
    workers = [subprocess.Popen([*words, str(rank), *numbers]) for rank in range(world)]
    assert [worker.wait(120) for worker in workers] == [0] * world
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def test_two_workers_train_the_model_of_one(tmp_path):
    """Gradients that are not averaged with the weight of each worker's share would train another model."""
    factors = (1.0, 0.5, 2.0, 4.0, 0.1)
    trainer = Trainer(Line(), schedule(batch_size=5, optimizer="sgd"), seed=1)
    for _ in range(3):
        taken = trainer.run([samples(*factors)])
    one, two = in_processes(tmp_path, 2, *factors)
    assert one == two
    np.testing.assert_allclose(one["parameters"], parameters(trainer), rtol=0.02)
    assert one["loss"] == pytest.approx(taken.loss, rel=0.02)


def test_all_workers_stop_together(tmp_path):
    """If only the worker with the bad batch stopped, the others would wait for it for ever."""
    one, two = in_processes(tmp_path, 2, 1.0, math.nan, 1.0)
    assert one == two == {"error": "the loss is not finite at step 1 (loss_a nan); the images: 1.jpg"}


def test_all_workers_name_the_same_images(tmp_path):
    """Who looks for the image behind an infinite gradient must not be shown one worker's half of the batch."""
    one, two = in_processes(tmp_path, 2, 1.0, 3e38)  # a finite loss, whose slope is not
    assert one == two == {"error": "the gradient is not finite at step 1; the images of its batch: 0.jpg, 1.jpg"}


def test_nothing_else_draws_the_numbers():
    """A step must not depend on what else of the process has drawn random numbers."""
    losses = []
    for draws in (0, 7):
        trainer = Trainer(Line(), schedule(), seed=1)
        trainer.run([samples(1.0)])
        torch.rand(draws)
        losses.append(trainer.run([samples(1.0)]).loss)
    assert losses[0] == losses[1]


def test_frozen_parts_stay(batch):
    """Stages that the config freezes must not move, in the average neither."""
    trainer = model_trainer(small.config("MODEL.BACKBONE.FREEZE_AT", 2), ema=0.5)
    before = {name: tensor.clone() for name, tensor in trainer.weights.state_dict().items()}
    trainer.run([batch])
    after = trainer.weights.state_dict()
    stem = [name for name in before if name.startswith("backbone.bottom_up.stem")]
    assert stem
    assert all(torch.equal(before[name], after[name]) for name in stem)
    assert not torch.equal(before["backbone.fpn_output2.weight"], after["backbone.fpn_output2.weight"])
    assert isinstance(trainer.model, nn.Module)
