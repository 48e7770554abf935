import pytest
from ml_collections import ConfigDict
from tiny_run import changed

from medtl import config as configs
from medtl.config import check
from medtl.errors import UserError

LAMBDA, RATE, DECAY = (
    "objective.lambda_",
    "stages.target.learning_rate",
    "stages.target.weight_decay",
)


def swept(values=None, **fields):
    """Return the embedded config with a frozen backbone, of no real file, and values to sweep."""
    grid = configs.grid({LAMBDA: (0, 1.0)} if values is None else values)
    for stage in ("source", "target"):
        fields = {
            f"stages__{stage}__freeze": "backbone",
            f"stages__{stage}__batch_norm": "frozen",
        } | fields
    return changed(
        **{"weights__path": "w.npz", "augment__flip": False} | {"sweep__grid": grid} | fields
    )


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({LAMBDA: (0, 1.0)}, {}),
        ({LAMBDA: (1,), RATE: (1e-3, 0.1), DECAY: (0,)}, {"sweep__arm": "transfer"}),
        ({LAMBDA: (1,)}, {"sweep__solver": "lbfgs", "stages__target__weight_decay": 0.1}),
        ({DECAY: (0.1,)}, {"arms": ("target_only",), "arm__target_only__init": "weights"}),
        ({"model.dropout": (0.0, 0.5), "stages.target.freeze": ("none", "backbone")}, {}),
        (
            {"model.hidden": ((), (64,)), "stages.target.optimizer": ("adam", "sgd(momentum=0.9)")},
            {},
        ),
        ({"objective.losses.main.weight": (1, 2.0)}, {}),
        (
            {LAMBDA: (1,)},
            {
                "arm__pooled": configs.arm("weights", source_stage=False, joint=True),
                "arms": ("transfer", "pooled"),
                "stages__source__freeze": "none",
            },
        ),
    ],
)
def test_what_can_be_swept_is_accepted(values, fields):
    config = swept(values, **fields)
    with pytest.raises(UserError, match="w.npz"):  # the last of all checks
        check.check(config)
    check.check_sweep(config)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("data.image_size", "all values are compared on the same examples"),
        ("data.target.train_size", "all values are compared on the same examples"),
        ("weights.path", "the network is made and its weights are loaded once"),
        ("model.name", "the network is made and its weights are loaded once"),
        ("model.heads", "the network is made and its weights are loaded once"),
        ("sweep.solver", "it says how values are compared"),
        ("evaluation.folds", "it says how values are compared"),
        ("checkpoint.metric", "it says how values are compared"),
        ("seeds", "it says which models are compared"),
        ("arm.transfer.joint", "it says which models are compared"),
        ("parallel", "it does not change what is learned"),
    ],
)
def test_what_all_models_of_a_sweep_share_is_not_tried(path, reason):
    with pytest.raises(UserError) as error:
        check.check(changed(sweep__grid=configs.grid({path: (1, 2)})))
    assert str(error.value).startswith(
        f"config.sweep.grid.{path}: {path} cannot be tried; {reason}"
    )


LBFGS = {"sweep__solver": "lbfgs"}


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        (
            None,
            {"evaluation__tune": configs.grid({DECAY: (1.0, 2.0)})},
            "--mode=sweep tries the values of config.sweep.grid; "
            "config.evaluation.tune.stages.target.weight_decay would try others",
        ),
        (
            {},
            {},
            "--mode=sweep has nothing to try: give values, such as "
            "--config.sweep.grid.objective.lambda_=0.1,1",
        ),
        ({LAMBDA: ()}, {}, "--mode=sweep has nothing to try"),
        (
            None,
            {"sweep__arm": "transfr"},
            "config.sweep.arm is 'transfr'; did you mean 'transfer'?",
        ),
        (
            None,
            {"arms": ("target_only",)},
            "config.sweep.grid.objective.lambda_ weighs the target of a joint arm, but "
            "target_only is not",
        ),
        (
            None,
            {"evaluation__folds": 5, "data__target__split": (0.8, 0.0, 0.2)},
            "compares on val, but the second fraction of config.data.target.split is 0",
        ),
        (
            None,
            LBFGS | {"weights__path": ""},
            "frozen backbone, but the backbone of transfer starts from random weights",
        ),
        (
            None,
            LBFGS | {"stages__target__freeze": "layer2"},
            "but config.stages.target.freeze is 'layer2', not 'backbone'",
        ),
        (
            None,
            LBFGS | {"stages__source__batch_norm": "batch"},
            "but config.stages.source.batch_norm is 'batch', not 'frozen'",
        ),
        (None, LBFGS | {"augment__flip": True}, "but config.augment.flip is True\n"),
        (None, LBFGS | {"augment__crop": 0.5}, "but config.augment.crop is 0.5\n"),
        (
            None,
            LBFGS | {"augment__extra": ("a.py:f",)},
            "but config.augment.extra is ('a.py:f',)\n",
        ),
        (
            None,
            LBFGS | {"model__encoders__table": "a.py:f"},
            "but config.model.encoders.table trains with the heads\n",
        ),
        (None, LBFGS, "needs weight decay above 0"),
        ({DECAY: (0.0, 0.1)}, LBFGS, "needs weight decay above 0"),
        ({RATE: (0.1,)}, LBFGS, "alone; leave config.sweep.grid.stages.target.learning_rate out"),
        (
            None,
            LBFGS | {"model__hidden": (8,)},
            "takes linear heads, but config.model.hidden is (8,)",
        ),
        (
            None,
            LBFGS | {"objective__terms__l2": ConfigDict({"term": "a.py:f", "weight": 1.0})},
            "takes one loss, but config.objective.terms adds others",
        ),
        (None, LBFGS | {"stages__target__sampler": "balanced"}, "takes every example once"),
        (
            None,
            LBFGS | {"objective__losses__main__loss": "mean_squared_error"},
            "takes one loss, cross_entropy or sigmoid_binary_cross_entropy; there is main: "
            "'mean_squared_error'",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(values, fields, message):
    with pytest.raises(UserError) as error:
        check.check_sweep(swept(values, **fields))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("solver", ["newton"])
def test_the_solver_of_a_sweep_is_one_of_two(solver):
    with pytest.raises(UserError, match="config.sweep.solver is 'newton'; it can be lbfgs, train"):
        check.check(changed(sweep__solver=solver))


def test_the_arm_that_is_swept_by_default_is_joint_and_has_no_source_stage():
    config = swept()
    assert check.swept_arm(config) == "transfer"
    config.arm.pooled = configs.arm("weights", source_stage=False, joint=True)
    config.arms = ("target_only", "transfer", "pooled")
    assert check.swept_arm(config) == "pooled"
    config.arms = ("target_only", "scratch")
    assert check.swept_arm(config) == "target_only"
