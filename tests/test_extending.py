"""Every plug-in works from a user's own file and one line of config, without a change to medtl."""

import json
import re
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extending_page import examples, nonblank, write_files
from PIL import Image

from medtl import cli

EXAMPLES = examples()
TERMS = ("A term over both domains", "A regularizer", "A term with parameters")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Run in a folder that holds the files of the page and a config."""
    write_files(tmp_path)
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.append({str(__file__).rpartition("/")[0]!r})
            from tiny_run import tiny

            def get_config():
                c = tiny(arms=("transfer",))
                c.arm.transfer.init = "weights"
                return c
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(*flags, workdir="run"):
    return cli.run(["--config=mine.py", f"--workdir={workdir}", *flags])


def steps(folder, stage="target", arm="transfer"):
    lines = (folder / "seed_0" / arm / stage / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(folder, stage="target"):
    return np.array([line["loss"] for line in steps(folder, stage) if "loss" in line])


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_has_at_most_fifteen_lines(title):
    """The second input is two plug-ins: a reader and an encoder."""
    assert len(nonblank(EXAMPLES[title][1])) <= 15 * (2 if "second input" in title else 1)


@pytest.mark.slow
@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_trains_and_is_logged_by_name(title, files, capsys):
    _, _, flags = EXAMPLES[title]
    assert launch(*flags) == 0, capsys.readouterr().err
    summary = json.loads((files / "run" / "metrics.json").read_text())
    for flag in flags:  # the config of the run names the plug-in
        path, value = re.fullmatch(r"--config\.([\w.]+)=(.*)", flag, re.DOTALL).groups()
        node = summary["config"]
        for part in path.split("."):
            node = node[part]
        assert node in (value, [value], float(value) if value.replace(".", "").isdigit() else value)
    lines = steps(files / "run")
    if title in TERMS:
        term = re.search(r"terms\.(\w+)", flags[0])[1]
        name = f"term/{term}"
        assert np.isfinite([line[name] for line in lines if "loss" in line]).all()
        assert any(line[name] != lines[0][name] for line in lines if "loss" in line)
    if title == "A metric":
        assert all("youden" in line["val"] for line in lines if "val" in line)
        assert "youden" in (files / "run" / "report.html").read_text()
    if title == "A metric writer":
        written = (files / "run" / "seed_0" / "transfer" / "target" / "loss.csv").read_text()
        assert len(written.splitlines()) == len(losses(files / "run")) + 2  # and two evaluations


ALL = (
    "A term over both domains",
    "A regularizer",
    "A backbone",
    "A sampler",  # by default its classes are balanced
    "A metric",
)


def all_plugins(folder, **other):
    """Return the flags of a sampler, MMD, L2-SP, a ConvNeXt and a metric, all from one file."""
    (folder / "plugins.py").write_text("\n\n".join(EXAMPLES[title][1] for title in ALL))
    flags = [re.sub(r"\w+\.py:", "plugins.py:", f) for title in ALL for f in EXAMPLES[title][2]]
    flags += ["--config.checkpoint.metric=youden"]
    return flags + [f"--config.{path.replace('__', '.')}={value}" for path, value in other.items()]


@pytest.mark.slow
def test_plugins_give_the_same_on_one_device_and_on_eight(files):
    """With one seed and SGD, MMD, DANN and L2-SP; the order of sums differs, and nothing else."""
    flags = [flag for title in TERMS for flag in EXAMPLES[title][2]]
    flags += ["--config.stages.target.optimizer=sgd", "--config.stages.source.optimizer=sgd"]
    found = {}
    for mode in ("none", "pmap", "mesh"):
        assert launch(*flags, f"--config.parallel={mode}", workdir=mode) == 0
        logged = [line for line in steps(files / mode) if "loss" in line]
        names = ("loss", "term/mmd", "term/l2_sp", "term/dann", "gradient_norm")
        found[mode] = np.array([[line[name] for name in names] for line in logged])
    np.testing.assert_allclose(found["pmap"], found["none"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found["mesh"], found["none"], rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_all_plugins_in_one_run_on_eight_devices_killed_and_resumed(files, monkeypatch):
    """The resumed run is the uninterrupted one, bit for bit."""
    flags = all_plugins(files, parallel="pmap", checkpoint__every_steps=1)
    assert launch(*flags, workdir="whole") == 0
    from medtl.training.checkpoint import Store

    save, calls = Store.save, []

    def killed(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        calls.append(step)
        if len(calls) == 6:
            self.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", killed)
        assert launch(*flags, workdir="parts") == 130
    assert launch(*flags, workdir="parts") == 0
    whole, parts = files / "whole", files / "parts"
    for name in ("predictions.csv", "seed_0/transfer/target/log.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    states = []
    for folder in (whole, parts):
        with Store(folder / "seed_0" / "transfer" / "target") as store:
            states.append(store.arrays(store.last_step))
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])


@pytest.mark.slow
def test_plugins_in_a_cross_validation_and_in_a_sweep(files, capsys):
    flags = all_plugins(files, evaluation__folds=2)
    assert launch(*flags, workdir="folds") == 0, capsys.readouterr().err
    summary = json.loads((files / "folds" / "metrics.json").read_text())
    assert "youden" in json.dumps(summary["evaluation"])
    grid = ["--mode=sweep", "--config.sweep.grid.objective.terms.mmd.weight=0.1,1"]
    assert launch(*all_plugins(files), *grid, workdir="sweep") == 0, capsys.readouterr().err
    points = json.loads((files / "sweep" / "sweep.json").read_text())["points"]
    assert [p["objective.terms.mmd.weight"] for p in points] == [0.1, 1.0]
    assert all(np.isfinite(p["value"]) for p in points)


def test_a_term_over_the_batch_is_refused_under_accumulation(files, capsys):
    flags = EXAMPLES["A term over both domains"][2]
    assert launch(*flags, "--config.stages.target.accumulate=4") == 2
    said = capsys.readouterr().err
    assert "config.objective.terms.mmd reads the whole batch" in said
    assert "config.stages.target.accumulate is 4" in said


@pytest.mark.slow
def test_a_regularizer_is_the_same_under_accumulation(files):
    flags = [*EXAMPLES["A regularizer"][2], "--config.stages.target.batch_norm=frozen"]
    flags += ["--config.stages.target.optimizer=sgd", "--config.stages.source.optimizer=sgd"]
    assert launch(*flags, workdir="whole") == 0
    assert launch(*flags, "--config.stages.target.accumulate=4", workdir="parts") == 0
    np.testing.assert_allclose(losses(files / "parts"), losses(files / "whole"), rtol=1e-4)


def test_a_term_is_left_out_where_its_domain_is_missing(files, capsys):
    assert launch(*EXAMPLES["A term over both domains"][2], "--mode=check") == 0
    said = capsys.readouterr().out
    assert "transfer, source stage: term 'mmd' is left out: the batch holds no examples of" in said


def test_a_changed_file_is_another_run(files, capsys):
    """A killed run with another loss in the same file is not resumed."""
    flags = EXAMPLES["A loss"][2]
    assert launch(*flags) == 0
    (files / "focal.py").write_text(
        (files / "focal.py").read_text().replace("return -", "return -1000 * ")
    )
    assert launch(*flags) == 2
    assert (
        "focal.py has changed since run/seed_0/transfer/source was trained"
        in capsys.readouterr().err
    )


def test_check_mode_resolves_and_trains_nothing(files, capsys):
    assert launch(*all_plugins(files), "--mode=check") == 0
    said = capsys.readouterr().out
    assert "config.objective.terms.mmd.term: plugins.py:mmd" in said
    assert "input image: float32[B, 16, 16, 1]" in said
    assert "features: float32[B, 8]" in said
    assert re.search(r"transfer +target +\d+ +[\d,]+ +[\d,]+ +l2_sp, mmd", said)
    assert "Nothing was trained." in said
    assert not (files / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.objective.terms.x.term=mmd.py:mmmd", "did you mean 'mmd'?"),
        ("--config.stages.target.sampler=ballanced", "did you mean 'balanced'?"),
        ("--config.augment.extra=cutout.py:cutout(sise=3)", "did you mean 'size'?"),
        ("--config.evaluation.metrics.y=youden.py:youdan", "did you mean 'youden'?"),
        ("--config.loggers=writer.py:Csw", "did you mean 'Csv'?"),
        ("--config.model.name=convnext.py:ConvNext", "did you mean 'ConvNeXt'?"),
        ("--config.model.encoders.table=table.py:Mlp", "config.model.encoders.table"),
    ],
)
def test_a_mistake_is_found_before_training(flag, message, files, capsys):
    last = ["--config.model.last_layer="] if "model.name" in flag else []
    assert launch(flag, *last) == 2
    said = capsys.readouterr().err
    assert message in said
    assert flag.partition("=")[0].removeprefix("--") in said
    assert not (files / "run" / "seed_0").exists()


def test_the_mmd_of_the_page_is_the_closed_form():
    """Two samples of one point each at distance d: 2 - 2 exp(-d² / 2w²)."""
    namespace = {}
    exec(EXAMPLES["A term over both domains"][1], namespace)

    features = {"source": jnp.zeros((1, 2)), "target": jnp.array([[3.0, 4.0], [9.0, 9.0]])}
    masks = {"source": jnp.ones(1), "target": jnp.array([1.0, 0.0])}
    context = types.SimpleNamespace(
        outputs={d: types.SimpleNamespace(features=x) for d, x in features.items()},
        batch={d: {"mask": mask} for d, mask in masks.items()},
    )
    value = namespace["mmd"](context, width=5.0)
    np.testing.assert_allclose(value, 2 - 2 * np.exp(-0.5), rtol=1e-6)


def test_the_discriminator_of_the_page_reverses_the_gradient():
    namespace = {}
    exec(EXAMPLES["A term with parameters"][1], namespace)
    module = namespace["Discriminator"](width=4)

    def context(source, target):
        outputs = {"source": source, "target": target}
        wrapped = {d: types.SimpleNamespace(features=x) for d, x in outputs.items()}
        masks = {d: {"mask": jnp.ones(len(x))} for d, x in outputs.items()}
        return types.SimpleNamespace(outputs=wrapped, batch=masks)

    x = jax.random.normal(jax.random.key(0), (6, 3))
    variables = module.init(jax.random.key(1), context(x[:3], x[3:]))

    def loss(x):
        return module.apply(variables, context(x[:3], x[3:]))

    step = 1e-2
    assert loss(x - step * jax.grad(loss)(x)) > loss(x)


BATCH_NORM = """
from flax import linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), (2, 2))(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x))
"""


def test_batch_norm_without_an_axis_is_refused_under_pmap(files, capsys):
    (files / "net.py").write_text(BATCH_NORM)
    flags = ["--config.model.name=net.py:Net", "--config.model.last_layer="]
    assert launch(*flags, "--config.parallel=pmap") == 2
    said = capsys.readouterr().err
    assert "config.model.name: Net has batch statistics but no field axis_name" in said
    assert launch(*flags, "--config.parallel=mesh", "--mode=check") == 0


@pytest.mark.parametrize(
    ("content", "flag", "message"),
    [
        (
            "class W:\n    def __init__(self, folder, config): pass",
            "loggers=bad.py:W",
            "no method write()",
        ),
        ("def t(context): return None", "objective.terms.t.term=bad.py:t", "it must return f32[]"),
        (
            "def m(y, p, w): raise ValueError('no')",
            "evaluation.metrics.m=bad.py:m",
            "config.evaluation.metrics.m",
        ),
        (
            "from flax import linen as nn\nclass N(nn.Module):\n    def __call__(self, x, train):\n"
            "        raise ValueError('no')",
            "model.name=bad.py:N",
            "bad.py, line 4: ValueError: no",
        ),
    ],
    ids=["writer", "term", "metric", "backbone"],
)
def test_a_plugin_that_fails_is_found_by_check(content, flag, message, files, capsys):
    (files / "bad.py").write_text(content + "\n")
    flags = [f"--config.{flag}", "--mode=check"]
    assert launch(*flags, *(["--config.model.last_layer="] if "model" in flag else [])) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_changed_encoder_does_not_predict(files, capsys):
    _, _, flags = EXAMPLES["A backbone"]
    assert launch(*flags, "--config.stages.target.epochs=0", "--config.stages.source.epochs=0") == 0
    with (files / "convnext.py").open("a") as file:
        file.write("# changed\n")
    (files / "new.csv").write_text("image_path\nx.png\n")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(files / "x.png")
    predict = ["--mode=predict", "--workdir=run", "--manifest=new.csv"]
    assert cli.run(predict) == 2
    assert "convnext.py:ConvNeXt(width=8)' (config.model.name), which" in capsys.readouterr().err
    assert cli.run([*predict, "--accept_code"]) == 2
    assert "convnext.py has changed since" in capsys.readouterr().err


def test_a_changed_writer_may_resume(files):
    _, _, flags = EXAMPLES["A metric writer"]
    assert launch(*flags) == 0
    with (files / "writer.py").open("a") as file:
        file.write("# changed\n")
    assert launch(*flags) == 0
