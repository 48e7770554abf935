import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny

from medtl.config import dataset
from medtl.errors import UserError
from medtl.experiment.experiment import train
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


def test_a_finding_that_is_allowed_is_in_the_run_and_both_reports(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16), np.uint8)
    images[20] = images[2]
    lines = ["image_path,diagnosis,split"]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},{'train' if i < 12 else 'val' if i < 18 else 'test'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    target = dataset(path=str(tmp_path / "manifest.csv"))
    config = tiny(arms=("scratch",), data__target=target, stages__target__batch_size=6)
    with pytest.raises(UserError, match=r"'20.png' .* = '2.png' .* add 'duplicate_images' to"):
        train(config, tmp_path / "run")
    config.data.allow = ("duplicate_images",)
    result = train(config, tmp_path / "run")
    finding = "1 of the 12 val and test images have a copy in an earlier split"
    assert finding in capsys.readouterr().out
    assert finding in result["data"]["target"]["notes"][0]
    assert result["data"]["target"]["allowed"] == ["data: duplicate_images"]
    assert any(finding in note for note in result["evaluation"]["notes"])
    for name in ("report.md", "report.html"):
        assert finding in (tmp_path / "run" / name).read_text()
