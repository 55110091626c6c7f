import torch

from twinsqueeze.optimizer import Adam


def test_same_bits_as_pytorchs_fused_adam():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1003, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    reference = torch.optim.Adam([theirs], lr=3e-3, fused=True)
    ours, gradient = start.clone(), torch.zeros(1003)
    optimizer = Adam(ours, gradient, lr=3e-3)
    for _ in range(25):
        gradient.copy_(torch.randn(1003, generator=generator))
        theirs.grad = gradient.clone()
        optimizer.step()
        reference.step()
        assert torch.equal(ours, theirs.data)
