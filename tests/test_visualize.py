"""be_nb.visualize: exact pixels, curves, and explorers that survive their errors."""
import base64
import gc
import io
import math
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from be_nb.data.scenebias import SceneBias
from be_nb.visualize import animate, curves, embedding, explore, Explorer, neighbours, Picture, strip

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def clip_of(t=6, h=30, w=30, seed=0):
    return torch.randint(0, 256, (t, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_strip_pixels():
    """Every frame is found in the picture, enlarged by a whole number, in the order of time."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
    drawn = pixels(strip(colours.view(4, 3, 1, 1).expand(4, 3, 30, 40)).png())
    row = drawn[40]
    starts = [int(np.flatnonzero((row == c.numpy()).all(1))[0]) for c in colours]
    widths = [int((row == c.numpy()).all(1).sum()) for c in colours]
    assert starts == sorted(starts) and len(set(widths)) == 1 and widths[0] % 40 == 0


def test_strip_takes_float_and_uint8_one_and_many_grey_and_colour():
    clip = clip_of()
    assert strip(clip).png() == strip([clip]).png() == strip(clip / 255).png() == strip(clip.double() / 255).png()
    grey = clip[:, :1]
    assert strip(grey).png() == strip(grey.expand(-1, 3, -1, -1)).png()
    assert strip(clip.numpy()).png() == strip(clip).png()
    assert strip((clip / 255).requires_grad_()).png() == strip(clip).png()


def test_strip_shows_n_frames_first_and_last_among_them():
    figure = strip(clip_of(t=16), n=4)
    assert [text.get_text() for text in figure.texts if text.get_text()] == ["0", "5", "10", "15"]
    assert [text.get_text() for text in strip(clip_of(t=2), n=8).texts if text.get_text()] == ["0", "1"]


def test_strip_sizes():
    small, large = strip(clip_of(h=5, w=7), n=1), strip(clip_of(h=240, w=320), titles="a title", dpi=60)
    for figure, dpi in ((small, 75), (large, 60)):
        height, width, _ = pixels(figure.png()).shape
        assert width <= 12 * dpi + 1 and height < 12 * dpi
    assert "a title" in [text.get_text() for text in large.texts]
    two = pixels(strip([clip_of(h=20), clip_of(h=40, w=50)], titles=["one", "two"]).png())
    assert two.shape[0] > pixels(strip(clip_of(h=20)).png()).shape[0]


@pytest.mark.parametrize("clip, word", [
    (clip_of().transpose(0, 1), "transpose"), (clip_of()[0], "must be"), (clip_of().float(), "denormalize"),
    (clip_of() / 255 - .5, "denormalize"), (torch.full((4, 3, 8, 8), float("nan")), "denormalize"),
    (clip_of().int(), "uint8"), (clip_of()[:0], "must be"), (clip_of()[:, :2], "channels")])
def test_strip_refuses_what_is_no_clip(clip, word):
    with pytest.raises(ValueError, match=word):
        strip([clip])


def test_strip_refuses_wrong_titles():
    for arguments in (dict(clips=[]), dict(clips=[clip_of()], titles=["a", "b"]), dict(clips=clip_of(), n=0)):
        with pytest.raises(ValueError, match="strip needs"):
            strip(**arguments)


def test_pictures_are_small_and_freed():
    figure = strip(clip_of())
    bundle = figure._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).mode == "P"
    assert len(pixels(figure.png()).reshape(-1, 3)) > 0
    ghost = weakref.ref(figure)
    del figure
    gc.collect()
    assert ghost() is None


def rows(n=5):
    return [{"step": 10 * i, "loss": 6. - i, "lr": .1, "note": "x", "done": True} for i in range(n)]


def test_curves():
    figure = curves({"moco": rows(), "be": rows(3) + [{"step": 99, "recall": .5}]}, references={"loss": math.log(513)})
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(panels) == {"loss", "lr", "recall"}
    first, second, dotted = panels["loss"].get_lines()
    assert list(first.get_xdata()) == [0, 10, 20, 30, 40] and list(first.get_ydata()) == [6, 5, 4, 3, 2]
    assert len(second.get_xdata()) == 3 and dotted.get_ydata()[0] == math.log(513)
    assert [line.get_label() for line in (first, second)] == ["moco", "be"]
    assert pixels(figure.png()).size


def test_curves_of_one_run():
    figure = curves(rows(), keys=["loss"])
    assert len(figure.axes) == 1 and figure.axes[0].get_legend() is None
    counted = curves([{"loss": 2.}, {"loss": float("nan")}, {"loss": 1.}])
    assert list(counted.axes[0].get_lines()[0].get_xdata()) == [0, 1, 2]
    for empty in ([], [{"step": 1}], {"a": []}):
        with pytest.raises(ValueError, match="nothing to draw"):
            curves(empty)


@pytest.mark.parametrize("dpi", [60, 75, 144])
def test_text_of_a_picture_can_be_read(dpi):
    "At 100 % a page shows 7 points as 7 · 96 / 72 pixels; nothing is smaller, and what is larger stays as it is."
    figure = Picture(figsize=(4, 3), dpi=dpi, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 3], label="a line")
    axes.set_title("a title", fontsize=40)
    axes.tick_params(labelsize=3)
    axes.legend(fontsize=4)
    figure.text(0, 0, "a foot", fontsize=5)
    figure.png()
    sizes = {text.get_text(): text.get_fontsize() * dpi / 72 for text in figure.findobj(Text) if text.get_text()}
    assert min(sizes.values()) > 7 * 96 / 72 - 1e-6 and sizes["a title"] == pytest.approx(40 * dpi / 72)
    assert {"a line", "a foot"} <= set(sizes) and len(sizes) > 8  # ticks among them


def flat(red, green=0):
    return np.full((8, 8, 3), (red, green, 0), dtype=np.uint8)


def test_an_explorer_starts_at_the_defaults():
    controls = dict(red=(0, 255), green=[0, 100, 200], blue=(0.0, 1.0))
    start = explore(lambda red, green=100, blue=0.25: flat(red, green), **controls)
    assert start.values == {"red": 127, "green": 100, "blue": 0.25}
    assert explore(lambda n=99: flat(n, 0), n=(0, 5)).values == {"n": 5}  # a default outside: the nearest place


def test_explorer():
    explorer = explore(flat, red=(0, 255), green=[0, 100, 200])
    assert isinstance(explorer, Explorer) and explorer.values == {"red": 127, "green": 0}
    assert (pixels(explorer.png)[0, 0] == (127, 0, 0)).all()
    explorer.controls["green"].value = 200
    explorer.controls["red"].value = 3
    assert (pixels(explorer.png)[0, 0] == (3, 200, 0)).all() and explorer.error == ""


def test_explorer_shows_a_live_widget_and_a_still():
    explorer = explore(flat, red=(0, 255))
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == explorer.png
    assert bundle[WIDGET_VIEW]["model_id"] == explorer.widget.model_id
    assert bundle["text/plain"] == "Explorer(red=127)"


def test_an_error_is_shown_and_passes():
    def fragile(n):
        if n == 3:
            raise RuntimeError("three is <too> many")
        return flat(n)
    explorer = explore(fragile, n=(0, 5))
    good = explorer.png
    explorer.controls["n"].value = 3
    assert explorer.png == good and explorer.error == "RuntimeError: three is <too> many"
    assert "&lt;too&gt;" in explorer.widget.children[1].value
    explorer.controls["n"].value = 5
    assert explorer.error == "" and explorer.widget.children[1].value == "" and explorer.png != good


def test_the_first_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        explore(lambda n: 1 / 0, n=(0, 5))
    with pytest.raises(TypeError, match="uint8"):
        explore(lambda n: np.zeros((4, 4, 3)), n=(0, 5))
    with pytest.raises(ValueError, match="cannot make a control from n="):
        explore(flat, n=object())


def test_explorer_takes_widgets_figures_and_checkboxes():
    import ipywidgets
    import matplotlib.pyplot as plt
    slider = ipywidgets.FloatSlider(.5, min=0, max=1, description="share")

    def draw(share, dashed):
        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([0, share], "--" if dashed else "-")
        return figure
    explorer = explore(draw, share=slider, dashed=False)
    before = explorer.png
    slider.value = .9
    explorer.controls["dashed"].value = True
    assert explorer.png != before
    assert slider.description == "share" and explorer.controls["dashed"].description == "dashed"
    assert not plt.get_fignums()  # nothing is left to be shown twice
    assert isinstance(strip(clip_of()), Picture) and explore(lambda n: strip(clip_of(), n=n), n=(1, 3)).png


def test_a_training_run_needs_no_ipython():
    code = ("import sys, be_nb.visualize; "
            "print([m for m in ('IPython', 'ipywidgets', 'matplotlib.pyplot') if m in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_animation_is_the_clip():
    "Every frame comes back, in order, enlarged by a whole number; the film of two clips is as long as the longer one."
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
    clip = colours.view(4, 3, 1, 1).expand(4, 3, 10, 12)
    film = Image.open(io.BytesIO(animate(clip, fps=10, height=20).gif))
    assert film.n_frames == 4 and film.info["duration"] == 100 and film.info["loop"] == 0
    for k, colour in enumerate(colours):
        film.seek(k)
        frame = np.asarray(film.convert("RGB")).astype(int)
        assert frame.shape == (20, 28, 3) and np.abs(frame[:, :24] - colour.numpy()).max() < 8
    both = Image.open(io.BytesIO(animate([clip, clip_of(t=6)], height=20).gif))
    assert both.n_frames == 6
    assert base64.b64decode(animate(clip)._repr_mimebundle_()["image/gif"]) == animate(clip).gif
    for wrong in (dict(fps=0), dict(colours=1), dict(height=0), dict(clips=[])):
        with pytest.raises(ValueError, match="animate needs"):
            animate(**{"clips": clip} | wrong)


def test_embedding_keeps_far_groups_apart():
    """Two groups in opposite directions stay two groups on the map, whatever the colours."""
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(20, 6, generator=g) * .1 + 3, torch.randn(20, 6, generator=g) * .1 - 3])
    figure = embedding(x, {"group": np.arange(40) // 20, "nonsense": np.arange(40) % 2}, {"group": ["a", "b"]})
    first, second = (np.concatenate([p.get_offsets() for p in figure.axes[0].collections[k:k + 1]]) for k in (0, 1))
    within = max(np.ptp(first, axis=0).max(), np.ptp(second, axis=0).max())
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > within / 2
    assert len(figure.axes) == 2 and [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    for features, labels in ((x[:3], [0, 1, 0]), (x, [0, 1])):
        with pytest.raises(ValueError, match="embedding needs"):
            embedding(features, {"label": labels})


def test_neighbours_are_framed_by_class():
    source = SceneBias("test", size=12)
    figure = neighbours(source, [0, 5], source, np.tile([6, 1], (12, 1)), k=2)
    colours = [to_hex(axes.spines["top"].get_edgecolor()) for axes in figure.axes]
    assert colours == [to_hex(c) for c in ("grey", "tab:green", "tab:red", "grey", "tab:red", "tab:red")]
