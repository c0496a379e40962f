"""The two lists of a judgement: what they are, what their labels mean, what is counted; a score with its neighbours."""
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

from be_nb import evaluate
from be_nb.data import sources
from be_nb.data.pack.read import PackedVideos
from be_nb.data.pack.write import pack
from be_nb.data.scenebias import SceneBias
from be_nb.data.videos import Selection, VideoFolder, write_folder
from be_nb.evaluate import interval, untrained_like
from be_nb.judging.bias.report import bias
from be_nb.judging.bias.score import Bootstrap
from be_nb.judging.lists import check_apart, compare_lists, identities
from be_nb.judging.protocols import PROTOCOLS
from be_nb.saving.weights import load
from be_nb.settings import BiasConfig, EvaluateConfig, RetrieveConfig
from be_nb.train import finetune, pretrain

SIZE = (32, 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with twelve training and six tested videos, two each of the classes 0 to 5, and lists that are wrong."
    root = tmp_path_factory.mktemp("videos")
    write_folder(root, {"train.txt": SceneBias("probe", size=12), "val.txt": SceneBias("test", size=6)}, SIZE)
    first, second = [line.split()[0] for line in (root / "train.txt").read_text().splitlines()[:2]]
    val = (root / "val.txt").read_text().splitlines()
    (root / "link.mp4").symlink_to(root / first)
    os.link(root / first, root / "hard.mp4")
    (root / "other").symlink_to(root / "train")
    shutil.copy(root / first, root / "copy.mp4")
    shutil.copy(root / second, root / "copy2.mp4")
    for name, more in {"same": [f"{first} 0"], "spelt": [f"./train/../{first} 0"], "linked": ["link.mp4 0"],
                       "hard": ["hard.mp4 0"], "folder": [f"other/{first.split('/')[1]} 0"],
                       "absolute": [f"{root / first} 0"],
                       "copy": ["copy.mp4 0"], "twice": [val[0]], "torn": [val[0][:-1] + "3"],
                       "unlabeled": ["copy2.mp4 -1"]}.items():
        (root / f"{name}.txt").write_text("\n".join([*val, *more]))
    lines = (root / "train.txt").read_text().splitlines()
    (root / "copies.txt").write_text("copy.mp4 0\ncopy2.mp4 1\n" + val[0])
    (root / "one.txt").write_text("\n".join(line for line in lines if line.endswith(" 2")))
    (root / "few.txt").write_text("\n".join(line for line in lines if line[-1] in "01"))
    (root / "far.txt").write_text("\n".join(line for line in val if line[-1] in "345"))
    (root / "elsewhere").mkdir()
    shutil.copy(root / "val.txt", root / "elsewhere")
    names = (root / "classes.txt").read_text().splitlines()
    (root / "elsewhere" / "classes.txt").write_text("\n".join([names[1], names[0], *names[2:]]))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretrain(out=str(tmp_path_factory.mktemp("runs")), name="untrained", steps=0, progress=False).checkpoint


def opened(root, *names):
    return [VideoFolder(root, name, SIZE) for name in names]


ON_BOTH_SIDES = ["same", "spelt", "linked", "hard", "folder", "absolute"]


@pytest.mark.parametrize("name", ON_BOTH_SIDES)
def test_same_videos_by_any_name_are_refused(made, name):
    with pytest.raises(ValueError, match=f"^1 videos are in train.txt and in {name}.txt, the first is .*mp4"):
        compare_lists(("train.txt", f"{name}.txt"), *opened(made, "train.txt", f"{name}.txt"))


def test_sound_lists_have_nothing_to_say(made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare_lists(("train.txt", "val.txt"), *opened(made, "train.txt", "val.txt")) == {}


def test_copies_are_counted_and_many_refused(made):
    with pytest.warns(UserWarning, match="^1 tested videos are copies of videos of train.txt$"):
        notes = compare_lists(("train.txt", "copy.txt"), *opened(made, "train.txt", "copy.txt"))
    assert notes == {"tested videos are copies of videos of train.txt": 1}
    with pytest.raises(ValueError, match="2 of 3 videos of copies.txt are copies of .* the first is copy.mp4"):
        compare_lists(("train.txt", "copies.txt"), *opened(made, "train.txt", "copies.txt"))


def test_a_list_that_repeats_or_contradicts_itself(made):
    with pytest.warns(UserWarning, match="1 entries of twice.txt repeat a video"):
        assert compare_lists(("train.txt", "twice.txt"), *opened(made, "train.txt", "twice.txt"))
    with pytest.raises(ValueError, match="torn.txt says that .* is of class 0 and of class 3"):
        compare_lists(("train.txt", "torn.txt"), *opened(made, "train.txt", "torn.txt"))
    with pytest.raises(ValueError, match=r"1 of 7 videos of unlabeled.txt have no label \(the first is copy2.mp4\)"):
        compare_lists(("train.txt", "unlabeled.txt"), *opened(made, "train.txt", "unlabeled.txt"))


def test_labels_that_mean_two_things(made):
    other = str(made / "elsewhere" / "val.txt")
    with pytest.raises(ValueError, match="Class 0 is '.*' for train.txt and '.*' for val.txt: the lists do not belong"):
        compare_lists(("train.txt", other), *opened(made, "train.txt", other))


def test_queries_that_cannot_be_found_are_counted(made):
    with pytest.warns(UserWarning, match="4 tested videos are of a class that few.txt lacks: never right"):
        notes = compare_lists(("few.txt", "val.txt"), *opened(made, "few.txt", "val.txt"))
    assert list(notes.values()) == [4]
    with pytest.raises(ValueError, match="No video of far.txt is of a class that few.txt has"):
        compare_lists(("few.txt", "far.txt"), *opened(made, "few.txt", "far.txt"))
    with pytest.raises(ValueError, match="one.txt holds 1 class only"):
        compare_lists(("one.txt", "val.txt"), *opened(made, "one.txt", "val.txt"))
    train, test = opened(made, "train.txt", "val.txt")
    only = [i for i, label in enumerate(train.labels) if label == 2]
    with pytest.raises(ValueError, match="holds 1 class only"):  # the others are too short to count
        compare_lists(("train.txt", "val.txt"), train, test, (only, None))


def test_packs_are_compared_by_their_rows_and_frames(made, tmp_path):
    lists = ("train.txt", "val.txt", "same.txt", "copy.txt", "copies.txt")
    for codec in ("jpeg", "raw"):
        pack(str(made), lists, str(tmp_path / codec), short_side=0, codec=codec)
        train, val, same, copy, many = (PackedVideos(tmp_path / codec, name, SIZE) for name in lists)
        assert compare_lists(("train", "val"), train, val) == {}
        with pytest.raises(ValueError, match="1 videos are in train and in same"):
            check_apart(("train", "same"), train, same)
        assert list(check_apart(("train", "copy"), train, copy).values()) == [1]
        with pytest.raises(ValueError, match="2 of 3 videos of many are copies"):
            check_apart(("train", "many"), train, many)


def test_splits_of_the_built_in_set():
    probe, test, swapped = (SceneBias(split, size=12) for split in ("probe", "test", "swapped"))
    with pytest.raises(ValueError, match="the same split of SceneBias"):
        compare_lists(("test", "test"), test, SceneBias("test", size=6))
    assert compare_lists(("probe", "test"), probe, test) == {}
    with pytest.warns(UserWarning, match="12 tested actors stand in test too, before another scene"):
        compare_lists(("test", "swapped"), test, swapped)
    assert identities(Selection(probe, [5, 7])) == [identities(probe)[row] for row in (5, 7)]
    with pytest.raises(ValueError, match="2 videos are in a and in b"):
        check_apart(("a", "b"), Selection(probe, range(6)), Selection(probe, range(4, 8)))


# every judgement asks

@pytest.mark.parametrize("judge, config", [(evaluate.evaluate, EvaluateConfig), (evaluate.retrieve, RetrieveConfig)])
@pytest.mark.parametrize("protocol", ["", "all", *PROTOCOLS])
def test_no_judgement_of_a_list_by_itself(made, run, judge, config, protocol, monkeypatch):
    for place in ("be_nb.evaluate.extract_features", "be_nb.judging.protocols.extract_features"):
        monkeypatch.setattr(place, lambda *args, **how: pytest.fail("features were computed"))
    small = dict(protocol=protocol, frames=4, size=16) | ({"ks": (1,)} if config is RetrieveConfig else {})
    common = dict(checkpoint=str(run), data=str(made), train_split="train.txt")
    for test_split, words in (("train.txt", "train.txt is on both sides"),
                              ("./train.txt", "train.txt is on both sides"),
                              ("same.txt", "1 videos are in"), ("copies.txt", "are copies"),
                              ("torn.txt", "of class 3")):
        with pytest.raises(ValueError, match=words):
            judge(config(**common, test_split=test_split, **small))
    with pytest.raises(ValueError, match="one.txt holds 1 class only"):
        judge(config(**common | dict(train_split="one.txt"), test_split="val.txt", **small))
    with pytest.raises(ValueError, match="probe is on both sides"):
        judge(config(str(run), "scenebias", "probe", "probe", **small))


def test_bias_finetuning_and_online_knn_ask_too(made, run, tmp_path):
    folder = str(made)
    for test in ("train.txt", "linked.txt", "copies.txt"):
        with pytest.raises(ValueError, match="videos are in|are copies"):
            bias(BiasConfig((str(run),), out=str(tmp_path / "bias"), data=folder, test_split=test), progress=False)
        with pytest.raises(ValueError, match="videos are in|are copies"):
            finetune(data=folder, split="train.txt", test_splits=(f"./{test}",), out=str(tmp_path), progress=False)
        with pytest.raises(ValueError, match="videos are in|are copies"):
            pretrain(data=folder, knn_every=1, knn_test=test, out=str(tmp_path), name=f"run-{test}", steps=1,
                     batch_size=4,
                     frames=4, size=16, checks=False, progress=False)
    with pytest.raises(ValueError, match="the same split"):
        bias(BiasConfig((str(run),), out=str(tmp_path / "bias"), train_split="test", data_size=12), progress=False)


# what a score is worth

def test_the_interval_of_many_videos_is_nearly_the_bootstraps():
    hits = np.random.default_rng(3).random(200) < 0.7
    drawn = Bootstrap(200, resamples=10_000)(hits)
    assert interval(hits.mean(), 200) == pytest.approx(drawn[1:], abs=0.011)  # a video is 0.005
    assert interval(0.0, 50)[0] == 0 < interval(0.0, 50)[1] and interval(1.0, 50)[0] < 1 == interval(1.0, 50)[1]
    low, high = interval(0.5, 100)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.011)


@pytest.fixture
def small_set(monkeypatch):
    real = sources.SceneBias
    monkeypatch.setattr(sources, "SceneBias", lambda split, *a, **k: real(split, *a[:2], **k | {"size": 24}))


@pytest.mark.parametrize("hits, videos", [(0, 3), (3, 3), (1, 7), (40, 100), (700, 1000)])
def test_an_interval_is_wilsons(hits, videos):
    theirs = scipy.stats.binomtest(hits, videos).proportion_ci(method="wilson")
    low, high = interval(hits / videos, videos)
    assert (low, high) == pytest.approx(theirs, abs=2e-4) and low <= hits / videos <= high and low < high


def test_a_score_has_an_interval_and_a_neighbour(run, small_set, tmp_path, capsys):
    how = dict(checkpoint=str(run), data="scenebias", train_split="probe", test_split="test", clips=1)
    found = evaluate.evaluate(EvaluateConfig(**how))
    told = capsys.readouterr().out
    assert set(found["interval"]) == set(found["untrained"]) == {"linear probe", "knn"}
    for key in found["interval"]:
        low, high = found["interval"][key]
        assert low <= found[key] <= high
        assert f"{found[key]} ({low} to {high}), untrained {found['untrained'][key]}" in told
    assert json.loads((run.parent / "evaluate.json").read_text()) == json.loads(json.dumps(found))
    alone = evaluate.evaluate(EvaluateConfig(**how, random=False, out=str(tmp_path / "alone.json")))
    assert "untrained" not in alone and all(alone[key] == found[key] for key in ("linear probe", "knn", "interval"))
    assert json.loads((tmp_path / "alone.json").read_text())["knn"] == found["knn"]
    # any network has the same neighbour
    fresh = pretrain(out=str(tmp_path), name="fresh", steps=0, seed=5, progress=False)
    again = evaluate.evaluate(EvaluateConfig(**how | dict(checkpoint=str(fresh.checkpoint)), out="none"))
    assert again["untrained"] == found["untrained"] and not (fresh.checkpoint.parent / "evaluate.json").exists()
    rows = evaluate.retrieve(RetrieveConfig(**how | dict(clips=10), protocol="be", frames=4, size=24,
                                            ks=(1, 5)))["protocols"]
    assert set(rows[0]["untrained"]) == {"R@1", "R@5"} and "untrained R@5" in capsys.readouterr().out
    assert (run.parent / "retrieve.json").is_file()


def test_the_untrained_network_is_always_the_same_one_and_draws_nothing(run):
    trained = load(run)
    state = torch.get_rng_state()
    first, second = untrained_like(trained), untrained_like(trained)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_counts_stand_in_the_report(made, run, capsys):
    how = dict(checkpoint=str(run), data=str(made), test_split="val.txt", frames=4, size=16, clips=1, out="none")
    with pytest.warns(UserWarning, match="4 tested videos are of a class"):
        found = evaluate.retrieve(RetrieveConfig(**how, train_split="few.txt", ks=(1,)))
    assert found["notes"] == {"tested videos are of a class that few.txt lacks: never right": 4}
    assert found["R@1"] <= 2 / 6
    assert "4 tested videos are of a class that few.txt lacks" in capsys.readouterr().out


def test_a_report_that_cannot_be_written(made, run, tmp_path):
    with pytest.raises(ValueError, match="is a folder; name the JSON file"):
        evaluate.evaluate(EvaluateConfig(str(run), str(made), out=str(tmp_path)))
