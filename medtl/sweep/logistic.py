"""Many linear heads at once, to convergence: L2-penalised logistic regressions that share their features.

    minimise over W, b:  Σ_i weight_i ℓ(x_i W + b, y_i) + penalty / 2 · |W|²         for each of H settings and R sets of rows

What differs between the problems are the examples' weights and the penalty alone, so one matrix product X [W_1 ... W_HR] serves
all of them, and one the gradients. The method is L-BFGS (Nocedal 1980) on all problems side by side: a search along a line
costs no product, since logits are linear in its step; and it starts from the inverse of Böhning's bound on the Hessian
(Böhning & Lindsay 1988, Böhning 1992), which a setting's problems share because they have nearly the same rows.

Refuses losses that are not convex in the logits: softmax and sigmoid cross-entropy are what there is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

KINDS = ("softmax", "sigmoid")
_ARMIJO = 1e-4
_NOISE = 1e-6  # of a loss in float32 that is summed over thousands of examples, relative
_HALVINGS = 30
_JITTER = 1e-5  # of the bound's mean diagonal: what float32 needs to factor it
_FLOATS = 1 << 27  # that one array of a block of settings may hold: 512 MiB
_COLUMNS = 64  # problems side by side, about: a product should read the features for many, and none wait long for the slowest


@dataclasses.dataclass(frozen=True)
class Problem:
    """H x R penalised regressions on the same N rows.

    Attributes:
      features: f32[N, D].
      target: f32[N, K]: of "softmax" a distribution over the classes in each row; of "sigmoid" 0, 1, or NaN where unknown, and a
        row's loss is the mean over its known classes.
      kind: "softmax" or "sigmoid".
      part: int[N], which of P parts (domains) a row belongs to.
      rows: f32[R, N], what a row weighs in each set of rows; 0: left out.
      scale: f32[H, R, P], the factor of each part's rows: the weight of row i is rows[r, i] * scale[h, r, part[i]].
      penalty: f32[H], at least 0; the bias is not penalised.
    """

    features: np.ndarray
    target: np.ndarray
    kind: str
    part: np.ndarray
    rows: np.ndarray
    scale: np.ndarray
    penalty: np.ndarray


@dataclasses.dataclass(frozen=True)
class Solution:
    """The minima.

    Attributes:
      kernel: f32[H, R, D, K].
      bias: f32[H, R, K].
      loss: f32[H, R], the penalised objective.
      gradient: f32[H, R], the largest component of its gradient, in the units of the loss divided by the sum of a
        problem's weights.
      iterations: i32[H, R], how many it took.
    """

    kernel: np.ndarray
    bias: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    iterations: np.ndarray


def solve(
    problem: Problem,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    memory: int = 6,
    devices: Sequence[jax.Device] | None = None,
) -> Solution:
    """Minimises every problem.

    Args:
      problem: what to minimise.
      tolerance: a problem is done where no component of its gradient exceeds this, its weights being scaled to sum to 1
        (scikit-learn's `tol`, by default 1e-4, is the same measure), or where float32 shows no further descent.
      max_iterations: of L-BFGS, in all.
      memory: the number of steps that L-BFGS remembers.
      devices: over which the settings are spread; None: the first one.

    Returns:
      The minima. Problems all of whose weights are 0 have W = 0.
    """
    devices = tuple(jax.local_devices()[:1] if devices is None else devices)
    block = _block(problem, len(devices), memory)
    # The weaker the penalty the longer it takes; in a block the slow ones hold up each other alone.
    order = np.argsort(
        problem.penalty / np.maximum(problem.scale.sum(axis=(1, 2)), 1e-30), kind="stable"
    )
    data = _data(problem, devices)
    run = functools.partial(
        _minimise,
        kind=problem.kind,
        tolerance=tolerance,
        max_iterations=max_iterations,
        memory=memory,
    )
    found = []
    for start in range(0, len(order), block):
        chosen = order[np.minimum(np.arange(start, start + block), len(order) - 1)]
        cut = jax.device_put(
            (problem.scale[chosen], problem.penalty[chosen]), _sharding(devices, "settings")
        )
        found.append([a[: len(order) - start] for a in jax.device_get(run(data, *cut))])
    back = np.argsort(order)
    return Solution(*(np.concatenate(arrays)[back] for arrays in zip(*found, strict=True)))


def _block(problem: Problem, devices: int, memory: int) -> int:
    """How many settings are solved side by side: of a few sizes that fit, the one that leaves the least to be filled up."""
    (h, r, _), (n, d), k = problem.scale.shape, problem.features.shape, problem.target.shape[1]
    most = max(1, _FLOATS // max(n * r * k, memory * (d + 1) * r * k, (d + 1) ** 2))
    enough = min(-(-_COLUMNS // r), most, h)
    sizes = range(enough, min(2 * enough, most, h) + 1)
    return -(-min(sizes, key=lambda size: -h % size) // devices) * devices


class _Data(NamedTuple):
    """What all problems share, on the devices."""

    x: jax.Array  # f32[N, D + 1], centred, then a column of ones
    mean: jax.Array  # f32[D]
    y: jax.Array  # f32[N, K], without NaN
    known: jax.Array  # f32[N, K], of "sigmoid" what a class counts in its row's loss
    part: jax.Array  # f32[N, P], one-hot
    rows: jax.Array  # f32[R, N]
    basis: jax.Array  # f32[C, K], orthonormal rows: parameters -> logits


class _State(NamedTuple):
    """Of L-BFGS, for all problems; parameters are f32[D + 1, C, H, R], the last row the bias."""

    u: jax.Array
    z: jax.Array  # f32[N, C, H, R], x u
    value: jax.Array  # f32[H, R]
    gradient: jax.Array
    steps: jax.Array  # f32[memory, D + 1, C, H, R]
    changes: jax.Array  # of the gradient
    rho: jax.Array  # f32[memory, H, R], 1 / (step · change); 0: not to be used
    gamma: jax.Array  # f32[H, R]
    done: jax.Array  # bool[H, R]
    taken: jax.Array  # i32[H, R]
    k: jax.Array


def _sharding(devices: Sequence[jax.Device], *axes: str) -> NamedSharding:
    mesh = jax.make_mesh(
        (len(devices),), ("settings",), axis_types=(AxisType.Auto,), devices=tuple(devices)
    )
    return NamedSharding(mesh, PartitionSpec(*axes))


def _data(problem: Problem, devices: Sequence[jax.Device]) -> _Data:
    target = np.asarray(problem.target, np.float32)
    classes = target.shape[1]
    if problem.kind not in KINDS:
        raise ValueError(f"kind is {problem.kind!r}; it can be {', '.join(KINDS)}")
    told = ~np.isnan(target)
    known = told / np.maximum(told.sum(axis=1, keepdims=True), 1)
    basis = np.eye(classes)
    if problem.kind == "softmax":
        # Logits that differ by a constant are the same prediction, and the penalty wants them to sum to 0: one column less.
        basis = np.linalg.svd(np.eye(classes) - 1 / classes)[2][: classes - 1]
    # The bias is not penalised, so centring moves no minimum, and takes out the direction that float32 would suffer from.
    mean = np.mean(problem.features, axis=0, dtype=np.float64).astype(np.float32)
    x = np.concatenate([problem.features - mean, np.ones((len(target), 1), np.float32)], axis=1)
    part = np.eye(problem.scale.shape[2], dtype=np.float32)[problem.part]
    data = _Data(
        x, mean, np.nan_to_num(target), known, part, np.asarray(problem.rows, np.float32), basis
    )  # type: ignore[arg-type]
    return jax.device_put(
        jax.tree.map(lambda a: np.asarray(a, np.float32), data), _sharding(devices)
    )


@functools.partial(jax.jit, static_argnames=("kind", "tolerance", "max_iterations", "memory"))
def _minimise(
    data: _Data,
    scale: jax.Array,
    penalty: jax.Array,
    *,
    kind: str,
    tolerance: float,
    max_iterations: int,
    memory: int,
) -> tuple[jax.Array, ...]:
    weight = jnp.einsum("hrp,np,rn->nhr", scale, data.part, data.rows, precision="highest")
    total = weight.sum(axis=0)
    total = jnp.where(total > 0, total, 1.0)
    weight = weight / total
    (n, f), c, (h, r) = data.x.shape, len(data.basis), total.shape
    shrunk = (penalty[:, None] / total) * (jnp.arange(f) < f - 1)[
        :, None, None, None
    ]  # f32[D + 1, 1, H, R]
    bound = _inverse_bound(data, scale / total[..., None], shrunk[:, 0], kind)

    def objective(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _losses(z, data, weight, kind)

    def gradient_of(u: jax.Array, slope: jax.Array) -> jax.Array:
        return _product(data.x.T, slope) + shrunk * u

    def iterate(s: _State) -> _State:
        direction = -_two_loop(s, bound)
        descent = _dot(s.gradient, direction)
        along = _product(data.x, direction)
        # The penalty on the line is a parabola.
        linear, square = _dot(shrunk * s.u, direction), _dot(shrunk * direction, direction)

        def value_at(a: jax.Array) -> jax.Array:
            return objective(s.z + a * along)[0] + penalty_now + a * linear + a * a * square / 2

        penalty_now = _dot(shrunk * s.u, s.u) / 2
        length = _line_search(value_at, s.value, descent, s.done | (descent >= 0))
        step = length * direction
        u, z = s.u + step, s.z + length * along
        loss, slope = objective(z)
        gradient = gradient_of(u, slope)
        change = gradient - s.gradient
        curvature = _dot(step, change)
        usable = curvature > 1e-12
        rho = jnp.where(usable, 1 / jnp.where(usable, curvature, 1.0), 0.0)
        scaled = _dot(change, jnp.einsum("hfe,echr->fchr", bound, change, precision="highest"))
        place = s.k % memory
        done = s.done | (length == 0) | (_largest(gradient) <= tolerance)
        return _State(
            u=u,
            z=z,
            value=loss + _dot(shrunk * u, u) / 2,
            gradient=gradient,
            steps=s.steps.at[place].set(step),
            changes=s.changes.at[place].set(change),
            rho=s.rho.at[place].set(rho),
            gamma=jnp.where(usable, curvature / jnp.where(usable, scaled, 1.0), s.gamma),
            done=done,
            taken=s.taken + ~s.done,
            k=s.k + 1,
        )

    zeros = jnp.zeros((f, c, h, r), jnp.float32)
    z = jnp.zeros((n, c, h, r), jnp.float32)
    loss, slope = objective(z)
    gradient = gradient_of(zeros, slope)
    history = jnp.zeros((memory, f, c, h, r), jnp.float32)
    state = _State(
        u=zeros,
        z=z,
        value=loss,
        gradient=gradient,
        steps=history,
        changes=history,
        rho=jnp.zeros((memory, h, r), jnp.float32),
        gamma=jnp.ones((h, r), jnp.float32),
        done=_largest(gradient) <= tolerance,
        taken=jnp.zeros((h, r), jnp.int32),
        k=jnp.zeros((), jnp.int32),
    )
    s = jax.lax.while_loop(lambda s: ~jnp.all(s.done) & (s.k < max_iterations), iterate, state)
    parameters = jnp.einsum("fchr,ck->hrfk", s.u, data.basis, precision="highest")
    kernel = parameters[:, :, :-1]
    bias = parameters[:, :, -1] - jnp.einsum("d,hrdk->hrk", data.mean, kernel, precision="highest")
    return kernel, bias, s.value * total, _largest(s.gradient), s.taken


def _losses(z: jax.Array, data: _Data, weight: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    """The weighed sums of the losses f32[H, R], and their derivatives by z, f32[N, C, H, R]."""
    # Class by class, so that problems lie beside each other in memory: the classes are few.
    columns, classes = range(len(data.basis)), range(data.y.shape[1])
    logits = [_sum(z[:, c] * data.basis[c, k] for c in columns) for k in classes]
    y = [data.y[:, k, None, None] for k in classes]
    if kind == "softmax":
        top = functools.reduce(jnp.maximum, logits)
        powers = [jnp.exp(v - top) for v in logits]
        whole = _sum(powers)
        each = jnp.log(whole) + top - _sum(t * v for t, v in zip(y, logits, strict=True))
        slopes = [power / whole - t for power, t in zip(powers, y, strict=True)]
    else:
        known = [data.known[:, k, None, None] for k in classes]
        each = _sum(
            m * (jax.nn.softplus(v) - t * v) for m, t, v in zip(known, y, logits, strict=True)
        )
        slopes = [m * (jax.nn.sigmoid(v) - t) for m, t, v in zip(known, y, logits, strict=True)]
    derivative = [
        weight * _sum(slope * data.basis[c, k] for k, slope in enumerate(slopes)) for c in columns
    ]
    return jnp.sum(weight * each, axis=0), jnp.stack(derivative, axis=1)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _inverse_bound(data: _Data, scale: jax.Array, shrunk: jax.Array, kind: str) -> jax.Array:
    """f32[H, D + 1, D + 1], the inverse of an upper bound on the Hessian, with the mean weights of a setting's problems.

    The Hessian of softmax cross-entropy by the logits is at most (I - 11'/K) / 2 (Böhning 1992), which is 1/2 on logits that
    sum to 0; that of the sigmoid at most 1/4.
    """
    often = jnp.mean(data.rows, axis=0)
    gram = jnp.einsum(
        "np,nf,ne->pfe", data.part * often[:, None], data.x, data.x, precision="highest"
    )
    hessian = (0.5 if kind == "softmax" else 0.25) * jnp.einsum(
        "hp,pfe->hfe", jnp.mean(scale, axis=1), gram
    )
    diagonal = (
        jnp.mean(shrunk, axis=2).T
        + _JITTER * jnp.mean(jnp.diagonal(hessian, axis1=1, axis2=2), axis=1)[:, None]
    )
    factor = jnp.linalg.cholesky(
        hessian + jnp.maximum(diagonal, 1e-12)[:, :, None] * jnp.eye(data.x.shape[1])
    )
    inverse = jax.scipy.linalg.solve_triangular(
        factor, jnp.broadcast_to(jnp.eye(data.x.shape[1]), factor.shape), lower=True
    )
    return jnp.einsum("hgf,hge->hfe", inverse, inverse, precision="highest")


def _two_loop(s: _State, bound: jax.Array) -> jax.Array:
    """The inverse Hessian times the gradient (Nocedal & Wright 2006, algorithm 7.4)."""
    memory = len(s.rho)
    q, factors = s.gradient, []
    for i in range(memory):  # from the newest
        j = (s.k - 1 - i) % memory
        factor = s.rho[j] * _dot(s.steps[j], q)
        q = q - factor * s.changes[j]
        factors.append((j, factor))
    q = s.gamma * jnp.einsum("hfe,echr->fchr", bound, q, precision="highest")
    for j, factor in reversed(factors):
        q = q + (factor - s.rho[j] * _dot(s.changes[j], q)) * s.steps[j]
    return q


def _line_search(
    value_at: Any, value: jax.Array, descent: jax.Array, resting: jax.Array
) -> jax.Array:
    """f32[H, R], steps of sufficient descent (Armijo), from 1 down by safeguarded parabolas; 0 where resting or none is found."""

    def missing(a: jax.Array, found: jax.Array) -> jax.Array:
        enough = value + _ARMIJO * a * descent + _NOISE * jnp.abs(value)
        return ~(found <= enough)  # a loss that is NaN is no descent

    def shorten(carry):
        a, _, again, i = carry
        found = value_at(a)
        again = again & missing(a, found)
        parabola = -descent * a * a / (2 * (found - value - descent * a))
        shorter = jnp.clip(jnp.nan_to_num(parabola, nan=0.0), 0.1 * a, 0.5 * a)
        return jnp.where(again, shorter, a), found, again, i + 1

    start = jnp.where(resting, 0.0, 1.0)
    a, _, again, _ = jax.lax.while_loop(
        lambda c: jnp.any(c[2]) & (c[3] < _HALVINGS),
        shorten,
        (start, value, ~resting, jnp.zeros((), jnp.int32)),
    )
    return jnp.where(again, 0.0, a)


def _product(matrix: jax.Array, of_all: jax.Array) -> jax.Array:
    """[A, B] x [B, C, H, R] as one matrix product."""
    flat = jnp.dot(matrix, of_all.reshape(len(of_all), -1), precision="highest")
    return flat.reshape(-1, *of_all.shape[1:])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32[H, R], the inner products of problems' parameters."""
    return jnp.sum(a * b, axis=(0, 1))


def _largest(gradient: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(gradient), axis=(0, 1))
