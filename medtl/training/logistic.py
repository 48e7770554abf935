"""Many linear heads at once, to convergence: L2-penalized logistic regressions on shared features.

    minimize over W, b:  Σ_i weight_i ℓ(x_i W + b, y_i) + penalty / 2 · |W|²

for each of H settings and R sets of rows. The problems differ in the examples' weights and the
penalty alone, so one matrix product X [W_1 ... W_HR] serves all of them, and one the gradients. The
method is L-BFGS (Nocedal 1980) on all problems side by side. A line search costs no product, since
logits are linear in the step. The search starts from the inverse of Böhning's bound on the Hessian
(Böhning & Lindsay 1988, Böhning 1992), which the problems of a setting share because they have
nearly the same rows.

Only losses that are convex in the logits: softmax and sigmoid cross-entropy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

KINDS = ("softmax", "sigmoid")
_ARMIJO = 1e-4
_NOISE = 1e-6  # relative, of a float32 loss summed over thousands of examples
_HALVINGS = 30
_JITTER = 1e-5  # times the bound's mean diagonal; float32 needs it to factor the bound
_FLOATS = 1 << 27  # the largest array of a block of settings: 512 MiB
# Problems side by side, about: a product should read the features for many problems, and no problem
# should wait long for the slowest.
_COLUMNS = 64


@dataclasses.dataclass(frozen=True)
class Problem:
    """H x R penalized regressions on the same N rows.

    Attributes:
      features: f32[N, D].
      target: f32[N, K]. For "softmax" each row is a distribution over the classes. For "sigmoid"
        its entries are 0, 1 or NaN (unknown), and its loss is the mean over its known classes.
      kind: "softmax" or "sigmoid".
      part: int[N], the part (domain) of each row, of P.
      rows: f32[R, N], the weight of a row in each set of rows; 0: left out.
      scale: f32[H, R, P], the factor of each part's rows: the weight of row i is
        rows[r, i] * scale[h, r, part[i]].
      penalty: f32[H], at least 0; the bias is not penalized.
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
      loss: f32[H, R], the penalized objective.
      gradient: f32[H, R], the largest component of its gradient, for weights scaled to sum to 1.
      iterations: i32[H, R], their number.
    """

    kernel: np.ndarray
    bias: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    iterations: np.ndarray


def solve(
    problem: Problem,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    memory: int = 6,
    devices: Sequence[jax.Device] | None = None,
) -> Solution:
    """Minimize every problem.

    Args:
      problem: the problems.
      tolerance: a problem is done when no component of its gradient exceeds this, with its weights
        scaled to sum to 1 (as scikit-learn's `tol`), or when float32 shows no further descent.
        With λ = 1000 the penalty is small beside these, and 1e-5 left logits 0.7 off.
      max_iterations: of L-BFGS, in all.
      memory: the number of steps that L-BFGS remembers.
      devices: share the settings; None: the first one.

    Returns:
      The minima. A problem without weight has W = 0.

    Raises:
      ValueError: the kind is unknown.

    >>> x, y = np.array([[-1.0], [0.0], [1.0]], np.float32), np.array([[1.0, 0], [1, 0], [0, 1]])
    >>> rows, scale = np.ones((1, 3), np.float32), np.ones((1, 1, 1), np.float32)
    >>> part, penalty = np.zeros(3, int), np.ones(1, np.float32)
    >>> solve(Problem(x, y, "softmax", part, rows, scale, penalty)).kernel.round(2)
    array([[[[-0.56,  0.56]]]], dtype=float32)
    """
    if problem.kind not in KINDS:
        raise ValueError(f"kind is {problem.kind!r}; it can be {', '.join(KINDS)}")
    devices = tuple(jax.local_devices()[:1] if devices is None else devices)
    problem, rotation = _small(problem)
    block = _block(problem, len(devices), memory)
    # A weak penalty takes longer; a block holds problems of similar speed.
    order = np.argsort(
        problem.penalty / np.maximum(problem.scale.sum(axis=(1, 2)), 1e-30), kind="stable"
    )
    data = _data(problem, devices)
    run = functools.partial(
        _minimize,
        kind=problem.kind,
        tolerance=tolerance,
        max_iterations=max_iterations,
        memory=memory,
    )
    blocks = []
    for start in range(0, len(order), block):
        chosen = order[np.minimum(np.arange(start, start + block), len(order) - 1)]
        settings = problem.scale[chosen], problem.penalty[chosen]
        solved = run(data, *jax.device_put(settings, _sharding(devices, "settings")))
        blocks.append([a[: len(order) - start] for a in jax.device_get(solved)])
    back = np.argsort(order)
    kernel, *others = (np.concatenate(arrays)[back] for arrays in zip(*blocks, strict=True))
    if rotation is not None:
        kernel = np.einsum("dc,hrck->hrdk", rotation, kernel, optimize=True).astype(np.float32)
    return Solution(kernel, *others)


def _small(problem: Problem) -> tuple[Problem, np.ndarray | None]:
    """Return the problem on the rows that count and at most as many features; then as `rotated`."""
    of_part = np.max(problem.scale, axis=(0, 1))[problem.part]
    counts = (np.max(problem.rows, axis=0) * of_part) > 0
    used = np.flatnonzero(counts) if counts.any() else np.arange(1)
    features, rotation = rotated(np.asarray(problem.features)[used])
    small = dataclasses.replace(
        problem,
        features=features.astype(np.float32),
        target=problem.target[used],
        part=problem.part[used],
        rows=problem.rows[:, used],
    )
    return small, rotation


def rotated(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features of at most N columns, and the matrix [D, N] that takes a kernel back.

    With fewer rows than columns the minimum is in the span of the rows, and a rotation changes
    neither |W| nor a logit; so 25 labels on 2,048 features cost what 25 features do. None: the
    features are as they were.
    """
    if len(x) >= x.shape[1]:
        return x, None
    left, singular, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return left * singular, right.T


def _block(problem: Problem, devices: int, memory: int) -> int:
    """Return the number of settings in a block: the size that fits and leaves the least unused."""
    (h, r, _), (n, d), k = problem.scale.shape, problem.features.shape, problem.target.shape[1]
    most = max(1, _FLOATS // max(n * r * k, memory * (d + 1) * r * k, (d + 1) ** 2))
    enough = min(-(-_COLUMNS // r), most, h)
    sizes = range(enough, min(2 * enough, most, h) + 1)
    return -(-min(sizes, key=lambda size: -h % size) // devices) * devices


class _Data(NamedTuple):
    """The arrays that all problems share, on the devices."""

    x: Any  # f32[N, D + 1], centred, then a column of ones
    mean: Any  # f32[D]
    y: Any  # f32[N, K], without NaN
    known: Any  # f32[N, K], of "sigmoid" the weight of a class in its row's loss
    part: Any  # f32[N, P], one-hot
    rows: Any  # f32[R, N]
    basis: Any  # f32[C, K], orthonormal rows: parameters -> logits


class _State(NamedTuple):
    """The state of L-BFGS for all problems; parameters f32[D + 1, C, H, R] end with the bias."""

    u: jax.Array  # the parameters
    z: jax.Array  # f32[N, C, H, R], x u
    value: jax.Array  # f32[H, R]
    gradient: jax.Array
    steps: jax.Array  # f32[memory, D + 1, C, H, R]
    changes: jax.Array  # of the gradient
    rho: jax.Array  # f32[memory, H, R], 1 / (step · change); 0: not to be used
    gamma: jax.Array  # f32[H, R]
    done: jax.Array  # bool[H, R]
    iterations: jax.Array  # i32[H, R]
    k: jax.Array  # i32[]


class _Problems(NamedTuple):
    """The problems of some settings."""

    data: _Data
    weight: jax.Array  # f32[N, H, R], sums to 1
    decay: jax.Array  # f32[D + 1, 1, H, R], the penalty in these units
    bound: jax.Array  # f32[H, D + 1, D + 1], of `_inverse_bound`
    kind: str

    def losses(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the weighted sums of the losses f32[H, R], and their derivatives by z."""
        # Class by class, so that problems are neighbors in memory: the classes are few.
        data, weight = self.data, self.weight
        columns, classes = range(len(data.basis)), range(data.y.shape[1])
        logits = [_sum(z[:, c] * data.basis[c, k] for c in columns) for k in classes]
        y = [data.y[:, k, None, None] for k in classes]
        if self.kind == "softmax":
            top = functools.reduce(jnp.maximum, logits)
            powers = [jnp.exp(v - top) for v in logits]
            normalizer = _sum(powers)
            loss = jnp.log(normalizer) + top - _sum(t * v for t, v in zip(y, logits, strict=True))
            slopes = [power / normalizer - t for power, t in zip(powers, y, strict=True)]
        else:
            known = [data.known[:, k, None, None] for k in classes]
            loss = _sum(
                m * (jax.nn.softplus(v) - t * v) for m, t, v in zip(known, y, logits, strict=True)
            )
            slopes = [m * (jax.nn.sigmoid(v) - t) for m, t, v in zip(known, y, logits, strict=True)]
        derivative = [
            weight * _sum(slope * data.basis[c, k] for k, slope in enumerate(slopes))
            for c in columns
        ]
        return jnp.sum(weight * loss, axis=0), jnp.stack(derivative, axis=1)

    def gradient(self, u: jax.Array, slope: jax.Array) -> jax.Array:
        return _product(self.data.x.T, slope) + self.decay * u


def _sharding(devices: Sequence[jax.Device], *axes: str) -> NamedSharding:
    mesh = jax.make_mesh(
        (len(devices),), ("settings",), axis_types=(AxisType.Auto,), devices=tuple(devices)
    )
    return NamedSharding(mesh, PartitionSpec(*axes))


def _data(problem: Problem, devices: Sequence[jax.Device]) -> _Data:
    target = np.asarray(problem.target, np.float32)
    classes = target.shape[1]
    is_known = ~np.isnan(target)
    known = is_known / np.maximum(is_known.sum(axis=1, keepdims=True), 1)
    basis = np.eye(classes)
    if problem.kind == "softmax":
        # A constant added to all logits changes no prediction, and under the penalty they sum to 0:
        # one column less.
        basis = np.linalg.svd(np.eye(classes) - 1 / classes)[2][: classes - 1]
    # The bias is not penalized, so centring moves no minimum; float32 needs it.
    mean = np.mean(problem.features, axis=0, dtype=np.float64).astype(np.float32)
    x = np.concatenate([problem.features - mean, np.ones((len(target), 1), np.float32)], axis=1)
    part = np.eye(problem.scale.shape[2], dtype=np.float32)[problem.part]
    data = _Data(x, mean, np.nan_to_num(target), known, part, problem.rows, basis)
    return jax.device_put(
        jax.tree.map(lambda a: np.asarray(a, np.float32), data), _sharding(devices)
    )


@functools.partial(jax.jit, static_argnames=("kind", "tolerance", "max_iterations", "memory"))
def _minimize(
    data: _Data,
    scale: jax.Array,
    penalty: jax.Array,
    *,
    kind: str,
    tolerance: float,
    max_iterations: int,
    memory: int,
) -> tuple[jax.Array, ...]:
    """Return the fields of `Solution` for some settings."""
    weight = jnp.einsum("hrp,np,rn->nhr", scale, data.part, data.rows, precision="highest")
    total = weight.sum(axis=0)
    total = jnp.where(total > 0, total, 1.0)
    width, columns = data.x.shape[1], len(data.basis)
    penalized = (jnp.arange(width) < width - 1)[:, None, None, None]  # all but the bias
    decay = (penalty[:, None] / total) * penalized
    bound = _inverse_bound(data, scale / total[..., None], decay[:, 0], kind)
    problems = _Problems(data, weight / total, decay, bound, kind)

    zeros = jnp.zeros((width, columns, *total.shape), jnp.float32)
    z = jnp.zeros((len(data.x), columns, *total.shape), jnp.float32)
    loss, slope = problems.losses(z)
    gradient = problems.gradient(zeros, slope)
    history = jnp.zeros((memory, *zeros.shape), jnp.float32)
    start = _State(
        u=zeros,
        z=z,
        value=loss,
        gradient=gradient,
        steps=history,
        changes=history,
        rho=jnp.zeros((memory, *total.shape), jnp.float32),
        gamma=jnp.ones(total.shape, jnp.float32),
        done=_largest(gradient) <= tolerance,
        iterations=jnp.zeros(total.shape, jnp.int32),
        k=jnp.zeros((), jnp.int32),
    )
    s = jax.lax.while_loop(
        lambda s: ~jnp.all(s.done) & (s.k < max_iterations),
        functools.partial(_iterate, problems, tolerance),
        start,
    )
    parameters = jnp.einsum("fchr,ck->hrfk", s.u, data.basis, precision="highest")
    kernel = parameters[:, :, :-1]
    bias = parameters[:, :, -1] - jnp.einsum("d,hrdk->hrk", data.mean, kernel, precision="highest")
    return kernel, bias, s.value * total, _largest(s.gradient), s.iterations


def _iterate(problems: _Problems, tolerance: float, s: _State) -> _State:
    """Take one iteration of L-BFGS for all problems."""
    direction = -_two_loop(s, problems.bound)
    descent = _dot(s.gradient, direction)
    along = _product(problems.data.x, direction)
    # The penalty on the line is a parabola.
    decayed = problems.decay * s.u
    linear, square = _dot(decayed, direction), _dot(problems.decay * direction, direction)
    constant = _dot(decayed, s.u) / 2

    def value_at(a: jax.Array) -> jax.Array:
        return problems.losses(s.z + a * along)[0] + constant + a * linear + a * a * square / 2

    length = _line_search(value_at, s.value, descent, s.done | (descent >= 0))
    step = length * direction
    u, z = s.u + step, s.z + length * along
    loss, slope = problems.losses(z)
    gradient = problems.gradient(u, slope)
    change = gradient - s.gradient
    curvature = _dot(step, change)
    usable = curvature > 1e-12
    scaled = _dot(change, _times(problems.bound, change))
    slot = s.k % len(s.rho)
    return _State(
        u=u,
        z=z,
        value=loss + _dot(problems.decay * u, u) / 2,
        gradient=gradient,
        steps=s.steps.at[slot].set(step),
        changes=s.changes.at[slot].set(change),
        rho=s.rho.at[slot].set(jnp.where(usable, 1 / jnp.where(usable, curvature, 1.0), 0.0)),
        gamma=jnp.where(usable, curvature / jnp.where(usable, scaled, 1.0), s.gamma),
        done=s.done | (length == 0) | (_largest(gradient) <= tolerance),
        iterations=s.iterations + ~s.done,
        k=s.k + 1,
    )


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _inverse_bound(data: _Data, scale: jax.Array, decay: jax.Array, kind: str) -> jax.Array:
    """Return the inverse of an upper bound on the Hessian, f32[H, D + 1, D + 1].

    The weights are the mean of a setting's problems. The Hessian of softmax cross-entropy by the
    logits is at most (I - 11'/K) / 2 (Böhning 1992), which is 1/2 on logits that sum to 0; that of
    the sigmoid is at most 1/4.
    """
    part = data.part * jnp.mean(data.rows, axis=0)[:, None]
    gram = jnp.einsum("np,nf,ne->pfe", part, data.x, data.x, precision="highest")
    hessian = (0.5 if kind == "softmax" else 0.25) * jnp.einsum(
        "hp,pfe->hfe", jnp.mean(scale, axis=1), gram
    )
    eye = jnp.eye(data.x.shape[1])
    jitter = _JITTER * jnp.mean(jnp.diagonal(hessian, axis1=1, axis2=2), axis=1)
    diagonal = jnp.mean(decay, axis=2).T + jitter[:, None]
    factor = jnp.linalg.cholesky(hessian + jnp.maximum(diagonal, 1e-12)[:, :, None] * eye)
    inverse = jax.scipy.linalg.solve_triangular(
        factor, jnp.broadcast_to(eye, factor.shape), lower=True
    )
    return jnp.einsum("hgf,hge->hfe", inverse, inverse, precision="highest")


def _two_loop(s: _State, bound: jax.Array) -> jax.Array:
    """Return the inverse Hessian times the gradient (Nocedal & Wright 2006, algorithm 7.4)."""
    memory = len(s.rho)
    q, factors = s.gradient, []
    for i in range(memory):  # from the newest
        j = (s.k - 1 - i) % memory
        factor = s.rho[j] * _dot(s.steps[j], q)
        q = q - factor * s.changes[j]
        factors.append((j, factor))
    q = s.gamma * _times(bound, q)
    for j, factor in reversed(factors):
        q = q + (factor - s.rho[j] * _dot(s.changes[j], q)) * s.steps[j]
    return q


def _line_search(
    value_at: Callable[[jax.Array], jax.Array],
    value: jax.Array,
    descent: jax.Array,
    resting: jax.Array,
) -> jax.Array:
    """Return step lengths f32[H, R] of sufficient descent (Armijo); 0 where resting or none exists.

    They begin with 1 and are shortened by safeguarded parabolas.
    """

    def shorten(carry: Any) -> Any:
        a, again, i = carry
        new = value_at(a)
        enough = value + _ARMIJO * a * descent + _NOISE * jnp.abs(value)
        again = again & ~(new <= enough)  # a loss that is NaN is no descent
        parabola = -descent * a * a / (2 * (new - value - descent * a))
        shorter = jnp.clip(jnp.nan_to_num(parabola, nan=0.0), 0.1 * a, 0.5 * a)
        return jnp.where(again, shorter, a), again, i + 1

    start = jnp.where(resting, 0.0, 1.0)
    a, again, _ = jax.lax.while_loop(
        lambda c: jnp.any(c[1]) & (c[2] < _HALVINGS),
        shorten,
        (start, ~resting, jnp.zeros((), jnp.int32)),
    )
    return jnp.where(again, 0.0, a)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """Return [A, B] times [B, C, H, R], as one matrix product."""
    flat = jnp.dot(matrix, x.reshape(len(x), -1), precision="highest")
    return flat.reshape(-1, *x.shape[1:])


def _times(bound: jax.Array, x: jax.Array) -> jax.Array:
    """Return each setting's bound [H, D + 1, D + 1] times its problems' parameters."""
    return jnp.einsum("hfe,echr->fchr", bound, x, precision="highest")


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the inner products f32[H, R] of the problems' parameters."""
    return jnp.sum(a * b, axis=(0, 1))


def _largest(gradient: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(gradient), axis=(0, 1))
