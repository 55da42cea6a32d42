"""Balls: projection, steepest directions, radii, random points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.norms import NORMS, SCALES, UNITS, Ball

BALLS = st.builds(
    Ball,
    eps=st.floats(0, 10),
    norm=st.sampled_from(NORMS),
    per=st.sampled_from(UNITS),
    relative=st.sampled_from(SCALES),
)
TENSORS = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-100, 100).map(lambda each: 0.0 if abs(each) < 1e-6 else each),
).map(torch.from_numpy)


def ball(eps: float = 1.0, norm: str = "l2", per: str = "row", relative: str = "no") -> Ball:
    return Ball(eps=eps, norm=norm, per=per, relative=relative)


def units(per: str, x: Tensor) -> Tensor:
    """The tensor as `[units, entries]`, by the plain reading of row, example, layer and element."""
    if per == "element":
        return x.reshape(-1, 1)
    if per == "example" and x.ndim > 1:
        return x.flatten(1)
    return x.reshape(-1, x.shape[-1]) if per == "row" and x.ndim > 1 else x.reshape(1, -1)


def norm_of(b: Ball, x: Tensor) -> Tensor:
    found: Tensor = units(b.per, x).norm(dim=1, p=2 if b.norm == "l2" else float("inf"))
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(BALLS, TENSORS)
def test_size_is_the_named_norm_of_each_unit(b: Ball, x: Tensor) -> None:
    torch.testing.assert_close(b.size(x).flatten(), norm_of(b, x))
    assert b.size(x).ndim == x.ndim


@given(BALLS, TENSORS)
def test_radius_is_absolute_or_follows_the_norm_of_the_unit_or_the_median_unit(b: Ball, x: Tensor) -> None:
    own = norm_of(b, x)
    expected = {"no": torch.full_like(own, b.eps), "own": b.eps * own, "median": b.eps * own.median().expand_as(own)}
    torch.testing.assert_close(b.radius(x).flatten(), expected[b.relative])


@given(BALLS, TENSORS, st.integers(0, 99))
def test_projection_lands_in_the_named_ball_and_stays_there(b: Ball, x: Tensor, seed: int) -> None:
    radius = b.radius(torch.randn(x.shape, generator=generator(seed), dtype=x.dtype))
    once = b.project(x, radius)
    assert (b.size(once) <= radius * (1 + 1e-9) + 1e-12).all()
    torch.testing.assert_close(b.project(once, radius), once)


@given(BALLS, TENSORS)
def test_projection_is_the_identity_inside(b: Ball, x: Tensor) -> None:
    radius = b.size(x) * 1.001 + 1e-9
    assert torch.equal(b.project(x, radius), x)


@given(BALLS, TENSORS, st.integers(0, 99))
def test_projection_is_the_nearest_point_of_the_ball(b: Ball, x: Tensor, seed: int) -> None:
    radius = b.radius(torch.randn(x.shape, generator=generator(seed), dtype=x.dtype))
    nearest = b.project(x, radius)
    for other in range(5):
        point = radius * b.inside(x, generator(other))
        assert ((x - nearest).norm() <= (x - point).norm() + 1e-9).all()


@given(BALLS, TENSORS, st.integers(0, 99))
def test_steepest_reaches_the_dual_norm_and_nothing_in_the_ball_beats_it(b: Ball, g: Tensor, seed: int) -> None:
    direction = b.steepest(g)
    rows = units(b.per, g)
    dual = rows.norm(dim=1, p=2 if b.norm == "l2" else 1)
    torch.testing.assert_close((units(b.per, direction) * rows).sum(1), dual, rtol=1e-7, atol=1e-9)
    rival = b.inside(g, generator(seed))
    assert ((units(b.per, rival) * rows).sum(1) <= dual * (1 + 1e-9) + 1e-9).all()


@given(BALLS, TENSORS)
def test_no_gradient_gives_no_direction_and_any_gives_a_unit_one(b: Ball, g: Tensor) -> None:
    size = b.size(b.steepest(g))
    expected = (b.size(g) > 0).to(g.dtype)
    torch.testing.assert_close(size, expected)


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-30, 1e-36])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per", UNITS)
def test_tiny_gradients_still_give_unit_directions(scale: float, norm: str, per: str) -> None:
    b, g = ball(norm=norm, per=per), torch.randn(6, 8, generator=generator()) * scale
    direction = b.steepest(g)
    torch.testing.assert_close(b.size(direction), torch.ones_like(b.size(direction)), rtol=1e-4, atol=0)
    if norm == "l2" and per != "element":
        torch.testing.assert_close(direction, b.steepest(g * (1e-3 / scale)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per", UNITS)
@pytest.mark.parametrize("radius", [1e-3, 1.0, 10.0, 1e4])
def test_no_gradient_gives_no_direction_whatever_the_radius(norm: str, per: str, radius: float) -> None:
    b = ball(norm=norm, per=per)
    assert not b.steepest(torch.zeros(3, 4), torch.full((3, 1), radius)).any()
    direction = b.steepest(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.full((2, 1), radius))
    assert direction.tolist() == [[0.0, pytest.approx(radius)], [0.0, 0.0]]


def test_huge_gradients_still_give_unit_directions() -> None:
    direction = ball().steepest(torch.full((2, 4), 1e30))
    torch.testing.assert_close(direction, torch.full((2, 4), 0.5))


@given(BALLS, TENSORS, st.integers(0, 99))
def test_random_starts_are_inside_and_noise_is_on_the_sphere(b: Ball, x: Tensor, seed: int) -> None:
    radius = b.radius(x)
    assert (b.size(radius * b.inside(x, generator(seed))) <= radius * (1 + 1e-9)).all()
    torch.testing.assert_close(b.size(radius * b.surface(x, generator(seed))), radius, rtol=1e-9, atol=1e-12)


@settings(max_examples=4)
@given(st.sampled_from(NORMS), st.sampled_from(["row", "layer"]))
def test_random_points_are_uniform_in_volume(norm: str, per: str) -> None:
    b, d = ball(norm=norm, per=per), 5
    base = torch.zeros(4000, d) if per == "row" else torch.zeros(d)
    draws = [b.inside(base, generator(seed)) for seed in range(1 if per == "row" else 4000)]
    size = norm_of(b, draws[0]) if per == "row" else torch.stack([norm_of(b, each)[0] for each in draws])
    # P(size <= r) = r^d
    for r in (0.6, 0.8, 0.95):
        assert (size <= r).float().mean().item() == pytest.approx(r**d, abs=0.03)


def test_random_directions_have_no_favourite() -> None:
    drawn = ball().surface(torch.zeros(20_000, 3), generator())
    assert drawn.mean(0).abs().max() < 0.02
    assert (drawn.T @ drawn / len(drawn) - torch.eye(3) / 3).abs().max() < 0.02


def test_the_same_generator_state_draws_the_same() -> None:
    base = torch.zeros(3, 4)
    for draw in (ball().inside, ball().surface):
        assert torch.equal(draw(base, generator(4)), draw(base, generator(4)))
        assert not torch.equal(draw(base, generator(4)), draw(base, generator(5)))


def test_a_unit_of_zeros_has_no_relative_budget_but_half_of_the_median_stays() -> None:
    base = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert ball(0.1, relative="own").radius(base).flatten().tolist() == pytest.approx([0, 0.5, 1])
    assert ball(0.1, relative="median").radius(base).flatten().tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.1}, "eps=-0.1"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"eps": float("inf")}, "eps=inf"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
        ({"per": "column"}, "unknown per 'column'"),
        ({"relative": "yes"}, "unknown relative 'yes'"),
    ],
)
def test_a_ball_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RrecError, match=message):
        Ball(**({"eps": 1.0, "norm": "l2", "per": "row", "relative": "no"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("per", UNITS)
@pytest.mark.parametrize("norm", NORMS)
def test_what_holds_nothing_is_not_moved_and_not_counted(per: str, norm: str) -> None:
    base = torch.rand(5, 6, 4, generator=generator()) + 0.5
    real = (torch.arange(6) < torch.tensor([6, 3, 1, 0, 2])[:, None])[:, :, None]
    padded = base.masked_fill(~real, 0.0)
    for relative in SCALES:
        ball = Ball(eps=0.5, norm=norm, per=per, relative=relative)
        radius = ball.radius(padded, real).expand_as(base)
        assert not radius.masked_select(~real.expand_as(base)).any()
        assert (radius.masked_select(real.expand_as(base)) > 0).all()
        if relative == "median" and per in ("row", "element"):
            there = base[real[..., 0]]
            expected = 0.5 * Ball(eps=0.5, norm=norm, per=per, relative="no").size(there).median()
            torch.testing.assert_close(radius[0, 0, 0], expected)
    unit = Ball(eps=1.0, norm=norm, per=per, relative="no")
    for point in (unit.inside(base, generator(), real), unit.surface(base, generator(), real)):
        assert not point.masked_select(~real.expand_as(base)).any()
        assert (unit.size(point) <= 1 + 1e-5).all()
    whole = unit.size(unit.surface(base, generator(), real))[:3]
    torch.testing.assert_close(whole[whole > 0], torch.ones_like(whole[whole > 0]))


def test_a_point_inside_is_uniform_among_the_places_that_are_real() -> None:
    base, real = torch.zeros(4000, 3, 2), (torch.arange(3) < 2)[None, :, None].expand(4000, 3, 1)
    ball = Ball(eps=1.0, norm="l2", per="example", relative="no")
    sizes = ball.size(ball.inside(base, generator(), real)).flatten()
    assert (sizes < 0.5 ** (1 / 4)).float().mean().item() == pytest.approx(0.5, abs=0.03)  # of four numbers


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf"), 1e20])
def test_what_is_no_budget_or_overflows_is_refused(eps: float) -> None:
    with pytest.raises(RrecError, match=r"eps=.*: a budget is a number from 0 to 1e\+09"):
        ball(eps)


@pytest.mark.parametrize("per", ["row", "example", "layer"])
def test_the_largest_budget_still_moves(per: str) -> None:
    large, base = ball(1e9, per=per, relative="own"), torch.full((300, 64), 10.0)
    found = large.project(large.steepest(torch.ones_like(base), large.radius(base)), large.radius(base))
    assert found.abs().min() > 1e9
