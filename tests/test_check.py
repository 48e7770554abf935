import pytest
from ml_collections import ConfigDict

from medtl import config as configs
from medtl.config import check
from medtl.errors import UserError


def changed(**fields):
    """The embedded config with some fields changed; "__" stands for a dot."""
    config = configs.default()
    for path, value in fields.items():
        section = config
        *parents, name = path.split("__")
        for parent in parents:
            section = section[parent]
        with section.ignore_type():
            section[name] = value
    return config


def test_the_embedded_config_is_accepted():
    check.check(configs.default())


@pytest.mark.parametrize(
    "fields",
    [
        {
            "arms": ("target_only",),
            "data__source__kind": "nonsense",
        },  # no running arm reads the source
        {"objective__lambda_": 0.0},
        {"objective__lambda_schedule": "linear_schedule(0.0, 1.0, 1000)"},
        {"stages__target__learning_rate": 1},  # an int is a number
        {"stages__target__schedule": "exponential_decay(transition_steps=100, decay_rate=0.9)"},
        {"stages__target__freeze": "3"},
        {"stages__target__epochs": 0},
        {
            "model__name": "resnet50",
            "model__stages": 3,
            "model__stride_in": "1x1",
            "model__hidden": (1024,),
        },
        {
            "data__target__multi_label": True,
            "arms": ("target_only",),
            "objective__losses__main__loss": "sigmoid_binary_cross_entropy",
        },
        {"data__target__split": (0.5, 0.5, 0.0)},
        {"arm__own": configs.arm("random", source_stage=True, joint=False), "arms": ("own",)},
        {
            "objective__losses__extra": ConfigDict(
                {"loss": "mine.py:focal(gamma=2.0)", "weight": 0.5}
            )
        },
    ],
)
def test_what_can_be_run_is_accepted(fields):
    check.check(changed(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "config.name is 'a/b'; it must be letters"),
        ({"seeds": ()}, "config.seeds is (); it must be at least one"),
        ({"seeds": (0, 0)}, "config.seeds is (0, 0); it must be without repetition"),
        ({"seeds": (0, -1)}, "config.seeds is (0, -1); it must be whole numbers"),
        ({"seeds": (0.5,)}, "config.seeds is (0.5,); it must be whole numbers"),
        ({"seeds": (True,)}, "config.seeds is (True,); it must be whole numbers"),
        ({"arms": ()}, "config.arms is (); it must be at least one"),
        ({"arms": ("transfr",)}, "config.arms is 'transfr'; did you mean 'transfer'?"),
        (
            {"arms": ("scratch", "scratch")},
            "config.arms is ('scratch', 'scratch'); it must be without repetition",
        ),
        (
            {"arm__scratch__init": "randm"},
            "config.arm.scratch.init is 'randm'; did you mean 'random'?",
        ),
        (
            {"model__name": "resnet5"},
            "model.name: there is no backbone 'resnet5'; did you mean 'resnet50'?",
        ),
        ({"model__stages": 4}, "model.stages: cifar_resnet20 has stages 1..3"),
        ({"model__stride_in": "1x1"}, "model.stride_in"),
        ({"model__dtype": "float16"}, "config.model.dtype is 'float16'; did you mean"),
        ({"model__dropout": 1.0}, "config.model.dropout is 1.0; it must be at least 0 and below 1"),
        ({"model__hidden": (0,)}, "config.model.hidden is (0,); it must be widths"),
        ({"model__heads": "one"}, "config.model.heads is 'one'; "),
        (
            {"weights__normalization": "cafe"},
            "config.weights.normalization is 'cafe'; did you mean 'caffe'?",
        ),
        (
            {"weights__sha256": "12ab"},
            "config.weights.sha256 is '12ab'; it must be empty, or 64 hexadecimal digits",
        ),
        ({"weights__sha256": "0" * 64}, "config.weights.path names no file"),
        ({"weights__path": "no/such.safetensors"}, "no/such.safetensors"),
        ({"objective__lambda_": -0.1}, "config.objective.lambda_ is -0.1; it must be at least 0"),
        (
            {"objective__lambda_": float("nan")},
            "config.objective.lambda_ is nan; it must be a finite number",
        ),
        (
            {"objective__lambda_": float("inf")},
            "config.objective.lambda_ is inf; it must be a finite number",
        ),
        ({"objective__lambda_schedule": "linear("}, "config.objective.lambda_schedule: 'linear('"),
        (
            {"objective__reduction": "total"},
            "config.objective.reduction is 'total'; it can be mean, sum",
        ),
        (
            {"objective__losses": ConfigDict()},
            "config.objective.losses is {}; it must be at least one loss",
        ),
        (
            {"objective__losses__main__loss": "f(x)"},
            "config.objective.losses.main.loss: in 'f(x)', 'x' is not a literal",
        ),
        (
            {"objective__losses__main__weight": -1.0},
            "config.objective.losses.main.weight is -1.0; it must be at least 0",
        ),
        (
            {"data__target__multi_label": True},
            "config.data.target.multi_label is True; use 'sigmoid_binary_cross_entropy'",
        ),
        (
            {"stages__source__epochs": -1},
            "config.stages.source.epochs is -1; it must be at least 0",
        ),
        (
            {"stages__source__batch_size": 0},
            "config.stages.source.batch_size is 0; it must be at least 1",
        ),
        (
            {"stages__target__freeze": "4"},
            "config.stages.target.freeze is '4'; it can be 1, 2, 3, backbone, none",
        ),
        ({"stages__target__freeze": "backbon"}, "did you mean 'backbone'?"),
        (
            {"stages__target__batch_norm": "frosen"},
            "config.stages.target.batch_norm is 'frosen'; did you mean 'frozen'?",
        ),
        (
            {"stages__target__schedule": "cosin"},
            "config.stages.target.schedule is 'cosin'; did you mean 'cosine'?",
        ),
        (
            {"stages__target__optimizer": "sgd(momentum=)"},
            "config.stages.target.optimizer: the options of",
        ),
        ({"stages__target__learning_rate": -1.0}, "config.stages.target.learning_rate is -1.0"),
        ({"stages__target__warmup": 1.0}, "config.stages.target.warmup is 1.0"),
        ({"stages__target__ema": -0.1}, "config.stages.target.ema is -0.1"),
        (
            {"stages__target__accumulate": 64},
            "config.stages.target.accumulate is 64; it must be at most the batch size, 32",
        ),
        ({"parallel": "map"}, "config.parallel is 'map'; did you mean 'pmap'?"),
        ({"checkpoint__metric": "auc"}, "config.checkpoint.metric is 'auc'; did you mean 'auroc'?"),
        (
            {"checkpoint__select": "newest"},
            "config.checkpoint.select is 'newest'; did you mean 'best'?",
        ),
        ({"evaluation__times": 0}, "config.evaluation.times is 0; it must be at least 1"),
        (
            {"evaluation__folds": 1},
            "config.evaluation.folds is 1; it must be 0 (the data's own split) or at least 2",
        ),
        ({"evaluation__repeats": 2}, "config.evaluation.repeats is 2, but folds is 0"),
        (
            {"evaluation__reference": "scrach"},
            "config.evaluation.reference is 'scrach'; did you mean 'scratch'?",
        ),
        (
            {"evaluation__threshold": "yuden"},
            "config.evaluation.threshold is 'yuden'; it must be 'youden', ",
        ),
        (
            {"evaluation__threshold": "sensitivity=95"},
            "config.evaluation.threshold is 'sensitivity=95'",
        ),
        (
            {"evaluation__sensitivity": 1.0},
            "config.evaluation.sensitivity is 1.0; it must be above 0 and below 1",
        ),
        (
            {"evaluation__prevalence": 1.0},
            "config.evaluation.prevalence is 1.0; it must be at least 0 and below 1",
        ),
        (
            {"evaluation__coverage": 0.0},
            "config.evaluation.coverage is 0.0; it must be above 0 and below 1",
        ),
        (
            {"evaluation__resamples": 10},
            "config.evaluation.resamples is 10; it must be at least 100",
        ),
        (
            {"evaluation__tune__lambda_": (-1.0,)},
            "config.evaluation.tune.lambda_ is (-1.0,); it must be different",
        ),
        (
            {"evaluation__tune__learning_rate": (1, 1.0)},
            "config.evaluation.tune.learning_rate is (1, 1.0)",
        ),
        (
            {
                "evaluation__tune__lambda_": (1.0,),
                "objective__lambda_schedule": "constant_schedule(1.0)",
            },
            "tunes what config.objective.lambda_schedule sets",
        ),
        (
            {
                "evaluation__tune__lambda_": (1.0,),
                "evaluation__folds": 5,
                "data__target__split": (0.8, 0.0, 0.2),
            },
            "config.evaluation.tune chooses on val, but the second fraction of config.data.target.split is 0",
        ),
        (
            {"evaluation__target_sizes": (0,)},
            "config.evaluation.target_sizes is (0,); it must be different numbers",
        ),
        ({"evaluation__target_sizes": ("most",)}, "config.evaluation.target_sizes is ('most',)"),
        ({"augment__crop": 0.0}, "config.augment.crop is 0.0; it must be above 0 and at most 1"),
        (
            {"augment__rotation": 200.0},
            "config.augment.rotation is 200.0; it must be in 0 .. 180 degrees",
        ),
        ({"data__image_size": 0}, "config.data.image_size is 0; it must be at least 1"),
        ({"data__channels": 4}, "config.data.channels is 4; it can be 1, 3"),
        ({"data__resize": "sqash"}, "config.data.resize is 'sqash'; did you mean 'squash'?"),
        ({"data__cache": "ram"}, "config.data.cache is 'ram'; "),
        (
            {"data__target__split": (0.5, 0.4, 0.2)},
            "config.data.target.split is (0.5, 0.4, 0.2); it must be three fractions",
        ),
        ({"data__target__split": (0.0, 0.5, 0.5)}, "with train above 0"),
        ({"data__target__kind": "phantm"}, "did you mean 'phantom'?"),
        ({"data__source__train_size": -1}, "config.data.source.train_size is -1; it must be"),
        # names and types
        (
            {"stages__target__epoch": 3},
            "config.stages.target.epoch: there is no such field; did you mean 'config.stages.target.epochs'?",
        ),
        ({"lamda": 3}, "config.lamda: there is no such field; "),
        (
            {"stages__target__epochs": 2.5},
            "config.stages.target.epochs is 2.5; it must be a whole number",
        ),
        (
            {"stages__target__epochs": True},
            "config.stages.target.epochs is True; it must be a whole number",
        ),
        ({"name": None}, "config.name is None; it must be a string"),
        ({"augment": 3}, "config.augment is 3; it must be a section with the fields brightness, "),
        ({"arm": 3}, "config.arm is 3; it must be a section"),
        ({"arm__scratch": ConfigDict({"init": "random"})}, "config.arm.scratch.joint is missing"),
        (
            {"objective__losses__main": ConfigDict({"loss": "x", "wieght": 1.0})},
            "did you mean 'config.objective.losses.main.weight'?",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_key(fields, message):
    with pytest.raises(UserError) as error:
        check.check(changed(**fields))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def swept(**fields):
    """The embedded config with a backbone file (not looked for) that is frozen in its joint arm, and a λ to sweep."""
    for stage in ("source", "target"):
        fields = {
            f"stages__{stage}__freeze": "backbone",
            f"stages__{stage}__batch_norm": "frozen",
        } | fields
    return changed(
        **{"weights__path": "w.npz", "augment__flip": False, "sweep__lambda_": (0, 1.0)} | fields
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sweep__arm": "transfer", "sweep__learning_rate": (1e-3, 0.1), "sweep__weight_decay": (0,)},
        {"sweep__solver": "lbfgs", "stages__target__weight_decay": 0.1},
        {"sweep__lambda_": (), "sweep__weight_decay": (0.1,), "arms": ("target_only",), "arm__target_only__init": "weights"},
        {"arm__pooled": configs.arm("weights", source_stage=False, joint=True), "arms": ("transfer", "pooled"), "stages__source__freeze": "none"},
    ],
)  # fmt: skip
def test_what_can_be_swept_is_accepted(fields):
    check.check_sweep(swept(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"evaluation__tune__weight_decay": (1.0, 2.0)},
            "--mode=sweep tries the values of config.sweep; config.evaluation.tune.weight_decay would try others",
        ),
        ({"sweep__lambda_": ()}, "--mode=sweep has nothing to try: give config.sweep.lambda_, "),
        (
            {"sweep__lambda_": (-1.0,)},
            "config.sweep.lambda_ is (-1.0,); it must be different numbers of at least 0",
        ),
        (
            {"sweep__learning_rate": (1, 1.0)},
            "config.sweep.learning_rate is (1, 1.0); it must be different",
        ),
        ({"sweep__arm": "transfr"}, "config.sweep.arm is 'transfr'; did you mean 'transfer'?"),
        ({"sweep__solver": "newton"}, "config.sweep.solver is 'newton'; it can be lbfgs, train"),
        (
            {"arms": ("target_only",)},
            "config.sweep.lambda_ weighs the target of a joint arm, but target_only is not",
        ),
        (
            {"objective__lambda_schedule": "constant_schedule(1.0)"},
            "sets what config.objective.lambda_schedule sets",
        ),
        (
            {"evaluation__folds": 5, "data__target__split": (0.8, 0.0, 0.2)},
            "compares on val, but the second fraction of config.data.target.split is 0",
        ),
        (
            {"sweep__solver": "lbfgs", "weights__path": ""},
            "frozen backbone, but the backbone of transfer starts from random weights",
        ),
        (
            {"sweep__solver": "lbfgs", "stages__target__freeze": "2"},
            "but config.stages.target.freeze is '2', not 'backbone'",
        ),
        (
            {"sweep__solver": "lbfgs", "stages__source__batch_norm": "batch"},
            "but config.stages.source.batch_norm is 'batch', not 'frozen'",
        ),
        ({"sweep__solver": "lbfgs", "augment__flip": True}, "but config.augment.flip is True\n"),
        ({"sweep__solver": "lbfgs", "augment__crop": 0.5}, "but config.augment.crop is 0.5\n"),
        ({"sweep__solver": "lbfgs"}, "needs weight decay above 0"),
        (
            {"sweep__solver": "lbfgs", "sweep__weight_decay": (0.0, 0.1)},
            "needs weight decay above 0",
        ),
        ({"sweep__solver": "lbfgs", "sweep__learning_rate": (0.1,)}, "has no learning rate"),
        (
            {"sweep__solver": "lbfgs", "model__hidden": (8,)},
            "takes linear heads, but config.model.hidden is (8,)",
        ),
        (
            {"sweep__solver": "lbfgs", "objective__losses__main__loss": "mean_squared_error"},
            "takes one loss, cross_entropy or sigmoid_binary_cross_entropy; there is main: 'mean_squared_error'",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(fields, message):
    with pytest.raises(UserError) as error:
        check.check_sweep(swept(**fields))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_the_arm_that_is_swept_by_default_is_joint_and_has_no_source_stage():
    config = swept()
    assert check.swept_arm(config) == "transfer"
    config.arm.pooled = configs.arm("weights", source_stage=False, joint=True)
    config.arms = ("target_only", "transfer", "pooled")
    assert check.swept_arm(config) == "pooled"
    config.arms = ("target_only", "scratch")
    assert check.swept_arm(config) == "target_only"
