"""What the README shows is what works."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from medtl import cli, plugins
from medtl.experiment import experiment
from medtl.models.model import Outputs
from medtl.training.objective import Objective, Term

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(title, language):
    section = README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture
def focal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "focal.py").write_text(block("Your own loss", "python"))
    named = re.search(r'losses\.main\.loss="(.*?)"', block("Your own loss", "bash"))[1]
    return named


def test_the_loss_is_found_by_the_name_shown_and_is_the_focal_loss(focal):
    """(1 - p)^1 * -log p at p = 1/4, by hand."""
    function, _, options = plugins.resolve(focal, "medtl.losses", key="k")
    outputs = Outputs(logits=jnp.log(jnp.array([[0.25, 0.75]])), features=jnp.zeros((1, 1)))
    value = function(outputs, {"label": jnp.array([0])}, **options)
    np.testing.assert_allclose(value, [0.75 * np.log(4)], rtol=1e-6)
    objective = Objective((Term("main", lambda o, b: function(o, b, **options)),))
    batch = {"target": {"label": jnp.array([0]), "mask": jnp.ones(1)}}
    gradient = jax.grad(
        lambda z: objective(
            {"target": outputs.replace(logits=z)}, batch, step=0, counts={"target": 1.0}
        )[0]
    )(outputs.logits)
    assert np.isfinite(gradient).all()


def test_the_loss_trains(focal, tmp_path):
    config = tiny(arms=("scratch",), objective__losses__main__loss=focal)
    result = experiment.train(config, tmp_path / "run")
    assert result["config"]["objective"]["losses"]["main"]["loss"] == "focal.py:focal(gamma=1.0)"


def test_every_override_shown_is_a_field(capsys):
    """Commands with an unknown field end with an error before they look at anything else."""
    for override in sorted(set(re.findall(r"--config\.[\w.]+=(?:\"[^\"]*\"|\S+)", README))):
        if "path.to.field" in override:
            continue
        name, value = override.split("=", 1)
        cli.run([f"{name}={value.strip('`)').strip(chr(34))}", "--help"])
        assert "error" not in capsys.readouterr().err, override
