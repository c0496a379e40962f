"""be_nb.judging.perturb and be_nb.judging.bias: altered clips by their properties, intervals, and a complete report."""
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from test_pack import folder_of_videos, quiet_pack
from torchvision.models import get_model

import be_nb.judging.bias.exam
import be_nb.judging.bias.report
import be_nb.judging.bias.score
from be_nb.data.scenebias import SceneBias
from be_nb.distractor import Draw, intra_frame
from be_nb.judging.bias.exam import make_exam, open_networks, run_names
from be_nb.judging.bias.page import bar, html_table, Markup, page, reaches_out, section, tag
from be_nb.judging.bias.report import bias, report_page
from be_nb.judging.bias.score import (Bootstrap, drifts, over_seeds, predict_versions, score_network, seed_groups,
                                      t_interval)
from be_nb.judging.bias.words import compare_sentences, MASKS, sentences, side, UNTRAINED
from be_nb.judging.features import Features
from be_nb.judging.perturb import (condition_titles, CONDITIONS, distract, draw_partners, fit_mask, MaskedVideos,
                                   open_stage, PlainStage, reverse_time, shots, shuffle_time, stop_time)
from be_nb.saving.weights import load
from be_nb.settings import BiasConfig
from be_nb.train import finetune, pretrain

FAST = dict(data_size=30, clips=1, resamples=50)


@pytest.fixture(scope="module")
def source():
    return SceneBias("test", size=30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(pretrain(out=str(tmp_path_factory.mktemp("runs")), name="a<b>&run", steps=0, progress=False).checkpoint)


def stack(n=2, t=6, seed=0):
    return torch.randint(0, 256, (n, t, 3, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(t=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_time_perturbations(t, seed):
    clips = stack(t=t, seed=seed)
    assert (stop_time(clips).int().diff(dim=1) == 0).all() and torch.equal(stop_time(clips)[:, 0], clips[:, t // 2])
    assert torch.equal(reverse_time(reverse_time(clips)), clips)
    assert torch.equal(reverse_time(clips)[:, 0], clips[:, -1])
    mixed = shuffle_time(clips, np.random.default_rng(seed))
    frames = lambda clip: sorted(bytes(frame.numpy().tobytes()) for frame in clip)
    assert all(frames(a) == frames(b) for a, b in zip(mixed, clips))
    assert t == 1 or not torch.equal(mixed, clips)


def test_distract_matches_the_distractor():
    clips = stack()
    x = clips.transpose(1, 2).float()
    draw = Draw(torch.full((2,), .3), torch.full((2,), 4), torch.tensor([1, 0]), torch.zeros(2, 2), 0)
    assert (distract(clips, 4, .3).transpose(1, 2).float() - intra_frame(x, draw)).abs().max() <= .5
    assert torch.equal(distract(clips, 4, 0), clips)


def test_filming_again_is_exact(source):
    stage, window = open_stage(source), np.arange(40)[None]
    for i in (0, 7, 29):
        assert torch.equal(stage.compose(i, window, i, window), stage.shot(i, window))
    mask = stage.mask(4, window)
    core = torch.nn.functional.max_pool2d((~mask[0]).float()[:, None], 5, 1, 2)[:, 0] == 0
    swapped = stage.compose(4, window, 9, window)[0]
    assert torch.equal(swapped.movedim(1, -1)[core], stage.shot(4, window)[0].movedim(1, -1)[core])
    cut = stage.cut_out(4, window)
    assert len(cut.movedim(2, -1)[~mask].unique(dim=0)) == 1
    assert torch.equal(cut.movedim(2, -1)[mask], stage.shot(4, window).movedim(2, -1)[mask])
    assert torch.equal(source.read(4, range(40)), stage.shot(4, window)[0])  # nothing was changed on the way


def test_empty_scenes_do_not_depend_on_the_actor(source):
    stage, window = open_stage(source), np.arange(8)[None]
    empty, with_actor = (f(3, window).float() for f in (stage.empty, stage.shot))
    outside = torch.nn.functional.max_pool2d(stage.mask(3, window).float(), 5, 1, 2)[:, :, None] == 0
    assert ((empty - with_actor).abs() * outside).max() == 0 and (empty - with_actor).abs().max() > 30


def test_the_tests_of_the_field(source):
    "SCUBA keeps the actor, SCUFO keeps no motion, and ConflFG changes nothing outside of a still foreign actor."
    stage, window, other = open_stage(source), np.arange(8)[None], np.arange(16, 24)[None]
    made, mask = shots(stage, 3, window, 4, other), stage.mask(3, window)
    real = made["real"].movedim(2, -1)
    for key in ("noise", "stripes"):
        clips = made[key].movedim(2, -1)
        assert torch.equal(clips[mask], real[mask])
        never = ~mask[0].any(0)
        assert never.any() and (clips[0][:, never] == clips[0][:1, never]).all()  # a wall stands still
        assert (clips[~mask].float() - real[~mask].float()).abs().mean() > 20
    assert torch.equal(made["scufo"], stop_time(made["swapped"]))
    pose = stage.mask(4, other[:, 4:5]).expand_as(mask)
    foreign = made["foreign"].movedim(2, -1)
    assert torch.equal(foreign[~pose], real[~pose]) and not foreign.float().diff(dim=1)[pose[:, 1:]].any()
    assert torch.equal(foreign[0, 0][pose[0, 0]], stage.shot(4, other)[0, 4].movedim(0, -1)[pose[0, 0]])
    again = shots(stage, 3, window, 4, other)
    assert all(torch.equal(made[key], again[key]) for key in made)


def test_contrasted_accuracy_is_counted_by_hand(source, checkpoint, monkeypatch):
    config = BiasConfig((checkpoint,), **FAST)
    exam = make_exam(config, source, dict(frames=8, stride=1, size=24))
    train = Features(torch.randn(30, 64), exam.labels, [], [])
    seen = {}

    def predict(train, made, k=20):
        rng = np.random.default_rng(0)
        seen.update({key: torch.from_numpy(rng.integers(0, 6, 30)) for key in made})
        return dict.fromkeys(("probe", "knn", "r1"), seen), torch.zeros(6, 64)
    monkeypatch.setattr(be_nb.judging.bias.score, "predict_versions", predict)
    part, _, _ = score_network(load(checkpoint), train, exam, dict(frames=8, stride=1, size=24), config, False)
    pairs = zip(seen["swapped"].tolist(), seen["scufo"].tolist(), exam.labels.tolist())
    expected = sum(a == label and b != label for a, b, label in pairs) / 30
    assert part["contrasted"][0] == pytest.approx(expected, abs=1e-4)


def test_shots_without_masks(source):
    made = shots(PlainStage(source), 3, np.arange(8)[None], 4, np.arange(8)[None], (.5,))
    assert list(made) == ["real", "still", "shuffled", "reversed", "lambda_0.5"]


def test_mask_follows_the_picture():
    """A mask goes through scaling and cutting like the picture of itself."""
    mask = torch.zeros(1, 128, 170, dtype=torch.bool)
    mask[0, 40:90, 60:110] = True
    small = fit_mask(mask, (64, 85))
    assert small.shape == (1, 64, 85) and torch.equal(small[0].nonzero().amin(0), torch.tensor([20, 30]))
    square = fit_mask(mask, (64, 64))
    assert square.shape == (1, 64, 64) and square[0].nonzero().amin(0)[1] in (19, 20)  # 85 wide, cut to 64


def test_partners_disagree():
    rng = np.random.default_rng(0)
    labels, scenes = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    partners = draw_partners(labels, scenes, 1)
    assert (labels[partners] != labels).all() and (scenes[partners] != labels).all()
    with pytest.raises(ValueError, match="one class"):
        draw_partners([1, 1], [0, 0])


def test_bootstrap():
    values = np.random.default_rng(0).random(300)
    value, low, high = Bootstrap(300)(values)
    assert value == pytest.approx(values.mean(), abs=1e-4)
    error = values.std() / 300 ** .5  # the interval of the normal approximation
    assert low == pytest.approx(value - 1.96 * error, abs=.004)
    assert high == pytest.approx(value + 1.96 * error, abs=.004)
    assert Bootstrap(4)([1, np.nan, 0, np.nan])[0] == .5 and Bootstrap(4)([0] * 4, [0] * 4) is None
    assert Bootstrap(4)([1, 1, 1, 0], [1, 1, 1, 1])[0] == .75
    assert Bootstrap(5)([1] * 5) == [1, 1, 1]


def test_judges_and_drift_on_features_that_are_known():
    """Features that are the class: real clips all right, clips with another class's features all wrong."""
    y = torch.arange(40) % 4
    x = torch.eye(4)[y] * 5 + .01 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    train = Features(x, y, [""] * 40, list("abcd"))
    made = {"real": x, "swapped": x.roll(1, 0)}
    said, weights = predict_versions(train, made, k=3)
    for judge in ("probe", "knn", "r1"):
        assert torch.equal(said[judge]["real"], y) and not (said[judge]["swapped"] == y).any()
    far, unrelated = drifts(train, made, np.roll(np.arange(40), 1))
    assert far["real"].abs().max() < 1e-6 and torch.allclose(far["swapped"], unrelated)


def part(real, swapped, share=(.5, .4, .6)):
    scores = {key: [real, real - .05, real + .05] for key in ("real", "still", "shuffled", "background")}
    lost = {key: [0., -.05, .05] for key in ("still", "shuffled")}
    scores["swapped"], lost["swapped"] = [swapped, swapped - .05, swapped + .05], [real - swapped] * 3
    return {"scores": {"probe": scores}, "lost": lost, "conflict": {"actor_share": list(share)},
            "preference": [.5, .4, .6], "maps": {"lift": [2, 1.8, 2.2]}}


def test_verdict_follows_the_numbers():
    needs = " ".join(sentences(part(.8, .3, (.2, .1, .3)), 1 / 6))
    assert "needs the background" in needs and "follows the scene" in needs and "denser on the actor" in needs
    robust = " ".join(sentences(part(.8, .8, (.9, .8, .95)), 1 / 6))
    assert "does not measurably" in robust and "follows the actor" in robust and "needs" not in robust
    guessing = sentences(part(.18, .18), 1 / 6)
    assert len(guessing) == 1 and "guessing" in guessing[0]
    assert [side([.5, a, b], .5) for a, b in ((.4, .6), (.51, .6), (.4, .49))] == [0, 1, -1]
    pair = {"first": "A", "second": "B", "difference": {"real": [.1, .05, .2], "still": [0, -.1, .1]}}
    told = compare_sentences([pair])
    assert "B is right more often than A" in told[0] and "not measurably different" in told[1]


def check_complete(report, out, masks):
    stored = json.loads((out / "report.json").read_text(encoding="utf8"))
    assert stored == json.loads(json.dumps(report)) and not list(out.glob(".*"))
    keys = {key for key, (_, _, needs) in CONDITIONS.items() if masks or not needs}
    keys |= {"lambda_0.1", "lambda_0.3", "lambda_0.5", "lambda_0.7"}
    assert set(report["conditions"]) == keys and bool(report["left_out"]) != masks
    for network in report["networks"]:
        for scores in network["scores"].values():
            assert set(scores) == keys
            assert all(0 <= low <= value <= high <= 1 for value, low, high in scores.values())
        assert set(network["drift"]) == set(network["lost"]) == keys - {"real"}
        assert all((network[key] is not None) == masks for key in ("conflict", "preference", "maps"))
        assert report["verdict"][network["name"]]
    document = (out / "report.html").read_text(encoding="utf8")
    assert not reaches_out(document) and document.count("<section") >= 5
    return document


def test_report_is_complete(checkpoint, tmp_path):
    report = bias(BiasConfig((checkpoint,), out=str(tmp_path / "r"), **FAST), progress=False)
    document = check_complete(report, tmp_path / "r", True)
    assert "a&lt;b&gt;&amp;run" in document and "a<b>" not in document  # the name of the run is text
    assert document.count("<img") == 3 and [n["name"] for n in report["networks"]] == ["untrained", "a<b>&run"]
    first, second = report["networks"]  # no step of training: the untrained network with the same seed is the same one
    assert first["scores"] == second["scores"] and first["maps"] == second["maps"]
    difference, = report["comparisons"]
    assert all(triple == [0, 0, 0] for triple in difference["difference"].values())


def test_an_interrupted_report_goes_on_and_is_the_same(checkpoint, tmp_path, monkeypatch):
    judged, real = [], be_nb.judging.bias.score.score_network

    def score_network(net, train, exam, settings, config, progress):
        if len(judged) == 1 and config.out.endswith("halves"):
            judged.append("interrupted")
            raise KeyboardInterrupt
        judged.append(net)
        return real(net, train, exam, settings, config, progress)
    monkeypatch.setattr(be_nb.judging.bias.report, "score_network", score_network)
    few = FAST | dict(data_size=12, lams=(), pictures=False)
    ask = lambda out, **changes: bias(BiasConfig((checkpoint,), out=str(tmp_path / out), **few | changes),
                                      progress=False)
    with pytest.raises(KeyboardInterrupt):
        ask("halves")
    assert [p.name for p in (tmp_path / "halves").iterdir()] == ["judged-0.pt"]
    once = (tmp_path / "halves/judged-0.pt").read_bytes()
    report = ask("halves")
    assert len(judged) == 3  # the first network, the interruption, the second network
    assert report == ask("whole") and not list((tmp_path / "halves").glob("judged*"))
    for kept in (once, once[:-100]):  # of another question, and damaged: not taken
        judged.clear()
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other/judged-0.pt").write_bytes(kept)
        assert ask("other", seed=int(kept is once)) and len(judged) == 2


@pytest.fixture(scope="module")
def others(checkpoint, tmp_path_factory):
    "A fine-tuned run, and weights of torchvision as anybody would save them."
    out = tmp_path_factory.mktemp("others")
    tuned = finetune(checkpoint=checkpoint, out=str(out), name="tuned", steps=1, batch_size=6, data_size=18,
                     test_size=6, clips=1, validation=0, progress=False).checkpoint
    torch.manual_seed(0)
    torch.save(get_model("mc3_18", weights=None).state_dict(), out / "mc3.pth")
    return str(tuned), str(out / "mc3.pth")


def test_fine_tuned_and_foreign_networks_are_reported(checkpoint, others, tmp_path):
    "Neither has a pretraining method; each is named by what it has learned from, and the report is as complete as any."
    small = dict(data_size=12, clips=1, resamples=20, frames=4, size=24)
    report = bias(BiasConfig((checkpoint, *others), out=str(tmp_path / "r"), **small), progress=False)
    document = check_complete(report, tmp_path / "r", True)
    facts = {network["name"]: (network["backbone"], network["pretraining"]) for network in report["networks"]}
    assert facts == {"untrained": ("tiny", "nothing"),
                     "a<b>&run": ("tiny", "moco, distractor intra_frame, negative intra_video, 0 steps"),
                     "tuned": ("tiny", "labels of scenebias, all weights, 1 steps, from a<b>&run"),
                     "mc3.pth": ("tv_mc3_18", "torchvision/mc3_18, supervised, data: not known")}
    assert "torchvision/mc3_18" in document and len(report["comparisons"]) == 6
    own = {name: tuple(net.pretrain_config[key] for key in ("frames", "stride", "size"))
           for name, net in open_networks(BiasConfig(others, **small)).items()}
    assert own == {"untrained": (8, 1, 24), "tuned": (8, 1, 24), "mc3.pth": (16, 2, 112)}
    alone = open_networks(BiasConfig(others[1:], **small))  # an untrained one of a foreign shape
    assert type(alone["untrained"]) is type(alone["mc3.pth"])


def test_an_order_run_is_shown_its_own_clips(tmp_path, monkeypatch):
    "Training reads 3·4 + 2·2 frames of a video; exam, probe, pictures and maps show the clips of 4 it learned from."
    path = pretrain(out=str(tmp_path), name="order", method="order", distractor="none", frames=4, gap=2, steps=0,
                    data_size=8, batch_size=2, progress=False).checkpoint
    seen = set()

    def watched(path):
        backbone = load(path)
        real = backbone.features
        backbone.features = lambda clips: seen.add(tuple(clips.shape[1:])) or real(clips)
        return backbone
    monkeypatch.setattr(be_nb.judging.bias.exam, "load", watched)
    config = BiasConfig((str(path),), out=str(tmp_path / "r"), data_size=12, clips=2, resamples=20, lams=(),
                        untrained=False)
    network, = bias(config, progress=False)["networks"]
    assert network["frames"] == 4 and seen == {(3, 4, 24, 24)}
    exam = make_exam(config, SceneBias("test", size=12), {key: network[key] for key in ("frames", "stride", "size")})
    assert exam.videos[0][1].shape == (2, 4, 3, 30, 30)


def test_a_pack_gives_the_report_of_its_folder(tmp_path):
    "Frames packed as they are: every number is the same. A pack has no masks, and asking for them is an error."
    root = folder_of_videos(tmp_path / "videos", {f"{k}.mp4": 8 + k for k in range(10)})
    quiet_pack(root, ("train.txt", "val.txt"), tmp_path / "videos-packed", None, codec="raw")
    run = pretrain(out=str(tmp_path), name="run", steps=0, frame_size=(48, 64), progress=False).checkpoint
    ask = lambda folder, **more: bias(BiasConfig((str(run),), out=str(tmp_path / f"r-{folder}"), clips=1, resamples=20,
                                                 data=str(tmp_path / folder), frames=4, untrained=False, **more),
                                                 progress=False)
    folder, packed = ask("videos"), ask("videos-packed")
    assert folder.pop("data") == "videos" and packed.pop("data") == "videos-packed"
    assert folder == packed and folder["train"] == {"list": "train.txt", "videos": 5}
    np.savez(tmp_path / "videos-packed/actor_masks.npz", **{"0": np.zeros((8, 48, 8), np.uint8)})
    assert ask("videos-packed")["networks"] == packed["networks"]  # lying about, they are not taken
    with pytest.raises(ValueError, match="a pack does not keep. Give the folder of the videos"):
        ask("videos-packed", masks=str(tmp_path / "videos-packed/actor_masks.npz"))
    guessed = ask("videos-packed", masks="motion")  # nobody has drawn masks, and every row is there
    assert "guessed from motion" in guessed["masks"] and not guessed["left_out"] and guessed["networks"][0]["conflict"]
    assert "guessed from motion" in (tmp_path / "r-videos-packed/report.html").read_text(encoding="utf8")


def test_an_interval_over_seeds():
    "Student's interval against SciPy's, groups by everything but the run's place and seed, and pairs by seed."
    stats = pytest.importorskip("scipy.stats")
    for values in ([1, 2], [0.3, 0.4, 0.9], [5, 5, 5, 6], list(range(40))):
        error = np.std(values, ddof=1) / len(values) ** .5
        low, high = stats.t.interval(.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert t_interval(values) == pytest.approx([np.mean(values), low, high], rel=1e-4, abs=1e-3)
    run = {"method": "moco", "steps": 500}
    pasts = {f"moco-seed{seed}": run | {"seed": seed, "name": str(seed), "out": f"runs{seed}"} for seed in (2, 0, 1)}
    pasts |= {f"be-{seed}": run | {"gamma": .5, "seed": seed} for seed in (0, 1)} | {"alone": run | {"steps": 9}}
    groups = seed_groups(pasts)
    assert {name: set(group) for name, group in groups.items()} == {"moco": {0, 1, 2}, "be": {0, 1}}
    assert seed_groups({"a": run | {"seed": 0}, "b": run | {"seed": 0}}) == {}  # the same seed twice is no spread
    with pytest.raises(ValueError, match="One seed has no spread"):
        t_interval([0.5])
    score = lambda name, value: {"name": name, "scores": {"probe": {key: [value] for key in ("real", "swapped")}},
                                 "conflict": None, "preference": None, "contrasted": None}
    level = {"moco-seed0": .5, "moco-seed1": .6, "moco-seed2": .1, "be-0": .6, "be-1": .72}
    found = over_seeds([score(name, value) for name, value in level.items()], groups)
    [pair] = found["differences"]
    assert (pair["first"], pair["second"], pair["seeds"]) == ("moco", "be", [0, 1])
    assert pair["difference"]["real"] == t_interval([.1, .12]) and "preference" not in pair["difference"]
    told = compare_sentences(found["differences"])
    assert "over 2 seeds: be is not measurably different" in told[0]  # two runs are few: t is 12.7
    surer = over_seeds([score(name, value if name != "be-1" else .7001) for name, value in level.items()], groups)
    assert "be is right more often than moco (+10.0 points" in compare_sentences(surer["differences"])[1]


def test_a_report_speaks_of_trainings(tmp_path):
    names = ("scenebias-moco", "scenebias-moco-1", "scenebias-be", "scenebias-be-1", "scenebias-triplet-be")
    report = bias(BiasConfig(names, out=str(tmp_path), pictures=False, **FAST), progress=False)
    assert [group["seeds"] for group in report["seeds"]["groups"]] == [[0, 1], [0, 1]]
    document = (tmp_path / "report.html").read_text(encoding="utf8")
    pairs = report["verdict"]["Compared on the same videos"]  # those that no sentence over seeds speaks of
    assert len(pairs) == 2 * (5 + 4) and all("untrained" in told or "triplet" in told for told in pairs)
    glance = document.split("<h2>In words</h2>")[0]
    assert next(iter(report["verdict"])) == "Over seeds" and "2 seeds; interval over them" in glance


def test_titles_follow_the_settings():
    titles = condition_titles((.1, .25))
    assert list(titles) == [*CONDITIONS, "lambda_0.1", "lambda_0.25"]
    assert titles["lambda_0.25"] == "distracted, λ = 0.25"


def test_reports_of_earlier_versions_can_be_drawn():
    for report in json.loads((ROOT / "nbs/results/bias.json").read_text(encoding="utf8"))["reports"]:
        assert not reaches_out(report_page(report))


def test_the_page_of_several_networks_opens_on_one_table():
    "Short names, sentences folded, what masks would add where there are none, and random weights explained once."
    for report in json.loads((ROOT / "nbs/results/bias.json").read_text(encoding="utf8"))["reports"]:
        runs = {n["name"]: n["name"] if n["name"] == "untrained" else f"{n['name']}-rho0.9" for n in report["networks"]}
        told = {runs.get(name, name): [*told, *runs.values()] for name, told in report["verdict"].items()}
        long = report | {"networks": [n | {"name": runs[n["name"]]} for n in report["networks"]], "verdict": told}
        document, plain = report_page(long), report_page(report)
        glance, rest = document.split("<h2>In words</h2>")
        assert glance.count("<table") == 1 and "<details" not in glance and "<h3" not in glance
        assert rest.count("<details") == len(report["verdict"]) and "<details open" not in rest
        assert "rho0.9" not in glance and document.count("rho0.9") == len(runs) - 1, "full names: in the small print"
        masks = report["networks"][0]["conflict"] is not None
        assert document.count(MASKS[:60]) == plain.count(MASKS[:60]) == 1 - masks
        assert document.count(UNTRAINED[:60]) == masks
        assert ("background swapped" in glance) == masks


def test_a_page_of_one_network_is_open():
    report = json.loads((ROOT / "nbs/results/bias.json").read_text(encoding="utf8"))["reports"][0]
    name = report["networks"][1]["name"]
    one = report | {"networks": report["networks"][1:2], "verdict": {name: report["verdict"][name]}}
    assert report_page(one).count("<details open") == 1


def test_report_without_pictures_shows_no_clip(checkpoint, tmp_path):
    settings = FAST | {"lams": ()}
    bias(BiasConfig((checkpoint,), out=str(tmp_path), untrained=False, pictures=False, **settings), progress=False)
    assert "<img" not in (tmp_path / "report.html").read_text(encoding="utf8")


@pytest.mark.parametrize("masks", [True, False])
def test_report_on_real_videos(footage, checkpoint, tmp_path, masks):
    for split in ("train.txt", "val.txt"):
        names = [line.split() for line in (footage / "jhmdb-21" / split).read_text().splitlines()]
        few = [line for label in "01" for line in [f"{n} {k}" for n, k in names if k == label][:5]]
        (tmp_path / split).write_text("\n".join(few))
    config = BiasConfig((checkpoint,), out=str(tmp_path / "r"), data=str(footage / "jhmdb-21"), resamples=50, clips=1,
                        train_split=str(tmp_path / "train.txt"), test_split=str(tmp_path / "val.txt"), untrained=False)
    if not masks:  # the same videos in a folder without the file of masks
        folder = tmp_path / "videos"
        folder.mkdir()
        (folder / "videos").symlink_to(footage / "jhmdb-21/videos")
        config = BiasConfig(**{**vars(config), "data": str(folder)})
    check_complete(bias(config, progress=False), tmp_path / "r", masks)


@pytest.mark.parametrize("changes, words", [
    ({"checkpoint": ()}, "at least one"), ({"checkpoint": ("nowhere",)}, "no checkpoint"),
    ({"test_split": "valley"}, "no split"), ({"data": "nowhere"}, "no such folder"), ({"rho": 2}, "rho")])
def test_mistakes_are_found_first(checkpoint, tmp_path, changes, words):
    with pytest.raises((ValueError, OSError), match=words):
        bias(BiasConfig(**({"checkpoint": (checkpoint,), "out": str(tmp_path / "r")} | changes)), progress=False)
    assert not (tmp_path / "r").exists()


def test_masks_must_be_there(source, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        MaskedVideos(source, tmp_path / "masks.npz")
    np.savez(tmp_path / "masks.npz", other=np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="no mask for 30 of 30"):
        MaskedVideos(source, tmp_path / "masks.npz")


def test_run_names():
    assert run_names(["x/a/step-00000001.pt", "y/a", "b"]) == ["a (1)", "a (2)", "b"]


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_html_is_escaped(text):
    document = page(text, text, section(text, html_table(text, [text], [(text, text, [bar([.5, .4, .6])])], text)))
    assert document.count("<script") == 0 and not reaches_out(document)
    plain = page("", "", section("", html_table("", [""], [("", "", [bar([.5, .4, .6])])], "")))
    assert document.count("<") == plain.count("<") and document.count('"') == plain.count('"')


def test_page_stands_alone():
    for evil in ('<img src="http://x.org/a.png">', "<script>1</script>", '<p onclick="x()">', '<a href="file:///etc">x</a>',
                 "<style>@import 'x'</style>", '<link rel="x">'):
        assert reaches_out(evil), evil
    assert not reaches_out(tag("p", "see http://example.org <script>", title="ok")) and isinstance(tag("b"), Markup)
