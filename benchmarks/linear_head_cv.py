"""How long and how fast should the linear head of configs/covid_ct.py train?

    python benchmarks/linear_head_cv.py

Patient-grouped 5-fold cross-validation inside the train split of COVID-CT; val is not used. Prints
the mean AUROC over folds for each learning rate, weight decay and number of epochs, and writes
benchmarks/results/linear_head_cv.json.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from medtl import cli
from medtl.experiment import experiment
from medtl.experiment.provenance import versions

ROOT = Path(__file__).parents[1]
EPOCHS = (30, 60, 100, 150, 200, 300)
SETTINGS = (
    (3e-4, 0.0),
    (1e-3, 0.0),
    (1e-3, 0.1),
    (1e-3, 1.0),
    (3e-3, 0.0),
    (3e-3, 0.3),
)  # learning rate, weight decay
BATCH = 32


def features_of_train():
    """Return features f32[n, 1024] of COVID-CT's train split, labels, patients."""
    config = cli.load_config_file(str(ROOT / "configs/covid_ct.py"))
    config.arms = ("target_only",)
    opened, _ = experiment.open_experiment(config, Path(), training=True)
    target, features = opened.examples["target"], opened.frozen_features("target")
    rows = target.indices("train")
    return features[rows], target.label[rows], target.patient[rows]


def heads(x, y, *, rate, decay, seed=0):
    """Yield the head after each of EPOCHS, trained with decoupled weight decay as medtl does."""
    steps = -(-len(x) // BATCH)
    rng = np.random.default_rng(seed)
    epochs = max(EPOCHS)
    endless = np.concatenate([rng.permutation(len(x)) for _ in range(2 * epochs)])
    order = jnp.asarray(endless[: epochs * steps * BATCH].reshape(epochs, steps, BATCH))
    x, y = jnp.asarray(x), jnp.asarray(y)
    optimizer = optax.adamw(rate, weight_decay=decay, mask=(True, False))
    head = (jax.nn.initializers.lecun_normal()(jax.random.key(seed), (x.shape[1], 2)), jnp.zeros(2))

    def loss(head, rows):
        return optax.softmax_cross_entropy_with_integer_labels(
            x[rows] @ head[0] + head[1], y[rows]
        ).mean()

    def step(state, rows):
        head, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(head, rows), moments, head)
        return (optax.apply_updates(head, updates), moments), None

    epoch = jax.jit(lambda state, rows: jax.lax.scan(step, state, rows)[0])
    state = (head, optimizer.init(head))
    for i in range(epochs):
        state = epoch(state, order[i])
        if i + 1 in EPOCHS:
            yield i + 1, jax.device_get(state[0])


def main():
    x, y, patient = features_of_train()
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x, y, patient))
    table = []
    print("rate     decay  " + "".join(f"{n:>8}" for n in EPOCHS) + "  epochs")
    for rate, decay in SETTINGS:
        scores = {n: [] for n in EPOCHS}
        for train, held_out in folds:
            for n, (kernel, bias) in heads(x[train], y[train], rate=rate, decay=decay):
                logits = x[held_out] @ kernel + bias
                scores[n].append(roc_auc_score(y[held_out], logits[:, 1] - logits[:, 0]))
        means = {n: float(np.mean(v)) for n, v in scores.items()}
        table.append({"learning_rate": rate, "weight_decay": decay, "auroc": means})
        print(f"{rate:<8g} {decay:<6g} " + "".join(f"{v:8.4f}" for v in means.values()), flush=True)
    result = {"table": table, "versions": versions()}
    (ROOT / "benchmarks/results/linear_head_cv.json").write_text(
        json.dumps(result, indent=2) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
