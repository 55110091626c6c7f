import pytest
import torch
from torch.optim import lr_scheduler

from twinsqueeze.training.optimizer import FlatAdam, lr_at


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_flat_adam_has_the_bits_of_pytorchs_fused_adam(weight_decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1003, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = kind([theirs], lr=3e-3, weight_decay=weight_decay, fused=True)
    ours, gradient = start.clone(), torch.zeros(1003)
    optimizer = FlatAdam(ours, gradient, lr=3e-3, weight_decay=weight_decay)
    for _ in range(25):
        gradient.copy_(torch.randn(1003, generator=generator))
        theirs.grad = gradient.clone()
        optimizer.step()
        reference.step()
        assert torch.equal(ours, theirs.data)


@pytest.mark.parametrize(
    ("schedule", "scheduler", "options"),
    [
        ("constant", lr_scheduler.ConstantLR, {"factor": 1}),
        ("cosine", lr_scheduler.CosineAnnealingLR, {"T_max": 20}),
        ("linear", lr_scheduler.LinearLR, {"start_factor": 1, "end_factor": 0, "total_iters": 20}),
    ],
)
def test_schedules_match_pytorch(schedule, scheduler, options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = scheduler(optimizer, **options)
    for step in range(20):
        assert lr_at(schedule, 0.3, step / 20) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        lr_at("step", 0.1, 0)
