import pytest
from tiny_run import tiny

from medtl.errors import UserError
from medtl.experiment.preview import preview


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (4, 4)])
def test_batch_norm_of_one_value_a_channel_is_refused(batch_size, accumulate):
    config = tiny(
        arms=("scratch",),
        model__name="resnet18",
        model__last_layer="",
        data__image_size=32,
        stages__target__batch_size=batch_size,
        stages__target__accumulate=accumulate,
    )
    with pytest.raises(UserError) as error:
        preview(config)
    assert str(error.value).startswith(f"config.stages.target.batch_size is {batch_size}")
    assert "BatchNorm in layer4_0/bn1 would have one value a channel" in str(error.value)


def test_a_batch_of_one_with_several_pixels_is_not_refused():
    preview(tiny(arms=("scratch",), stages__target__batch_size=1))
