"""States counted from the initial weights: how memory is carried through training on long recordings."""

import pytest
import torch


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inner": "linear"},
        {"preset": "paper_lm", "base_lr": 0.1},
        {"half_life_frames": (5, 40)},
        {"inner": "delta", "half_life_frames": (5, 40)},
    ],
)
def test_a_relative_state_goes_on_like_an_absolute_one(make_layer, max_rel, settings):
    layer = make_layer(**settings)
    x = torch.randn(2, 23, 32)
    wanted, _ = layer(x)
    state, outputs = None, []
    for part in x.split([5, 1, 8, 9], dim=1):
        y, state = layer(part, state, relative=True)
        outputs.append(y)
    assert max_rel(torch.cat(outputs, dim=1).detach(), wanted.detach()) <= 2e-6


@pytest.mark.parametrize("settings", [{}, {"inner": "delta"}])
def test_a_relative_state_of_zeros_has_heard_nothing(make_layer, settings):
    layer = make_layer(**settings)
    _, state = layer(torch.randn(2, 9, 32), relative=True)
    x = torch.randn(2, 6, 32)
    torch.testing.assert_close(
        layer(x, state.map(torch.zeros_like), relative=True)[0], layer(x)[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("settings", [{}, {"inner": "delta"}])
def test_initial_weights_get_a_gradient_behind_a_detached_relative_state(make_layer, settings):
    layer = make_layer(**settings)
    x = torch.randn(2, 20, 32)
    _, absolute = layer(x[:, :9])
    y, _ = layer(x[:, 9:], absolute.detach())
    assert torch.autograd.grad(y.square().sum(), layer.inner.W1, allow_unused=True) == (None,)

    _, relative = layer(x[:, :9], relative=True)
    y, _ = layer(x[:, 9:], relative.detach(), relative=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), layer.inner.W1)
    # The oracle: the gradient with respect to the absolute fast weights with which the second part begins.
    leaf = absolute.detach().W1.requires_grad_()
    state = absolute.detach()
    state.W1 = leaf
    y, _ = layer(x[:, 9:], state)
    (expected,) = torch.autograd.grad(y.square().sum(), leaf)
    torch.testing.assert_close(gradient, expected.sum(0), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
