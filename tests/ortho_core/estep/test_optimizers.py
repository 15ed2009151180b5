import torch

from ortho_core.estep.optimizers import LBFGS, STRETCH, AdamW
from ortho_core.noise.rotation import pack_skew, unpack_skew


def test_adamw_on_packed_parameters_is_torch_adamw_on_the_raw_matrix():
    d, lr = 5, 3e-3
    stream = torch.Generator().manual_seed(0)
    target = torch.randn(2, d, d, generator=stream)
    raw = 1e-2 * torch.randn(2, d, d, generator=stream)

    def loss(A):
        return ((A - target) ** 2 * (1 + target.abs())).sum((1, 2))

    reference = raw.clone().requires_grad_(True)
    torch_adamw = torch.optim.AdamW([reference], lr=lr, betas=(0.9, 0.999), weight_decay=0.0)
    x = pack_skew(raw - raw.mT)
    ours = AdamW(x, lr)
    for _ in range(25):
        value = loss(reference - reference.mT)
        leaf = x.clone().requires_grad_(True)
        own = loss(unpack_skew(leaf, d))
        torch.testing.assert_close(own, value, rtol=1e-5, atol=1e-5)
        torch_adamw.zero_grad()
        value.sum().backward()
        torch_adamw.step()
        (grad,) = torch.autograd.grad(own.sum(), leaf)
        x = ours.propose(x, own.detach(), grad)


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def minimise(starts, steps):
    x, optimizer, best = (
        starts,
        LBFGS(starts, first_step=0.3, max_step=1.2),
        torch.full((len(starts),), float("inf"), dtype=starts.dtype),
    )
    for _ in range(steps):
        leaf = x.clone().requires_grad_(True)
        loss = rosenbrock(leaf)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        best = torch.minimum(best, loss.detach())
        x = optimizer.propose(x, loss.detach(), grad)
    return best


def test_lbfgs_finds_the_minimum_of_a_curved_valley():
    starts = torch.tensor([[-1.2, 1.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert (minimise(starts, 150) < 1e-8).all()


def test_lbfgs_treats_every_row_as_if_it_were_alone():
    starts = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = minimise(starts, 40)
    alone = torch.cat([minimise(starts[i : i + 1], 40) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


def test_lbfgs_goes_back_from_a_point_without_a_finite_loss():
    x = torch.zeros(2, 3)
    optimizer = LBFGS(x, first_step=0.3, max_step=1.2)
    first = optimizer.propose(x, torch.tensor([1.0, 1.0]), torch.ones(2, 3))
    loss = torch.tensor([float("nan"), 0.5])
    second = optimizer.propose(first, loss, torch.full((2, 3), float("nan")))
    assert second.isfinite().all()
    assert 0 < second[0].norm() < first[0].norm()


def test_a_metric_is_where_the_recursion_starts():
    # With the exact inverse of the Hessian as metric the first step points at the minimum, and the second is Newton's.
    scales = torch.tensor([[1.0, 100.0, 0.01]], dtype=torch.float64)

    def quadratic(x):
        return 0.5 * (scales * x.square()).sum(1), scales * x

    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    optimizer = LBFGS(x, lambda vectors: vectors / scales, first_step=0.1, max_step=100.0)
    for _ in range(2):
        x = optimizer.propose(x, *quadratic(x))
    torch.testing.assert_close(x, torch.zeros_like(x))


def test_a_slot_that_is_reset_is_as_good_as_new():
    stream = torch.Generator().manual_seed(0)
    points = torch.randn(5, 4, 3, generator=stream, dtype=torch.float64)
    for make in (lambda x: AdamW(x, 0.1), lambda x: LBFGS(x, first_step=0.3, max_step=1.2)):
        used, fresh = make(points[0]), make(points[0])
        for x in points[:3]:
            used.propose(x, x.square().sum(1), 2 * x)
        used.reset(torch.tensor([1, 3]))
        for x in points[3:]:
            a, b = (o.propose(x, x.square().sum(1), 2 * x) for o in (used, fresh))
            assert torch.equal(a[[1, 3]], b[[1, 3]])
            assert not torch.equal(a[[0, 2]], b[[0, 2]])


def test_the_compact_form_is_the_two_loop_recursion():
    """Nocedal & Wright, algorithm 7.4, pair by pair; more pairs than are kept, some of them refused, one row made new."""
    stream = torch.Generator().manual_seed(5)
    m, memory = 9, 3

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=stream)

    weights = normal(m).square() + 0.1
    optimizer = LBFGS(normal(2, m), lambda v: v / weights, first_step=0.3, max_step=1.2, memory=memory)
    kept = [[], []]
    for k in range(8):
        s, y = normal(2, m), normal(2, m)
        y = torch.where(((s * y).sum(1) < 0)[:, None] & torch.tensor([[True], [k % 3 > 0]]), -y, y)
        if k == 4:
            optimizer.reset(torch.tensor([1]))
            kept[1] = []
        optimizer._remember(s, y, torch.tensor([True, True]))
        for row in range(2):
            if (s[row] @ y[row]) > 0:
                kept[row].append((s[row], y[row]))
    grad = normal(2, m)
    found = optimizer._precondition(grad, grad / weights)
    assert len(kept[0]) == 8 > len(kept[1])
    for row in range(2):
        q, alphas, pairs = grad[row], [], kept[row][-memory:]
        for s, y in reversed(pairs):
            alphas.append((s @ q) / (s @ y))
            q = q - alphas[-1] * y
        s, y = pairs[-1]
        r = STRETCH * q / weights * (s @ y) / (y @ (y / weights))
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            r = r + (alpha - (y @ r) / (s @ y)) * s
        torch.testing.assert_close(found[row], r)
