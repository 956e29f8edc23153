"""The delta rule: its chunks and its single steps against the definition, and a layer whose memory it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ttt_moshi.ttt import TTTConfig, TTTLayer, TTTState, delta_kernel, watch
from ttt_moshi.ttt.config import LONGEST
from ttt_moshi.ttt.delta import CHUNK, DeltaFrames, delta_scan, delta_step
from ttt_moshi.ttt.reference import reference_delta

FORGETTING = [None, "fixed", "gated"]


def problem(T, forgetting, B=2, H=3, f=8, dtype=torch.float64, seed=0):
    """Frames, fast weights that have learned something, and the start: leaves that want gradients."""
    torch.manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    q, k = (F.normalize(random(B, H, T, f), dim=-1) for _ in range(2))
    rate = {"fixed": torch.rand(1, H, 1).double().expand(B, H, T) * 0.1, "gated": torch.rand(B, H, T).double()}
    leaves = [q, k, random(B, H, T, f), torch.rand(B, H, T).double(), random(B, H, f, f), random(H, f, f)]
    leaves += [] if forgetting is None else [-rate[forgetting].clone()]
    q, k, v, beta, W, start, *log_retain = (t.to(dtype).requires_grad_() for t in leaves)
    return DeltaFrames(q, k, v, beta, log_retain[0] if log_retain else None), W, start


def leaves_of(frames, W, start):
    return [t for t in (*frames, W, start) if t is not None]


def reference(frames, W, start):
    retain = torch.ones_like(frames.beta) if frames.log_retain is None else frames.log_retain.exp()
    return reference_delta(frames.q, frames.k, frames.v, frames.beta, retain, W, start)


@pytest.mark.parametrize("forgetting", FORGETTING)
@pytest.mark.parametrize("T", [1, 5, CHUNK, CHUNK + 1, 2 * CHUNK + 22])
def test_chunks_are_the_definition(max_rel, T, forgetting):
    given = problem(T, forgetting)
    expected, got = reference(*given), delta_scan(*given)
    probes = [torch.randn_like(t) for t in expected]

    def gradients(tensors):
        total = sum((t * p).sum() for t, p in zip(tensors, probes, strict=True))
        return torch.autograd.grad(total, leaves_of(*given), allow_unused=True, materialize_grads=True)

    for actual, wanted in zip(got, expected, strict=True):
        assert max_rel(actual, wanted) <= 1e-12
    for actual, wanted in zip(gradients(got), gradients(expected), strict=True):
        if forgetting is None and wanted is not None and wanted.abs().max() < 1e-10:
            continue  # of the start, which then is nothing but a part of W
        assert max_rel(actual, wanted) <= 1e-10


@pytest.mark.parametrize("forgetting", FORGETTING)
@pytest.mark.parametrize("in_place", [False, True])
def test_single_frames_are_the_definition(max_rel, forgetting, in_place):
    frames, W, start = problem(40, forgetting)
    expected, end = reference(frames, W, start)
    now, outputs = W.detach().clone(), []
    with torch.no_grad():
        for t in range(40):
            part = DeltaFrames(*(None if x is None else x[:, :, t : t + 1] for x in frames))
            before = now  # held, so that its memory cannot be taken for the new weights
            z, now = delta_step(part, before, start, in_place)
            outputs.append(z)
            assert (now.data_ptr() == before.data_ptr()) == in_place
    assert max_rel(torch.cat(outputs, 2), expected) <= 1e-12 and max_rel(now, end) <= 1e-12


def test_any_cut_carries_its_gradient(max_rel):
    frames, W, start = problem(150, "gated")
    expected, end = delta_scan(frames, W, start)
    now, outputs, done = W, [], 0
    for size in (1, 70, 3, 64, 12):
        z, now = delta_scan(
            DeltaFrames(*(None if x is None else x[:, :, done : done + size] for x in frames)), now, start
        )
        outputs.append(z)
        done += size
    got = torch.cat(outputs, 2)
    assert max_rel(got, expected) <= 1e-12 and max_rel(now, end) <= 1e-12
    wanted = torch.autograd.grad(expected.square().sum(), leaves_of(frames, W, start))
    for actual, gradient in zip(
        torch.autograd.grad(got.square().sum(), leaves_of(frames, W, start)), wanted, strict=True
    ):
        assert max_rel(actual, gradient) <= 1e-10


@pytest.mark.parametrize("forgetting", FORGETTING)
def test_in_float32_it_stays_near_the_definition(max_rel, forgetting):
    """Ten minutes, the values of every frame and the last weights."""
    exact = problem(7500, forgetting, B=1, H=2, f=16)
    rounded = problem(7500, forgetting, B=1, H=2, f=16, dtype=torch.float32)
    with torch.no_grad():
        expected, got = reference(*exact), delta_scan(*rounded)
    for actual, wanted in zip(got, expected, strict=True):
        assert max_rel(actual.double(), wanted) <= 5e-6


def test_equal_to_the_recurrence_of_flash_linear_attention(max_rel):
    naive = pytest.importorskip("fla.ops.gated_delta_rule.naive")
    frames, W, start = problem(130, "gated", dtype=torch.float32)
    with torch.no_grad():
        z, end = delta_scan(frames, W, start)
        # Theirs has no start: it is given as frames' values and added again where it is read. [B, T, H, f] there.
        over_time = [t.transpose(1, 2) for t in (frames.q, frames.k, frames.v - frames.k @ start)]
        gates = [t.transpose(1, 2) for t in (frames.beta, frames.log_retain)]
        theirs, S = naive.naive_recurrent_gated_delta_rule(
            *over_time, *gates, scale=1.0, initial_state=W - start, output_final_state=True
        )
    assert max_rel(z, theirs.transpose(1, 2) + frames.q @ start) <= 1e-5
    assert max_rel(end, S + start) <= 1e-5


def test_their_kernels_would_be_given_the_right_things():
    """The chunked reference of fla-core in the place of its kernel: order of axes, signs, scale, states, gradients."""
    naive = pytest.importorskip("fla.ops.gated_delta_rule.naive")
    assert delta_kernel.trial(torch.device("cpu"), 16, naive.naive_chunk_gated_delta_rule) <= 1e-5


def test_kernels_that_cannot_run_here_are_left_aside():
    """Whatever they raise without a GPU, or that they are missing: words, and no exception."""
    reason = delta_kernel.reason_against(torch.device("cpu"), torch.float32, 16)
    assert reason and "\n" not in reason
    assert "float64" in delta_kernel.reason_against(torch.device("cuda"), torch.float64, 16)


@pytest.mark.parametrize(
    "settings", [{}, {"half_life_frames": (8, 40)}, {"half_life_frames": 20, "forget": "gated", "target": "next"}]
)
def test_no_bit_depends_on_a_later_frame_in_any_chunk(make_layer, settings):
    layer = make_layer(inner="delta", **settings)
    x = torch.randn(2, 2 * CHUNK + 13, 32)
    y, state = layer(x)
    for t in (0, 1, CHUNK - 1, CHUNK, CHUNK + 9, 2 * CHUNK, 2 * CHUNK + 12):
        for other in (torch.randn(32), torch.full((32,), torch.nan), torch.full((32,), 1e30)):
            changed = x.clone()
            changed[0, t] = other
            y2, state2 = layer(changed)
            assert torch.equal(y2[0, :t].view(torch.int32), y[0, :t].view(torch.int32))
            assert torch.equal(y2[1], y[1]) and torch.equal(state2.W1[1], state.W1[1]), "another stream noticed"
            if other.abs().max() < 1e29:
                assert not torch.equal(y2[0, t:], y[0, t:])
            else:
                assert y2[0, t:].isnan().all() and state2.W1[0].isnan().all()


def test_what_comes_next_is_written_under_the_key_before_it(make_layer, max_rel):
    """Frame by frame, head by head, from the projections alone; then from any cut, and with the key in the state."""
    T = 70
    x = torch.randn(2, T, 32)
    for target, of_next in (("own", ()), ("next", (0, 1)), ("both", (1,))):
        layer = make_layer(inner="delta", half_life_frames=(8, 40), target=target)
        net, given = layer.inner, []
        handle = net.register_forward_hook(
            lambda module, arguments, output, into=given: into.append((arguments, output))
        )
        with torch.no_grad():
            _, end = layer(x)
        handle.remove()
        (normed, q, k, v, *_), (out, _) = given[0]
        unit = [t.double() / t.double().square().mean(-1, keepdim=True).sqrt() for t in (q, k)]
        gamma, beta = (t.double()[:, None] for t in (net.ttt_norm_weight, net.ttt_norm_bias))

        def norm(z, head, gamma=gamma, beta=beta):
            centred = z - z.mean(-1, keepdim=True)
            return gamma[head] * centred / centred.square().mean(-1, keepdim=True).sqrt() + beta[head]

        for b, h in ((b, h) for b in range(2) for h in range(2)):
            W = W0 = net.W1[h].double()
            last = torch.zeros(16, dtype=torch.float64)
            for t in range(T):
                query, key, value = unit[0][b, h, t] / 4, unit[1][b, h, t] / 4, v[b, h, t].double()
                writes = last if h in of_next else key
                wanted = norm(value[None] if h in of_next else (value - 4 * key)[None], h)[0]
                W = W0 + 2.0 ** (-1 / (8, 40)[h]) * (W - W0)
                W = W + net.step_sizes(normed)[b, h, t].double() * writes[:, None] * (wanted - writes @ W)
                assert max_rel(out[b, h, t].double(), 4 * query + norm((query @ W)[None], h)[0]) <= 1e-4
                last = key
            assert max_rel(end.W1[b, h].double(), W) <= 1e-4
        with torch.no_grad():
            whole, _ = layer(x)
            state, pieces = None, []
            for piece in x.split((1, 33, 1, 35), dim=1):
                y, state = layer(piece, state)
                pieces.append(y)
        assert max_rel(torch.cat(pieces, 1), whole) <= 1e-5
        assert list(state.tensors()) == (["W1"] if target == "own" else ["W1", "k"])


@pytest.mark.parametrize("forget", ["learned", "gated"])
def test_what_is_learned_starts_at_the_half_lives_and_stays_below_their_multiple(forget):
    torch.manual_seed(0)
    layer = TTTLayer(TTTConfig(dim=48, num_heads=3, inner="delta", half_life_frames=(16, 64), forget=forget))
    x = torch.randn(1, 5, 48)

    def half_lives():
        return -torch.log(torch.tensor(2.0)) / layer.inner._log_retain(x)[0]

    torch.testing.assert_close(half_lives(), torch.tensor([[16.0], [32.0], [64.0]]).expand(3, 5), rtol=1e-4, atol=0)
    layer.inner.learnable_ttt_forget_bias.data.fill_(-50.0)
    assert (half_lives() <= LONGEST * 64 * 1.0001).all()
    layer.inner.learnable_ttt_forget_bias.data.fill_(3.0)
    assert (half_lives() < 1).all()
    if forget == "gated":
        layer.inner.learnable_ttt_forget_weight.data.normal_()
        assert half_lives().std(-1).min() > 0


def test_half_lives_of_hours_are_not_lost_to_rounding():
    torch.manual_seed(0)
    layer = TTTLayer(TTTConfig(dim=48, num_heads=3, inner="delta", half_life_frames=(10_000, 1_000_000)))
    found = -torch.log(torch.tensor(2.0)) / layer.inner._log_retain(torch.randn(1, 1, 48))[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([1e4, 1e5, 1e6]), rtol=1e-5, atol=0)
    with torch.no_grad():
        _, state = layer(torch.randn(1, 64, 48))
        written = state.W1 - layer.inner.W1
        layer.inner.learnable_ttt_lr_bias.fill_(-torch.inf)
        for x in torch.randn(500, 1, 1, 48):
            layer.stream(x, state)
        left = (state.W1 - layer.inner.W1).norm(dim=(2, 3)) / written.norm(dim=(2, 3))
    torch.testing.assert_close(left[0], torch.tensor([0.5**0.05, 0.5**0.005, 0.5**0.0005]), rtol=1e-4, atol=0)


def test_without_writing_what_was_written_halves(max_rel):
    torch.manual_seed(0)
    layer = TTTLayer(TTTConfig(dim=48, num_heads=3, inner="delta", half_life_frames=(16, 64)))
    with torch.no_grad():
        _, state = layer(torch.randn(1, 64, 48))
        layer.inner.learnable_ttt_lr_bias.fill_(-torch.inf)
        _, after = layer(torch.randn(1, 64, 48), state)
        left = (after.W1 - layer.inner.W1).norm(dim=(2, 3)) / (state.W1 - layer.inner.W1).norm(dim=(2, 3))
    torch.testing.assert_close(left[0], torch.tensor([0.5**4, 0.5**2, 0.5]), rtol=1e-4, atol=1e-6)


def test_its_state_is_one_matrix_a_head():
    layer = TTTLayer(TTTConfig(dim=4096, num_heads=32, inner="delta"), device="meta")
    state = layer.init_state(1)
    assert list(state.tensors()) == ["W1"] and state.num_bytes == 32 * 128 * 128 * 4
    assert list(TTTState.from_state_dict({"W1": torch.zeros(2, 3, 4, 4)}).tensors()) == ["W1"]
    with pytest.raises(ValueError, match="another layer"):
        small = TTTLayer(TTTConfig(dim=32, num_heads=2, inner="delta"))
        small(torch.randn(1, 3, 32), TTTLayer(TTTConfig(dim=32, num_heads=2, inner="linear")).init_state(1))


def test_recall_of_pairs_and_silence():
    """32 pairs in heads of 64 after one pass, and the same after 300 frames (24 s) that all look alike."""
    torch.manual_seed(0)
    H, f, N = 4, 64, 32
    k, v = F.normalize(torch.randn(1, H, N, f), dim=-1), torch.randn(1, H, N, f)
    silence = F.normalize(torch.randn(1, H, 1, f) + 0.05 * torch.randn(1, H, 300, f), dim=-1)
    heard = DeltaFrames(k, k, v, torch.full((1, H, N), 0.9), None)
    W = torch.zeros(1, H, f, f)
    _, W = delta_scan(heard, W, W[0])
    first = (k @ W - v).square().mean() / v.square().mean()
    nothing = DeltaFrames(silence, silence, torch.zeros(1, H, 300, f), torch.full((1, H, 300), 0.9), None)
    _, later = delta_scan(nothing, W, torch.zeros(H, f, f))
    after = (k @ later - v).square().mean() / v.square().mean()
    assert first <= 0.3 and after <= first + 0.1


def test_diagnostics_are_those_of_the_definition(make_layer):
    layer = make_layer(inner="delta", half_life_frames=(8, 40))
    x, net = torch.randn(2, 40, 32), layer.inner
    with watch({"one": layer}) as found:
        layer(x)
    got = found["one"][0]
    arguments = []
    handle = net.register_forward_hook(lambda module, given, output: arguments.append(given))
    layer(x)
    handle.remove()
    with torch.no_grad():
        frames = net.frames(*arguments[0][:4])
        W, after, before = net.W1.expand(2, *net.W1.shape), [], []
        for span in (slice(0, 16), slice(16, 32), slice(32, 40)):
            q, k, v, beta, log_retain = (t[:, :, span] for t in frames)
            before.append((k @ W - v).square().mean(-1))
            _, W = reference_delta(q, k, v, beta, log_retain.exp(), W, net.W1)
            after.append((k @ W - v).square().mean(-1))
    torch.testing.assert_close(got.loss_before, torch.cat(before, 2).mean((0, 2)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.loss_after, torch.cat(after, 2).mean((0, 2)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.write_strength, frames.beta.mean((0, 2)))
    assert (got.loss_after < got.loss_before).all()


@pytest.mark.parametrize("target", ["own", "next", "both"])
def test_losses_of_single_frames_are_those_of_the_definition(make_layer, target):
    net = make_layer(inner="delta", half_life_frames=(8, 40), target=target).inner
    x, k, v = torch.randn(2, 9, 32), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    with torch.no_grad():
        start, before, after = net.losses(x, k, v)
        frames = net.frames(x, k, k, v)
        W = net.W1.expand(2, *net.W1.shape)
        for t in range(9):
            q, key, value, beta, log_retain = (part[:, :, t : t + 1] for part in frames)
            faded = net.W1 + log_retain.exp()[..., None] * (W - net.W1)
            _, W = reference_delta(q, key, value, beta, log_retain.exp(), W, net.W1)
            for found, weights in ((start, net.W1), (before, faded), (after, W)):
                wanted = 0.5 * (key @ weights - value).square().sum(-1)
                torch.testing.assert_close(found[:, :, t : t + 1], wanted, rtol=1e-3, atol=1e-4)


def test_streaming_asks_nothing_of_the_data(make_layer):
    """Compiled whole, in place: no branch and no value that would have to be looked at."""
    layer = make_layer(inner="delta", half_life_frames=(8, 40), forget="gated", target="both").requires_grad_(False)
    step = torch.compile(layer.stream, fullgraph=True, backend="aot_eager")
    state, expected = layer.init_state(2), layer.init_state(2)
    run = torch.tensor([True, False])
    for _ in range(5):
        x = torch.randn(2, 1, 32)
        torch.testing.assert_close(step(x, state, run)[0], layer.stream(x, expected, run)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(state.W1[1], layer.inner.W1), "a stream that does not run keeps its state"


def test_a_mini_batch_size_is_said_not_to_apply():
    with pytest.warns(UserWarning, match="mini_batch_size 8 does not apply to inner 'delta'"):
        config = TTTConfig(dim=32, num_heads=2, inner="delta", mini_batch_size=8)
    torch.manual_seed(0)
    layer, other = TTTLayer(config), TTTLayer(TTTConfig(dim=32, num_heads=2, inner="delta"))
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    x = torch.randn(1, 20, 32)
    assert torch.equal(layer(x)[0], other(x)[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inner": "delta", "preset": "paper_lm"}, "preset 'paper_lm'"),
        ({"inner": "delta", "base_lr": 1.5}, "base_lr"),
        ({"inner": "delta", "forget": "learned"}, "needs half_life_frames"),
        ({"inner": "delta", "half_life_frames": 0.5}, "at least 1 frame"),
        ({"inner": "delta", "forget": "sometimes"}, "forget must be"),
        ({"inner": "mlp", "forget": "gated", "half_life_frames": 64}, "is for inner 'delta'"),
        ({"inner": "delta", "target": "previous"}, "target must be 'own', 'next' or 'both'"),
        ({"inner": "linear", "target": "next"}, "target 'next' is for inner 'delta'"),
    ],
)
def test_what_it_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TTTConfig(dim=32, num_heads=2, **settings)
