"""`--profile`: the arithmetic on hand-made events, the names of operations, and whole runs."""

import gzip
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_run import tiny

from medtl.experiment import experiment
from medtl.profiling import hlo, trace
from medtl.profiling.trace import Profile, Span
from medtl.training.checkpoint import Store
from medtl.training.loop import Resident, Streamed, make_loop
from medtl.training.parallel import Parallel, compiler_options
from medtl.training.step import TrainState

ROW = re.compile(r" *(?P<ms>[\d.]+) +(?P<share>[\d.]+) %  (?P<words>.*)")


def rows(text):
    """(ms/step, share in percent, words) of each line of a table."""
    return [
        (float(m["ms"]), float(m["share"]), m["words"])
        for line in text.splitlines()
        if (m := ROW.fullmatch(line))
    ]


# The arithmetic.


def test_time_goes_to_the_innermost_of_nested_spans():
    nested = [
        Span(0, 100, "while"),
        Span(10, 40, "fusion"),
        Span(40, 70, "convolution"),
        Span(50, 55, "copy"),
        Span(80, 80, "nothing"),
        Span(120, 130, "fusion"),
    ]
    assert trace.clock_time([nested]) == {"while": 40, "fusion": 40, "convolution": 25, "copy": 5}
    cut = [(s.start, s.end, s.work) for s in trace.innermost(reversed(nested))]
    assert cut == [
        (0, 10, "while"),
        (10, 40, "fusion"),
        (40, 50, "convolution"),
        (50, 55, "copy"),
        (55, 70, "convolution"),
        (70, 80, "while"),
        (80, 100, "while"),
        (120, 130, "fusion"),
    ]


def test_an_instant_is_shared_between_the_threads_that_work():
    threads = [[Span(0, 10, "a")], [Span(0, 4, "a"), Span(6, 12, "b")], [Span(7, 9, "c")]]
    #           0-6: a; 6-7 and 9-10: a, b; 7-9: a, b, c; 10-12: b
    expected = {"a": 6 + 1 + 2 / 3, "b": 1 + 2 / 3 + 2, "c": 2 / 3}
    assert trace.clock_time(threads) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_times_add_up_to_the_time_in_which_any_thread_works(seed):
    rng = np.random.default_rng(seed)

    def nested(start, end, depth):
        spans = [Span(start, end, f"op{rng.integers(5)}")]
        at = start
        while depth and at < end:
            first, last = sorted(rng.integers(at, end + 1, 2))
            spans += nested(int(first), int(last), depth - 1)
            at = int(last) + 1
        return spans

    threads = [nested(*sorted(map(int, rng.integers(0, 1000, 2))), 3) for _ in range(4)]
    works = np.zeros(1000, bool)
    for spans in threads:
        for start, end, _ in spans:
            works[start:end] = True
    assert sum(trace.clock_time(threads).values()) == pytest.approx(works.sum())


# What is read from a trace.


def event(name, start, end, **stats):
    return SimpleNamespace(name=name, start_ns=start, end_ns=end, stats=list(stats.items()))


def made_trace(**planes):
    """plane -> line -> events, as `ProfileData` has them; "_" in a plane's name is ":"."""
    made = [
        SimpleNamespace(
            name=f"/{name.replace('_', ':')}",
            lines=[SimpleNamespace(name=line, events=events) for line, events in lines.items()],
        )
        for name, lines in planes.items()
    ]
    return SimpleNamespace(planes=made)


def test_a_cpu_operation_is_where_its_parts_run():
    main = [
        event("ThunkExecutor::Execute", 0, 100),
        event("convolution.1", 0, 10, hlo_op="convolution.1", _p=1),
        event("ThreadpoolListener::Record", 5, 5, _p=70),
        event("end: add.2", 12, 13, _c=2),
        event("add.2", 10, 12, hlo_op="add.2", _p=2),
    ]
    pool = [
        event("ThreadpoolListener::StartRegion", 20, 20, _c=70),
        # The part that ends the convolution goes on with what waited for it, then with bookkeeping.
        event("end: convolution.1", 50, 51, _c=1),
        event("multiply.3", 52, 60, hlo_op="multiply.3", _p=3),
        event("end: multiply.3", 60, 61, _c=3),
        event("ThreadpoolListener::Record", 62, 62, _p=71),
        event("ThreadpoolListener::StopRegion", 70, 70),
        event("ThreadpoolListener::StartRegion", 80, 80, _c=99),  # nobody gave it
        event("ThreadpoolListener::StopRegion", 90, 90),
    ]
    read = trace.threads(made_trace(host_CPU={"main": main, "pool": pool}, host_metadata={}))
    assert trace.clock_time(read) == {"convolution.1": 10 + 30, "add.2": 2, "multiply.3": 8}


def test_a_gpu_has_streams_and_a_tpu_a_line_of_operations():
    streams = {
        "Stream #14(Compute)": [
            event("sm90_xmma_fprop", 0, 10, hlo_op="custom-call.1"),
            event("input_reduce", 10, 14, hlo_op="fusion.2"),
        ],
        "Stream #15(MemcpyH2D)": [event("MemcpyH2D", 4, 8)],
        "Launch Stats": [event("sm90_xmma_fprop", 0, 1000)],
    }
    host = {"python": [event("add", 0, 500, hlo_op="add", _p=1)]}
    times = trace.clock_time(trace.threads(made_trace(host_CPU=host, device_GPU_0=streams)))
    assert times == {"custom-call.1": 8, "MemcpyH2D": 2, "fusion.2": 4}
    core = {
        "XLA Modules": [event("jit_step", 0, 100)],
        "XLA Ops": [
            event("%while.3 = (s32[]) while(%x)", 0, 50),
            event("%fusion.1 = f32[8]{0:T(128)}", 10, 40),
        ],
    }
    times = trace.clock_time(trace.threads(made_trace(device_TPU_0=core)))
    assert times == {"while.3": 20, "fusion.1": 30}


# What the operations are.


class Chain(nn.Module):
    """Three convolutions; the last two have kernels of the same shape."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv2")(x))
        return nn.Dense(5, name="dense")(nn.Conv(16, (3, 3), name="conv3")(x).mean((1, 2)))


@pytest.mark.parametrize("has_options", [False, True])
@pytest.mark.parametrize("by", ["weights", "input"])
def test_directions_of_a_compiled_gradient(by, has_options):
    """By the weights the chain ends at conv1; by the input it goes through all layers."""
    x = jax.ShapeDtypeStruct((6, 14, 14, 4), np.float32)
    params = jax.eval_shape(Chain().init, jax.random.key(0), x)["params"]
    argnums = ("weights", "input").index(by)
    gradient = jax.jit(
        jax.grad(lambda p, x: jnp.sum(Chain().apply({"params": p}, x) ** 2), argnums=argnums)
    )
    text = gradient.lower(params, x).compile(compiler_options() if has_options else None).as_text()
    shapes = {
        ("encoders", "image", layer, name): v.shape
        for layer, values in params.items()
        for name, v in values.items()
    }
    known = hlo.operations(text, shapes).values()
    inside = [o for o in known if o.kind == "convolution"]  # those in fusions too
    expected = {
        (f"conv{i}", direction) for i in (1, 2, 3) for direction in ("forward", f"backward by {by}")
    }
    expected |= {(f"conv{i}", "backward by input") for i in (2, 3)}
    assert sorted((o.layer, o.direction) for o in inside) == sorted(expected)
    assert all(
        "by" in o.direction for o in known if o.kind == "dot" and o.direction.startswith("backward")
    )


TEXT = """\
HloModule jit_step, is_scheduled=true

%fused_computation.7 (param_0: f32[8,8]) -> f32[8] {
  %param_0 = f32[8,8]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%param_0, %zero), dimensions={0}, to_apply=%add, \
metadata={op_name="jit(step)/jvp(Model)/encoders/image/layer1_0/bn1/reduce_sum" stack_frame_id=4}
}

ENTRY %main.9 (x.1: f32[8,8]) -> (f32[8]) {
  %x.1 = f32[8,8]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params['encoders']"}
  %cudnn.1 = (f32[64,3,3,64]{3,2,1,0:T(8,128)}, u8[1024]{0}) custom-call(%x.1), \
custom_call_target="__cudnn$convBackwardFilter", \
metadata={op_name="jit(step)/transpose(jvp(Model))/encoders/image/layer1_0/conv2/conv_general_dil\
ated"}
  %cudnn.2 = (f32[8,56,56,64]{3,2,1,0}, /*index=1*/u8[1024]{0}) custom-call(%x.1), \
custom_call_target="__cudnn$convBackwardInput", \
metadata={op_name="jit(step)/transpose(jvp(Model))/encoders/image/layer1_0/conv2/conv_general_dil\
ated"}
  %convolution.6 = f32[1,7,7,64]{3,2,1,0} convolution(%x.1, %x.1), window={size=112x112}, \
dim_labels=b01f_01io->b01f
  %convolution.7 = f32[64,3,3,64]{3,2,1,0} convolution(%x.1, %x.1), window={size=56x56}, \
dim_labels=b01f_01io->b01f
  %convert.8 = bf16[7,7,1,64]{3,2,1,0} convert(%x.1)
  %fusion.2 = f32[8]{0} fusion(%x.1), kind=kInput, calls=%fused_computation.7
  %fusion.3 = f32[8]{0} fusion(%x.1), kind=kLoop, calls=%unknown, \
metadata={op_name="jit(step)/jvp(vmap(jit(_uniform)))/while/body/optimizer/add"}
  %again.4 = f32[8]{0} add(%x.1, %x.1), \
metadata={op_name="jit(step)/transpose(jvp(Model))/encoders/image/checkpoint/rematted_computation\
/layer1_0/bn1/add"}
  ROOT %tuple.1 = (f32[8]{0}) tuple(%fusion.2)
}
"""


def test_operations_of_a_text():
    encoder = ("encoders", "image")
    shapes = {
        (*encoder, "conv1", "kernel"): (7, 7, 1, 64),
        (*encoder, "layer1_0", "conv1", "kernel"): (3, 3, 64, 64),
        (*encoder, "layer1_0", "conv2", "kernel"): (3, 3, 64, 64),
        (*encoder, "layer1_0", "bn1", "scale"): (64,),
    }
    known = hlo.operations(TEXT, shapes)
    layer = "layer1_0/conv2"
    assert known["cudnn.1"] == hlo.Operation(
        "__cudnn$convBackwardFilter", layer, "backward by weights"
    )
    assert known["cudnn.2"] == hlo.Operation(
        "__cudnn$convBackwardInput", layer, "backward by input"
    )
    assert known["convolution.6"] == hlo.Operation("convolution", "conv1", "backward by weights")
    assert known["convolution.7"] == hlo.Operation("convolution")  # two kernels have this shape
    assert known["convert.8"] == hlo.Operation("convert")
    assert known["fusion.2"] == hlo.Operation("reduce fusion", "layer1_0/bn1", "forward")
    assert known["fusion.3"] == hlo.Operation("fusion", "optimizer/add", "forward")
    assert known["again.4"] == hlo.Operation("add", "layer1_0/bn1", "recomputed")


def test_an_unknown_operation_keeps_its_name():
    text = trace.table({"fusion.1": 3e6}, {}, title="a  stage", steps=3, seconds=0.004)
    assert text.startswith(
        "profile: 3 steps of a stage, 1.3 ms each; the 1 costliest operations take 75 %\n"
    )
    assert rows(text) == [
        (1.0, 75.0, "fusion.1"),
        (0.0, 0.0, "0 other operations"),
        (0.33, 25.0, "outside of operations: the host, dispatch, waiting"),
    ]


# Feeds.


LAYER = nn.Conv(8, (3, 3))


def step(state, batch):
    """A step of gradient descent by a convolution, on TrainState and the batch of one domain."""

    def loss(params):
        with jax.named_scope("conv1"):
            return jnp.mean(LAYER.apply({"params": params}, batch["target"]["x"]) ** 2)

    params = state.params["encoders"]["image"]["conv1"]
    value, gradient = jax.value_and_grad(loss)(params)
    params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    params = {"encoders": {"image": {"conv1": params}}}
    return state.replace(step=state.step + 1, params=params), {"loss": value}


def start(parallel):
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 3, 4, 8)).astype(np.float32),
        "bias": np.zeros(8, np.float32),
    }
    state = TrainState(
        np.int32(0), np.zeros(2, np.uint32), {"encoders": {"image": {"conv1": params}}}, {}, {}, {}
    )
    return parallel.replicate(state)


def feed_of(parallel, *, resident):
    x = np.random.default_rng(1).normal(size=(80, 8, 8, 4)).astype(np.float32)
    batches = [np.arange(i % 5 * 16, (i % 5 + 1) * 16) for i in range(200)]
    if not resident:
        return Streamed(
            parallel.train(step), ((parallel.shard({"target": {"x": x[b]}}), 16) for b in batches)
        )
    index = ((parallel.shard({"target": {"index": b}}), 16) for b in batches)
    return Resident(
        parallel.loop(make_loop(step)),
        parallel.replicate({"target": {"x": x}}),
        index,
        parallel.stack,
    )


def train(feed, parallel, steps, every):
    """Call a feed as `fit` does; return the last kernel and the loss of each step."""
    state, losses, step = start(parallel), [], 0
    while step < steps:
        # Never past the next evaluation.
        taken = feed(state, min(steps - step, every - step % every))
        state = taken.state
        assert taken.examples == 16 * taken.steps
        losses += list(np.atleast_1d(taken.metrics["loss"])[: taken.steps])
        step += taken.steps
    assert len(losses) == int(state.step) == steps
    return np.asarray(state.params["encoders"]["image"]["conv1"]["kernel"]), np.array(losses)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(
    ("mode", "steps", "every", "streamed", "chunk"),
    [
        ("none", 2, 2, 1, 1),
        ("none", 4, 3, 1, 1),  # an evaluation comes after the third step
        ("none", 30, 30, 3, 28),
        ("pmap", 30, 30, 3, 28),
        ("mesh", 30, 30, 3, 28),
    ],
)
def test_a_feed_is_traced_once_and_changes_nothing(
    mode, resident, steps, every, streamed, chunk, tmp_path, capsys
):
    parallel = Parallel.create(mode)
    profile = Profile(tmp_path)
    traced = profile.around(feed_of(parallel, resident=resident), "target stage", left=steps)
    kernel, losses = train(traced, parallel, steps, every)
    plain = feed_of(parallel, resident=resident)
    assert profile.around(plain, "target stage", left=steps) is plain
    profile.close()
    expected, expected_losses = train(plain, parallel, steps, every)
    np.testing.assert_array_equal(kernel, expected)
    np.testing.assert_array_equal(losses, expected_losses)

    shown = capsys.readouterr().out
    text = (tmp_path / "operations.txt").read_text()
    assert shown.count("profile: ") == 1 and text in shown
    assert re.match(rf"profile: {chunk if resident else streamed} steps? of target stage, ", text)
    *listed, _, _ = rows(text)
    assert 0 < sum(share for _, share, _ in listed) <= 100
    assert sum(share for _, share, _ in rows(text)) == pytest.approx(100, abs=1)
    assert all(len(words.split()) > 1 for *_, words in listed)  # more than the name is known
    assert re.search("convolution.* conv1 +backward by weights", text)


def test_one_step_is_not_traced_with_a_notice(tmp_path, capsys):
    profile = Profile(tmp_path)
    feed = feed_of(Parallel.create("none"), resident=False)
    assert profile.around(feed, "target stage", left=1) is feed
    profile.close()
    assert capsys.readouterr().out.startswith("profile: nothing was traced: ")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_traced_step_stops_the_profiler(tmp_path):
    parallel = Parallel.create("none")
    feed = feed_of(parallel, resident=False)
    feed.batches = iter([next(feed.batches), next(feed.batches)])
    with pytest.raises(StopIteration):
        train(Profile(tmp_path / "a").around(feed, "stage", left=9), parallel, 9, 9)
    train(
        Profile(tmp_path / "b").around(feed_of(parallel, resident=False), "stage", left=9),
        parallel,
        9,
        9,
    )
    assert (tmp_path / "b" / "operations.txt").exists()


# Whole runs.


def config_of(resident):
    return tiny(arms=("scratch",), evaluation__times=1, data__resident=resident)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    experiment.train(config_of("never"), folder)
    return folder


def check_profile(folder, shown):
    """The table is printed and kept; its operations are in the trace, its layers in the model."""
    text = (folder / "profile/operations.txt").read_text()
    assert text in shown
    [trace_file] = (folder / "profile").glob("plugins/profile/*/perfetto_trace.json.gz")
    assert str(trace_file) in shown
    *listed, _, _ = rows(text)
    assert len(listed) == 10
    assert all(share > 0 for _, share, _ in listed) and sum(share for _, share, _ in listed) <= 100
    with gzip.open(trace_file) as file:
        traced = {e["args"].get("hlo_op") for e in json.load(file)["traceEvents"] if "args" in e}
    assert {words.split()[-1] for *_, words in listed} <= traced
    with Store(folder / "seed_0/scratch/target") as store:
        names = store.arrays(store.last_step)
    layers = re.findall(r"(?:layer\d_\d/)?(?:conv\d|bn\d)|layer\d_\d", text)
    assert layers and all(any(f"/{layer}/" in name for name in names) for layer in layers)


def test_a_traced_run_is_the_same_run_and_is_not_traced_again(plain, tmp_path, capsys):
    config = config_of("never")
    experiment.train(config, tmp_path, profile=True)
    check_profile(tmp_path, capsys.readouterr().out)
    for name in ("predictions.csv", "seed_0/scratch/target/log.jsonl", "config.json"):
        assert (tmp_path / name).read_bytes() == (plain / name).read_bytes()
    states = []
    for folder in (plain, tmp_path):
        with Store(folder / "seed_0/scratch/target") as store:
            states.append(store.arrays(store.last_step))
    jax.tree.map(np.testing.assert_array_equal, *states)

    experiment.train(config, plain, profile=True)
    assert "profile: nothing was traced" in capsys.readouterr().out
    assert not (plain / "profile").exists()


def test_a_run_on_resident_data_is_traced(tmp_path, capsys):
    experiment.train(config_of("always"), tmp_path, profile=True)
    shown = capsys.readouterr().out
    check_profile(tmp_path, shown)
    assert "profile: 4 steps of seed 0 scratch target stage, " in shown  # six, of which two compile
