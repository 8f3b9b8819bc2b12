"""Fitting a model: rate, optimizer, average, and steps that learn or that fail without harm."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from patchdct import data, scenes, train
from patchdct.build import build_model
from patchdct.train import Average, DivergedError, Schedule, learning_rate
from tests.patchdct import small


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two drawn scenes, as the model takes them."""
    folder = tmp_path_factory.mktemp("scenes")
    path = scenes.write_scenes(folder, images=2, seed=4, size=64)
    cfg = small.config("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none")
    truth = data.read_coco(path, folder / "images")
    return next(iter(data.loader(data.TrainingSet(truth, cfg, seed=1), batch_size=2, seed=1)))


class Line(nn.Module):
    """A model of one weight and one bias that takes a detectron2 batch: loss_a = (2 w + b - 1)^2, loss_b constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.count += 1
        factor = batch[0]["factor"]
        return {"loss_a": factor * (2 * self.weight + self.bias - 1).square().sum(), "loss_b": torch.ones(())}


def lines(factor: float = 1.0) -> list[dict[str, torch.Tensor]]:
    return [{"factor": torch.tensor(factor)}]


def test_learning_rate():
    """Warm-up from lr / warmup to lr, then a cosine that ends at a hundredth of lr and never rises."""
    schedule = Schedule(steps=1000, lr=2e-3, warmup=100)
    rates = [learning_rate(step, schedule) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-5)
    assert rates[49] == pytest.approx(1e-3)
    assert rates[99] == pytest.approx(2e-3)
    assert rates[500] == pytest.approx(2e-3 * 0.505)
    assert rates[750] == pytest.approx(2e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(0.75 * math.pi))))
    assert rates[999] == pytest.approx(2e-5, rel=1e-3)
    assert all(b > a for a, b in itertools.pairwise(rates[:100]))
    assert all(b < a for a, b in itertools.pairwise(rates[99:]))
    assert learning_rate(0, Schedule(steps=10, lr=1.0, warmup=0)) == 1.0
    assert all(0 < learning_rate(step, Schedule(steps=5, lr=1.0, warmup=100)) <= 0.05 for step in range(5))


def test_weight_decay_groups():
    """Decay on biases, norms or Swin's position tables costs accuracy; parameters in no group would never train."""
    model = small.model(small.config("MODEL.BACKBONE.FREEZE_AT", 2))
    model.add_module("attn", nn.Module())
    model.attn.relative_position_bias_table = nn.Parameter(torch.zeros(4, 2))
    groups = train.build_optimizer(model, Schedule(steps=1, lr=1e-3, weight_decay=0.07)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.07, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    assert decayed | spared == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not decayed & spared
    assert "roi_heads.mask_head.predictor.0.weight" in decayed
    assert {name for name in decayed if name.endswith(".bias") or ".norm." in name} == set()
    assert {"attn.relative_position_bias_table", "roi_heads.mask_head.reshape.bias"} <= spared
    assert "backbone.bottom_up.stem.conv1.weight" not in decayed | spared


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
        assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-5)
        assert int(average.state["count"]) == step
    assert float(average.state["weight"]) == pytest.approx(40 - 3, abs=0.1)
    assert float(model.weight.detach()) == 40


def test_fit_reports_each_step():
    """Steps, rates, losses and times as they were, and the weights to keep: the average's where there is one."""
    schedule = Schedule(steps=4, lr=0.1, warmup=2, ema=0.9)
    model, ticks = Line(), itertools.count()
    seen = list(train.fit(model, itertools.repeat(lines()), schedule, clock=lambda: float(next(ticks))))
    assert [progress.step for progress, _ in seen] == [0, 1, 2, 3]
    assert [progress.lr for progress, _ in seen] == [learning_rate(step, schedule) for step in range(4)]
    for progress, _ in seen:
        assert set(progress.losses) == {"loss", "loss_a", "loss_b"}
        assert progress.losses["loss"] == pytest.approx(progress.losses["loss_a"] + 1)
        assert (progress.data_seconds, progress.seconds) == (1, 2)
    assert int(model.count) == 4
    kept = seen[-1][1]
    assert 0 < abs(float(kept["weight"])) < abs(float(model.weight.detach()))
    without = list(train.fit(Line(), itertools.repeat(lines()), Schedule(steps=2, lr=0.1)))
    assert without[-1][1].keys() == kept.keys()


def test_clipped_gradient():
    """A batch with a huge gradient must not throw the weights away: the norm is bounded."""
    schedule = Schedule(steps=1, lr=0.1, clip=1.0)
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train.train_step(model, lines(1e6), optimizer, schedule)
    moved = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).norm()
    assert float(moved) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("factor", "message"),
    [(math.nan, r"the loss is not finite: loss_a nan, loss_b 1"), (math.inf, r"the loss is not finite: loss_a inf")],
)
def test_loss_that_is_not_finite(factor, message):
    """A NaN that reaches the weights ends a training for good; it must stop before, and say which loss it was."""
    model = Line()
    optimizer = train.build_optimizer(model, Schedule(steps=2, lr=0.1))
    train.train_step(model, lines(), optimizer, Schedule(steps=2, lr=0.1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(DivergedError, match=message):
        train.train_step(model, lines(factor), optimizer, Schedule(steps=2, lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gradient_that_is_not_finite():
    """Clipping an infinite gradient makes NaN of every weight, though the loss was finite."""

    class Root(Line):
        def forward(self, batch):
            return {"loss_a": self.weight.abs().sqrt().sum() + self.bias.sum()}

    model = Root()
    optimizer = train.build_optimizer(model, Schedule(steps=1, lr=0.1))
    with pytest.raises(DivergedError, match="the gradient is not finite"):
        train.train_step(model, lines(), optimizer, Schedule(steps=1, lr=0.1))
    assert float(model.weight.detach()) == float(model.bias.detach()) == 0


def test_model_that_diverged(batch):
    """detectron2 raises an error of its own for proposals that are not finite; it is a divergence like the others."""
    model = small.model(small.config()).train()
    with torch.no_grad():
        model.proposal_generator.rpn_head.conv.weight.fill_(torch.nan)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    schedule = Schedule(steps=1, lr=0.1)
    with EventStorage(), pytest.raises(DivergedError, match="Inf/NaN"):
        train.train_step(model, batch, train.build_optimizer(model, schedule), schedule)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), before[name].nan_to_num(7))


def test_two_scenes_by_heart(batch):
    """A model whose losses do not halve on two scenes learns nothing: some part gets no, or a wrong, gradient."""
    torch.manual_seed(2)
    schedule = Schedule(steps=16, lr=5e-3, warmup=3)
    seen = [p.losses for p, _ in train.fit(small.model(small.config()), itertools.repeat(batch), schedule)]
    first, last = ({name: sum(x[name] for x in part) for name in seen[0]} for part in (seen[:3], seen[-3:]))
    assert last["loss"] < 0.5 * first["loss"]
    assert last["loss_mask"] < 0.5 * first["loss_mask"]


def test_mixed_precision(batch):
    """In bf16 the losses stay those of full precision, and the weights stay float32."""
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(2)
        model = build_model(small.config())[0]
        schedule = Schedule(steps=1, lr=1e-3, precision=precision)
        [(progress, state)] = train.fit(model, itertools.repeat(batch), schedule)
        losses[precision] = progress.losses
        assert {tensor.dtype for tensor in state.values()} <= {torch.float32, torch.int64}
    assert losses["bf16"]["loss_mask"] == pytest.approx(losses["fp32"]["loss_mask"], rel=0.02)
