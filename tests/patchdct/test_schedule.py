"""From SOLVER and what the user sets to a schedule, its rates and its optimizer; the shipped configs of trainings."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from detectron2 import solver as detectron2_solver
from detectron2.modeling import build_backbone
from torch import nn

from patchdct import data
from patchdct.build import build_model
from patchdct.config import check_config, load_config
from patchdct.errors import ModelError
from patchdct.schedule import Schedule, build_optimizer, describe_shares, learning_rate, resolve
from pipeline.config import TrainConfig, load
from tests.patchdct import small

ROOT = Path(__file__).resolve().parents[2]
SHORT, LONG = (60_000, 80_000), (210_000, 250_000)
COCO, CITY = tuple(range(640, 801, 32)), tuple(range(800, 1025, 32))

# The authors' table: model config, steps, milestones, batch, lr, weight decay, optimizer, precision, training sizes.
PUBLISHED = {
    "coco_r50": ("r50_1x", 90_000, SHORT, 16, 0.02, 1e-4, "sgd", "fp32", COCO),
    "coco_r50_2stage": ("r50_1x_2stage", 90_000, SHORT, 16, 0.02, 1e-4, "sgd", "fp32", COCO),
    "coco_r101": ("r101_3x", 270_000, LONG, 16, 0.02, 1e-4, "sgd", "fp32", COCO),
    "coco_rx101": ("rx101_3x", 270_000, LONG, 16, 0.02, 1e-4, "sgd", "fp32", COCO),
    "coco_swinb": ("swinb_3x", 270_000, LONG, 16, 1e-4, 0.05, "adamw", "bf16", tuple(range(480, 801, 32))),
    "cityscapes_r50": ("r50_city_1x", 24_000, (18_000,), 8, 0.01, 1e-4, "sgd", "fp32", CITY),
    "cityscapes_r50_fine": ("r50_city_1x_fine", 24_000, (18_000,), 8, 0.01, 1e-4, "sgd", "fp32", CITY),
}


def published(name="r50_1x", *overrides):
    return load_config(small.CONFIGS / f"patchdct_{name}.yaml", [str(word) for word in overrides])


def shipped(name, *settings):
    """A config of configs/train: its model config, and the schedule that comes of both."""
    config = load(TrainConfig, str(ROOT / "configs" / "train" / f"{name}.yaml"), settings)
    cfg = load_config(ROOT / config.model.config, config.model.overrides)
    return config, cfg, resolve(cfg, **asdict(config.schedule))


def parameters(optimizer, model):
    """What each parameter is trained with: name -> (weight decay, rate as a multiple of the schedule's)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group["lr_factor"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_training(name):
    """A shipped config that trains by other numbers than the published ones, or that does not load at all."""
    model, steps, milestones, batch, lr, weight_decay, optimizer, precision, sizes = PUBLISHED[name]
    config, cfg, (schedule, said) = shipped(name)
    check_config(cfg)
    assert config.model.config == f"configs/model/patchdct_{model}.yaml"
    assert config.run.name == name
    assert schedule == Schedule(
        steps=steps,
        batch_size=batch,
        lr=lr,
        optimizer=optimizer,
        momentum=0.9,
        warmup=1000,
        warmup_factor=0.001,
        milestones=milestones,
        gamma=0.1,
        cosine_end=0.0,
        weight_decay=weight_decay,
        precision=precision,
    )
    assert len(said) == (precision == "bf16")
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == sizes
    assert (config.data.train_sets[0].name == "cityscapes") == ("city" in name)
    assert isinstance(config.run.workers, int)
    assert batch % config.run.workers == 0


@pytest.mark.parametrize(("name", "steps", "lr", "warmup"), [("demo", 2500, 8e-4, 100), ("demo_fine", 1400, 6e-4, 50)])
def test_demo_training(name, steps, lr, warmup):
    """The commands that are said to have made the shipped checkpoint must train as they did: rates, decay, clipping."""
    _, _, (schedule, said) = shipped(name)
    assert (schedule.steps, schedule.batch_size, schedule.optimizer) == (steps, 6, "adamw")
    assert (schedule.weight_decay, schedule.clip, schedule.precision, schedule.ema) == (0.05, 1.0, "bf16", 0.998)
    assert said == ()
    for step in (0, 1, warmup - 1, warmup, warmup + 1, steps // 2, steps - 1):
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        expected = lr * min(1.0, (step + 1) / warmup) * (cosine if step >= warmup else 1.0)
        assert learning_rate(step, schedule) == pytest.approx(expected, rel=1e-12)


def test_demo_weight_decay():
    """The demo spares vectors (biases, norms) from weight decay, and decays all else."""
    _, cfg, (schedule, _) = shipped("demo")
    model = build_model(cfg)[0]
    decays = {name: decay for name, (decay, _) in parameters(build_optimizer(model, schedule), model).items()}
    assert decays == {name: 0.05 if p.ndim > 1 else 0.0 for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {"MAX_ITER": 60, "STEPS": (40, 50), "WARMUP_ITERS": 20},
        {"MAX_ITER": 60, "STEPS": (), "WARMUP_ITERS": 0},
        {"MAX_ITER": 60, "STEPS": (20, 21), "WARMUP_ITERS": 19, "WARMUP_FACTOR": 0.5, "GAMMA": 0.3},
    ],
)
def test_rates_of_detectron2(settings):
    """A published schedule is one for detectron2's rates; an off-by-one at a milestone or in the warm-up is silent."""
    overrides = [word for key, value in settings.items() for word in (f"SOLVER.{key}", str(value))]
    cfg = published("r50_1x", *overrides)
    schedule = resolve(cfg)[0]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    theirs = detectron2_solver.build_lr_scheduler(cfg, optimizer)
    for step in range(schedule.steps):
        assert learning_rate(step, schedule) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        theirs.step()


def test_cosine():
    """Warm-up from lr / warmup to lr, then a fall that never rises again, to the end that was asked for."""
    schedule = Schedule(steps=1000, batch_size=1, lr=2e-3, warmup=100, decay="cosine")
    rates = [learning_rate(step, schedule) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-5)
    assert rates[99] == pytest.approx(2e-3)
    assert rates[999] == pytest.approx(2e-5, rel=1e-3)
    assert sorted(rates[:100]) == rates[:100]
    assert sorted(rates[99:], reverse=True) == rates[99:]
    cfg = published("r50_1x", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.005)
    assert learning_rate(89_999, resolve(cfg)[0]) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(89_999, resolve(published(), decay="cosine")[0]) == pytest.approx(0.0002, rel=1e-3)
    assert learning_rate(0, Schedule(steps=10, batch_size=1, lr=1.0, decay="cosine")) == 1.0


def test_linear_rule():
    """Half the batch at the full rate diverges; at half the rate and the same steps it sees half the images."""
    schedule, said = resolve(published(), batch_size=8)
    assert (schedule.steps, schedule.milestones, schedule.warmup) == (180_000, (120_000, 160_000), 2000)
    assert schedule.lr == pytest.approx(0.01)
    assert said == (
        "batches of 8 images instead of SOLVER's 16: by the linear rule (Goyal et al. 2017) lr 0.01 instead of 0.02, "
        "steps 180000 instead of 90000, warm-up 2000 instead of 1000, "
        "milestones 120000 and 160000 instead of 60000 and 80000",
    )
    larger = resolve(published(), batch_size=64)[0]
    assert (larger.lr, larger.steps, larger.milestones) == (pytest.approx(0.08), 22_500, (15_000, 20_000))


def test_linear_rule_keeps_what_is_given():
    """What the user sets is what is used: a rule that scales it, too, would surprise; what is kept is said."""
    schedule, said = resolve(published(), batch_size=8, lr=0.02)
    assert (schedule.lr, schedule.steps, schedule.milestones, schedule.warmup) == (0.02, 90_000, SHORT, 1000)
    assert said == (
        "batches of 8 images instead of SOLVER's 16: nothing else is scaled, as lr is given "
        "(steps 90000, warm-up 1000, milestones 60000 and 80000)",
    )
    schedule, said = resolve(published(), batch_size=8, steps=900, warmup=50)
    assert (schedule.lr, schedule.steps, schedule.milestones, schedule.warmup) == (0.01, 900, (600, 800), 50)
    assert said == (
        "batches of 8 images instead of SOLVER's 16: by the linear rule (Goyal et al. 2017) lr 0.01 instead of 0.02",
        "900 steps instead of SOLVER's 90000: milestones 600 and 800 instead of 60000 and 80000",
    )
    assert resolve(published(), batch_size=16)[1] == ()


def test_shorter_training():
    """Milestones that stay where they were would never come; a warm-up longer than the training is worth a word."""
    schedule, said = resolve(published(), steps=900)
    assert schedule.milestones == (600, 800)
    assert said[-1] == "the warm-up of 1000 steps does not end within the 900 of the training"
    assert resolve(published(), steps=9000, decay="cosine")[1] == ()


def test_everything_given():
    """A key of the training config that SOLVER wins over would be dead."""
    given = {"steps": 7, "batch_size": 3, "micro_batch": 1, "optimizer": "adamw", "lr": 0.5, "warmup": 2}
    given |= {"decay": "cosine", "weight_decay": 0.3, "clip": 2.0, "precision": "fp16", "ema": 0.9}
    schedule, said = resolve(published("swinb_3x"), **given)
    assert {key: getattr(schedule, key) for key in given} == given
    assert said == ()
    none = resolve(published("swinb_3x"), weight_decay=0.0, clip=0.0, precision="fp32", warmup=0)[0]
    assert (none.weight_decay, none.clip, none.precision, none.warmup) == (0.0, 0.0, "fp32", 0)


def test_clipping_of_the_config():
    """SOLVER.CLIP_GRADIENTS that is passed over lets a Swin training diverge; detectron2's other kinds are refused."""
    on = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE")
    assert resolve(published("swinb_3x"))[0].clip == 0.0
    whole = published("swinb_3x", *on, "full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.25)
    assert resolve(whole)[0].clip == 0.25
    each = published("swinb_3x", *on, "norm")
    assert resolve(each, clip=0.5)[0].clip == 0.5
    with pytest.raises(ModelError, match=r"CLIP_TYPE full_model .*not norm and 2\.0; or set schedule\.clip"):
        resolve(each)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MAX_ITER", 0, "1 or more, not 0"),
        ("IMS_PER_BATCH", -1, "1 or more"),
        ("BASE_LR", 0.0, "more than 0"),
        ("BASE_LR", math.nan, "more than 0, not nan"),
        ("WEIGHT_DECAY", -0.1, "0 or more"),
        ("WEIGHT_DECAY_BIAS", "much", "None or a number"),
        ("MOMENTUM", 1.5, r"in 0\.\.1"),
        ("STEPS", (80, 60), "whole numbers that rise"),
        ("STEPS", (0.5,), "whole numbers that rise"),
        ("WARMUP_METHOD", "constant", "linear"),
        ("NESTEROV", True, "False"),
        ("REFERENCE_WORLD_SIZE", 8, "0: steps"),
        ("OPTIMIZER", "LAMB", "SGD or AdamW, not 'LAMB'"),
        ("LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "WarmupMultiStepLR or WarmupCosineLR"),
    ],
)
def test_wrong_solver(key, value, message):
    """A value of SOLVER that is ignored, or fails hours later, where one sentence at the start would do."""
    cfg = published().clone()
    cfg.defrost()
    cfg.SOLVER[key] = value
    with pytest.raises(ModelError, match=rf"^SOLVER\.{key} of the model config must be .*{message}"):
        resolve(cfg)


def test_optimizer_without_its_rate():
    """AdamW at SGD's rate of 0.02 diverges within a few steps."""
    with pytest.raises(ModelError, match=r"optimizer is adamw.*BASE_LR 0\.02.* sgd: set schedule\.lr as well"):
        resolve(published(), optimizer="adamw")
    assert resolve(published(), optimizer="adamw", lr=1e-4)[0].optimizer == "adamw"
    assert resolve(published(), optimizer="sgd")[0].lr == 0.02


def swin(freeze_at=-1):
    """A small Swin-FPN with absolute positions, and group normalisation in the FPN."""
    settings = {"EMBED_DIM": 8, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 1, 1], "APE": True}
    overrides = [word for key, value in settings.items() for word in (f"MODEL.SWINT.{key}", value)]
    fpn = ("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.FPN.NORM", "GN")
    return build_backbone(published("swinb_3x", *overrides, *fpn, "MODEL.BACKBONE.FREEZE_AT", freeze_at))


def test_adamw_groups():
    """Swin's recipe: no weight decay on norms and positions, full decay elsewhere, biases included."""
    model = swin()
    optimizer = build_optimizer(model, resolve(published("swinb_3x"))[0])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    found = parameters(optimizer, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert {factor for _, factor in found.values()} == {1.0}
    spared = {name for name, (decay, _) in found.items() if decay == 0.0}
    assert {decay for decay, _ in found.values()} == {0.0, 0.05}
    norms = {name for name in found if "norm" in name}
    positions = {name for name in found if name.endswith(("relative_position_bias_table", "absolute_pos_embed"))}
    assert len(positions) == 5
    assert spared == norms | positions
    assert "bottom_up.layers.0.blocks.0.attn.qkv.bias" in set(found) - spared


def test_sgd_groups():
    """SGD with the groups that detectron2 makes: those of norms and biases have settings of their own."""
    cfg = small.config(
        *("SOLVER.WEIGHT_DECAY_BIAS", 0.5, "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_NORM", 0.25),
        *("SOLVER.BASE_LR", 0.1, "SOLVER.MOMENTUM", 0.8),
    )
    model = build_model(cfg)[0]
    optimizer = build_optimizer(model, resolve(cfg)[0])
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert all(group["lr"] == pytest.approx(0.1 * group["lr_factor"]) for group in optimizer.param_groups)
    found = parameters(optimizer, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, of_parameter in found.items():
        plain = (0.25, 1.0) if ".norm." in name or ".bn" in name else (1e-4, 1.0)
        assert of_parameter == ((0.5, 2.0) if name.endswith(".bias") else plain), name


@pytest.mark.parametrize("freeze_at", [0, 2])
def test_frozen_stages_of_a_resnet(freeze_at):
    """Frozen parameters in an optimizer shrink by weight decay; others that are left out never learn."""
    cfg = small.config("MODEL.BACKBONE.FREEZE_AT", freeze_at)
    model = build_model(cfg)[0]
    found = set(parameters(build_optimizer(model, resolve(cfg)[0]), model))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    stages = ("backbone.bottom_up.stem.", "backbone.bottom_up.res2.")
    assert frozen == ({name for name, _ in model.named_parameters() if name.startswith(stages)} if freeze_at else set())
    assert found == {name for name, _ in model.named_parameters()} - frozen
    assert "backbone.bottom_up.res3.0.conv1.weight" in found


def test_frozen_stages_stay():
    """A step changes what is trained, and nothing that MODEL.BACKBONE.FREEZE_AT says to keep."""
    torch.manual_seed(5)
    model = swin(freeze_at=2).eval()  # without stochastic depth
    optimizer = build_optimizer(model, Schedule(steps=1, batch_size=1, lr=0.1, optimizer="adamw", weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sum(features.square().sum() for features in model(torch.rand(1, 3, 64, 64)).values()).backward()
    optimizer.step()
    kept = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    frozen = ("bottom_up.patch_embed.", "bottom_up.absolute_pos_embed", "bottom_up.layers.0.")
    assert kept == {name for name in before if name.startswith(frozen)}
    assert len(kept) > 10


@pytest.mark.parametrize(
    ("batch", "world", "micro_batch", "words"),
    [
        (16, 2, 4, "16 images a step: 2 workers x 2 micro-batches of 4"),
        (16, 1, 4, "16 images a step: 4 micro-batches of 4"),
        (16, 3, None, "16 images a step: 3 workers x 5 to 6"),
        (16, 8, 4, "16 images a step: 8 workers x 2"),
        (6, 1, None, "6 images a step"),
        (9, 2, 4, "9 images a step: 2 workers x 1 to 2 micro-batches of 2 to 4"),
    ],
)
def test_description_of_the_shares(batch, world, micro_batch, words):
    """The line that tells a user how gradients are accumulated must be true of what the workers get."""
    assert describe_shares(batch, world, micro_batch) == words
    cut = [data.shares(batch, rank=rank, world=world, micro_batch=micro_batch) for rank in range(world)]
    sizes = sorted({len(places) for worker in cut for places in worker})
    assert words.endswith((f" {sizes[0]}", f" {sizes[0]} to {sizes[-1]}", f"{sizes[-1]} images a step"))
    passes = sorted({len(worker) for worker in cut})
    assert passes == [1] or f" {' to '.join(map(str, passes))} micro-batches of " in words
