"""The training step: a pure function of (state, batch), the same under pmap, a mesh and one device.

Every random number is folded from (seed, step, position in the global batch). A resumed run
therefore equals the run that was not stopped, and a step does not depend on the number of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from medtl.data import augment
from medtl.examples import Normalization
from medtl.models.model import Model
from medtl.training import averages, balance, batch_norm, conflicts, mixing, optimizers
from medtl.training.inputs import prepare
from medtl.training.objective import Batch, Context, Objective
from medtl.training.trainable import ADAPTERS, Adapter

# Fields of the config whose value the state can carry, so that one program serves all of them.
TRACED = ("objective.lambda_", "learning_rate", "weight_decay")


@flax.struct.dataclass
class TrainState:
    """Everything that a training stage needs to go on.

    Attributes:
      step: i32[], the number of optimizer steps done.
      key: u32[2], the data of the stage's random key.
      params: `{"encoders": ..., "heads": ..., "terms": ..., "adapters": ...}`.
      batch_stats: running statistics of the encoders.
      opt_state: the optimizer's, for the trained parameters only.
      ema: the moving average of the trained parameters, or that of SWA, flat; empty where both are
        off.
      values: numbers that replace those of the compiled step, see `Step.with_values`; often empty.
      pretrained: the encoders that the stage started from, if a term reads them; otherwise empty.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    values: Any = flax.struct.field(default_factory=dict)
    pretrained: Any = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One training step; the fields are static under jit, which compares steps by identity.

    Attributes:
      model: the model.
      objective: the objective.
      optimizer: over flat parameters.
      trained: paths of the parameters that train.
      augmentation: of training images.
      normalization: of all images.
      batch_norm: "batch", "frozen" or "domain", see `batch_norm.apply`.
      rate: the learning rate over steps, for the log.
      remake: `TRACED` field of the training stage -> value, to (optimizer, rate) with these values.
      gradients: "sum", or how `conflicts.combine` combines those of the two domains.
      balance: how λ chooses itself, see `balance`.
      steps: the length of the stage, for `progress`; 0: it stays 0.
      classes: domain -> the names of the classes, for the terms.
      reads: what the terms read of their context; `pretrained` is kept in the state if read.
      accumulate: the number of micro-batches of a batch; must divide the size on each device.
      ema: decay of the moving average; 0: none.
      swa: the share of the stage after which SWA averages the weights; 0: it does not.
      sam: the radius of sharpness-aware minimization; 0: off.
      adapter: low-rank changes of kernels; None: there are none.
      mix: of pairs of examples; None: they are not mixed.
      axis_name: the pmap axis over which to sum; None under jit.
    """

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    trained: frozenset[optimizers.Path]
    augmentation: augment.Augmentation
    normalization: Normalization
    batch_norm: str = "batch"
    rate: Callable[[Any], Any] = lambda step: 0.0
    remake: Callable[[Mapping[str, Any]], tuple[optax.GradientTransformation, Any]] | None = None
    gradients: str = "sum"
    balance: str = "fixed"
    steps: int = 0
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    accumulate: int = 1
    ema: float = 0.0
    swa: float = 0.0
    sam: float = 0.0
    adapter: Adapter | None = None
    mix: mixing.Mix | None = None
    axis_name: str | None = None

    @property
    def __name__(self) -> str:
        """The name of the compiled program in traces and logs."""
        return "train_step"

    def with_values(self, values: Mapping[str, Any]) -> Step:
        """Return the step with other numbers, which may be traced.

        Args:
          values: any of `TRACED` -> f32[]; `sizes`, domain -> f32[], sizes of the training sets;
            `class_counts`, domain -> f32[K], read where a loss or term asks for it.
        """
        fields = {name: values[name] for name in TRACED[1:] if name in values}
        objective = dataclasses.replace(
            self.objective, sizes=values.get("sizes", self.objective.sizes)
        )
        if TRACED[0] in values:
            objective = dataclasses.replace(objective, lambda_=lambda _: values[TRACED[0]])
        optimizer, rate = self.optimizer, self.rate
        if fields:
            assert self.remake is not None
            optimizer, rate = self.remake(fields)
        return dataclasses.replace(self, objective=objective, optimizer=optimizer, rate=rate)

    def init(
        self,
        key: jax.Array,
        variables: Mapping[str, Any],
        values: Mapping[str, Any] | None = None,
        *,
        pretrained: Any = None,
    ) -> TrainState:
        """Return the state before the first step.

        Args:
          key: key[], the training stage's.
          variables: with the pretrained values already in place.
          values: as in `with_values`.
          pretrained: the transferred encoders; kept if a term reads them.
        """
        params = variables["params"]
        if self.adapter is not None:
            params = {**params, ADAPTERS: self.adapter.init(jax.random.fold_in(key, 1))}
        trained, _ = optimizers.split(params, self.trained)
        values = dict(values or {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            batch_stats=variables["batch_stats"],
            opt_state=self.with_values(values).optimizer.init(trained),
            ema=trained if self.ema > 0 or self.swa > 0 else {},
            values=values,
            pretrained=(pretrained or {}) if "pretrained" in self.reads else {},
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one optimizer step.

        Args:
          state: the state.
          batch: domain -> inputs by name (`image` uint8[B, H, W, C], or `encoded_image` f32[B, D]),
            `label`, `mask`, `weight`, `position`.

        Returns:
          The new state, and f32[] metrics by name: the objective's parts, `lambda`,
          `learning_rate`, `gradient_norm`, `update_norm`; in a joint stage `lambda`, and the
          cosines of `conflicts`.
        """
        step = self.with_values(state.values) if state.values else self
        trained, frozen = optimizers.split(state.params, self.trained)
        batch, held, found = step._held_out(state, trained, frozen, batch)
        (groups, parts), batch_stats = step._gradients(state, trained, frozen, batch)
        groups, parts = self._sum((groups, parts))
        gradients, cosines = step._combined(groups)
        if self.sam > 0:
            with jax.named_scope("sharpness"):
                # Foret et al. 2021, arXiv:2010.01412, equations 2 and 3: the gradient at the
                # highest point near the weights. Statistics and loss are those at the weights.
                length = self.sam / jnp.maximum(optax.tree.norm(gradients), 1e-12)
                higher = jax.tree.map(lambda w, g: w + length * g, trained, gradients)
                (groups, _), _ = step._gradients(state, higher, frozen, batch)
                gradients, _ = step._combined(self._sum(groups))
        if self.balance == "learned":
            gradients["terms", balance.NAME, "logit"] = balance.through_one_step(
                held, trained, gradients, groups["direction"], step.rate(state.step), self._sum
            )

        with jax.named_scope("optimizer"):
            updates, opt_state = step.optimizer.update(gradients, state.opt_state, trained)
            trained = optax.apply_updates(trained, updates)
            ema = state.ema
            if self.ema > 0:
                ema = jax.tree.map(
                    lambda old, new: self.ema * old + (1 - self.ema) * new, ema, trained
                )
            if self.swa > 0:
                ema = averages.running_mean(ema, trained, state.step, self.swa * self.steps)
        metrics = {
            **parts,
            **cosines,
            **found,
            "learning_rate": jnp.asarray(step.rate(state.step), jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),  # shows NaN in the new parameters first
        }
        if len(batch) > 1:
            metrics["lambda"] = step.objective.lambda_at(state.step)
            if self.balance in ("uncertainty", "learned"):
                metrics["lambda"] = balance.lambda_of(self.balance, state.params)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optimizers.merge(trained, frozen),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        return new, metrics

    def _gradients(self, state: TrainState, trained: Any, frozen: Any, batch: Batch) -> Any:
        """Return ((gradients by group, loss parts), batch statistics), over micro-batches.

        The groups are those of `_combined`.
        """
        loss = self._loss(state, frozen, self._sum(self.objective.counts(batch)))

        def gradient(trained: Any, batch_stats: Any, part: Batch) -> Any:
            shifts = self._shifts(trained, part)
            if self.gradients == "sum" and self.balance != "learned":
                (of_all, of_heads), aux = jax.grad(loss, (0, 1), has_aux=True)(
                    trained, shifts, batch_stats, part
                )
                return {"all": of_all, "heads": of_heads}, aux

            def both(trained: Any, shifts: Any) -> Any:
                return loss(trained, shifts, batch_stats, part)

            _, pull, aux = jax.vjp(both, trained, shifts, has_aux=True)  # type: ignore[misc]
            if self.balance == "learned":
                of_all, heads = pull(jnp.ones(3))
                factors = balance.shares(state.params)
                direction, _ = pull(jnp.append(factors, 0.0))
                return {"all": of_all, "heads": heads, "direction": direction}, aux
            (of_source, heads), (of_rest, other) = pull(jnp.eye(2)[0]), pull(jnp.eye(2)[1])
            heads = jax.tree.map(jnp.add, heads, other)
            return {"source": of_source, "target": of_rest, "heads": heads}, aux

        if self.accumulate == 1:
            gradients, (parts, batch_stats) = gradient(trained, state.batch_stats, batch)
            return (gradients, parts), batch_stats

        def add(carry: Any, part: Any) -> Any:
            # The barrier orders the micro-batches; unrolled, all would hold their memory at once.
            (batch_stats, total), part = jax.lax.optimization_barrier((carry, part))
            gradients, (parts, batch_stats) = gradient(trained, batch_stats, part)
            return (batch_stats, jax.tree.map(jnp.add, total, (gradients, parts))), None

        pieces = jax.tree.map(self._micro_batches, batch)
        first = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(gradient, trained, state.batch_stats, first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
        # XLA's CPU backend runs the gradients of convolutions ten times as slowly within a loop.
        unroll = self.accumulate if jax.default_backend() == "cpu" else 1
        (batch_stats, total), _ = jax.lax.scan(
            add, (state.batch_stats, zeros), pieces, unroll=unroll
        )
        return total, batch_stats

    def _loss(self, state: TrainState, frozen: Any, counts: Mapping[str, Any]) -> Callable:
        """Return the function (trained, shifts, batch statistics, batch) -> (value, others).

        The value is the objective, or [the source's part, the rest] where they are combined.
        """
        key = jax.random.wrap_key_data(state.key)

        def loss(trained: Any, shifts: Any, batch_stats: Any, part: Batch) -> Any:
            inputs = prepare(
                part,
                normalization=self.normalization,
                augmentation=self.augmentation,
                key=key,
                step=state.step,
            )
            if self.mix is not None:
                with jax.named_scope("mix"):
                    inputs, part = mixing.mixed(
                        self.mix, inputs, part, key=key, step=state.step, axis_name=self.axis_name
                    )
            params = self._merged(optimizers.merge(trained, frozen))
            model, shifted = self._with_heads(params, shifts)
            variables = {"params": shifted, "batch_stats": batch_stats}
            outputs, changed = batch_norm.apply(model, variables, inputs, self.batch_norm)
            context, share = self._context(state, params, outputs, part)
            objective, added = balance.weighted(self.objective, self.balance, params)
            value, parts = objective(
                outputs,
                part,
                step=state.step,
                counts=counts,
                context=context,
                share=share,
                class_counts=state.values.get("class_counts"),
                progress=self._progress(state),
            )
            if self.balance == "uncertainty":
                parts["term/uncertainty"] = share * added
                value = parts["loss"] = value + share * added
            if self.balance == "learned":
                value = balance.by_domain(objective, parts)
            if self.gradients != "sum":
                value = jnp.stack([parts["source"], value - parts["source"]])
            return value, (parts, changed)

        return loss

    def _held_out(
        self, state: TrainState, trained: Any, frozen: Any, batch: Batch
    ) -> tuple[Batch, Callable[[Any], Any], dict[str, jax.Array]]:
        """Hold a part of the target out, see `balance.hold_out`."""
        if self.balance not in balance.HELD_OUT:
            return batch, lambda trained: 0.0, {}
        objective = dataclasses.replace(self.objective, terms=())
        plain = dataclasses.replace(
            self, objective=objective, gradients="sum", balance="fixed", mix=None
        )

        def loss_of(trained: Any, part: Batch, counts: Any) -> Any:
            loss = plain._loss(state, frozen, self._sum(counts))
            return loss(trained, {}, state.batch_stats, part)

        held = state.values["held_out"]
        return balance.hold_out(self.balance, batch, held, trained, loss_of, self._sum)

    def _shifts(self, trained: Any, batch: Batch) -> dict[str, dict[optimizers.Path, jax.Array]]:
        """Return zeros for each domain in the shape of the shared head; {} where none is trained.

        Each domain adds its zeros to the head, so that one backward pass gives the gradient of the
        head for each of them.
        """
        heads = {self.model.head_of[domain] for domain in batch}
        head = {p: x for p, x in trained.items() if p[0] == "heads" and p[1] in heads}
        if len(batch) < 2 or len(heads) > 1 or not head:
            return {}
        return {d: {p[2:]: jnp.zeros_like(x) for p, x in head.items()} for d in batch}

    def _with_heads(self, params: Any, shifts: Mapping[str, Any]) -> tuple[Model, Any]:
        """Return the model and its parameters, with a head for each domain that has shifts."""
        if not shifts:
            return self.model, params
        name = self.model.head_of["target"]
        model = self.model.clone(
            make_heads=dict.fromkeys(shifts, self.model.make_heads[name]),
            head_of={domain: domain for domain in shifts},
        )
        flat = flax.traverse_util.flatten_dict(params["heads"][name])
        heads = {
            domain: flax.traverse_util.unflatten_dict({p: x + shift[p] for p, x in flat.items()})
            for domain, shift in shifts.items()
        }
        return model, {**params, "heads": heads}

    def _combined(self, groups: Mapping[str, Any]) -> tuple[Any, dict[str, jax.Array]]:
        """Return the gradient and the cosines of the domains' gradients.

        Args:
          groups: "heads", domain -> the gradient of the shared head; beside it "all", the gradient
            of all parameters, or "source" and "target".
        """
        cosines = {}
        if heads := groups["heads"]:
            cosines["cosine/head"] = conflicts.cosine(heads["source"], heads["target"])
        if "all" in groups:
            return groups["all"], cosines
        source, target = groups["source"], groups["target"]
        shared = conflicts.shared_paths(source, self.model.head_of)
        gradients, cosines["cosine/shared"] = conflicts.combine(
            source, target, shared, self.gradients
        )
        return gradients, cosines

    def _context(
        self, state: TrainState, params: Any, outputs: Any, batch: Batch
    ) -> tuple[Context | None, float]:
        """Return the terms' context, and the share of a term that this part contributes."""
        devices = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
        if not self.objective.terms:
            return None, 1.0 / (devices * self.accumulate)

        def gather(tree: Any) -> Any:
            if not self.axis_name:
                return tree
            return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axis_name, tiled=True), tree)

        parts = {
            "outputs": outputs,
            "batch": mixing.without_labels(batch) if self.mix else batch,
            "params": params,
            "pretrained": state.pretrained,
            "step": state.step,
            "progress": self._progress(state),
            "classes": self.classes,
            "class_counts": state.values.get("class_counts", {}),
        }
        return Context(parts, gather), 1.0 / (devices * self.accumulate)

    def _progress(self, state: TrainState) -> jax.Array:
        return state.step.astype(jnp.float32) / max(self.steps, 1)

    def variables(self, state: TrainState, *, final: bool = False) -> dict[str, Any]:
        """Return the variables that evaluation uses: the moving average where there is one.

        Adapters are merged. The average of SWA is used at the end alone (`final`): until then the
        BatchNorm statistics are those of the last weights.
        """
        params = state.params
        if self.ema > 0 or (final and self.swa > 0):
            _, frozen = optimizers.split(params, self.trained)
            params = optimizers.merge(state.ema, frozen)
        return {"params": self._merged(params), "batch_stats": state.batch_stats}

    def statistics(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """Return the state whose BatchNorm statistics have seen one more batch; nothing trains."""
        inputs = prepare(
            batch,
            normalization=self.normalization,
            augmentation=self.augmentation,
            key=jax.random.wrap_key_data(state.key),
            step=state.step,
        )
        variables = self.variables(state, final=True)
        _, changed = self.model.apply(variables, inputs, True, mutable=["batch_stats"])
        return dataclasses.replace(state, batch_stats=changed["batch_stats"]), {}

    def _merged(self, params: Any) -> Any:
        return params if self.adapter is None else self.adapter.merged(params)

    def _sum(self, tree: Any) -> Any:
        return jax.lax.psum(tree, self.axis_name) if self.axis_name else tree

    def _micro_batches(self, x: jax.Array) -> jax.Array:
        # Every k-th row in a micro-batch, so that over a mesh each device keeps its own rows.
        return jnp.swapaxes(x.reshape(-1, self.accumulate, *x.shape[1:]), 0, 1)
