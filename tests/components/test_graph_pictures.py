"""The small pictures of the graph, decoded again."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from transpector.components import theme
from transpector.components.graph import pictures


def decoded(address: str) -> Image.Image:
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("dark", [False, True])
def test_a_thumbnail_has_the_colours_of_the_scale_to_one_step(dark):
    pattern = np.arange(256, dtype=np.uint8).reshape(16, 16)
    seen = np.array(decoded(pictures.thumbnail(pattern, dark)).convert("RGB")).reshape(256, 3)
    scale = theme.sequential(dark)
    assert np.array_equal(seen[0], scale[0]) and np.array_equal(seen[255], scale[255])
    assert not np.array_equal(seen[1], scale[0])  # what is not nothing is not shown as nothing
    step = 255 / (pictures.LEVELS - 1)
    for value in range(8, 256):
        near = scale[max(0, int(value - step)) : int(value + step) + 2]
        assert (near == seen[value]).all(-1).any()


def test_a_strip_has_every_head_in_its_place():
    patterns = np.stack([np.full((4, 4), 60 * head, np.uint8) for head in range(5)])
    seen = np.array(decoded(pictures.strip(patterns, False, 2)).convert("RGB"))
    assert seen.shape == (4 * 2 + pictures.GAP, 4 * 3 + 2 * pictures.GAP, 3)
    cells = [seen[row : row + 4, column : column + 4] for row in (0, 6) for column in (0, 6, 12)]
    darkness = [765 - int(cell.astype(int).sum(-1).mean()) for cell in cells]
    assert darkness[:5] == sorted(darkness[:5]) and len(set(darkness[:5])) == 5
    assert darkness[5] == 0


def test_bars_are_as_high_as_their_numbers():
    seen = np.array(decoded(pictures.bars(np.array([0, 0.001, 0.5, 1, 3]), "#5145e5")).convert("RGBA"))
    assert (seen[..., 3] > 0).sum(0).tolist() == [
        0,
        1,
        pictures.BAR_HEIGHT // 2,
        pictures.BAR_HEIGHT,
        pictures.BAR_HEIGHT,
    ]
    assert seen[-1, 3].tolist() == [0x51, 0x45, 0xE5, 255]


def test_the_first_position_does_not_set_the_scale_of_the_others():
    found = pictures.heights({"a": np.array([20_000.0, *[1.0] * 39]), "b": np.array([1.0, *[0.5] * 39])})
    assert found["a"][0] == 20_000 and found["a"][1] == 1 and found["b"][1] == 0.5
    assert pictures.heights({"a": np.zeros(3)})["a"].tolist() == [0, 0, 0]
