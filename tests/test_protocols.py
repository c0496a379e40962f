"""Five protocols against loops, exact fractions, torchvision, scikit-learn, and averages taken by hand in float64."""
import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchvision.datasets.samplers import UniformClipSampler
from torchvision.datasets.video_utils import VideoClips as TorchvisionClips

from be_nb import cli, evaluate
from be_nb.augment import CenterCrop
from be_nb.data import sources
from be_nb.evaluate import chosen_protocols
from be_nb.judging.features import Features, test_views
from be_nb.judging.protocols import (BE, centre_features, COCLR, FAME, get_protocol, PLACEMENTS, Protocol,
                                     protocol_features, protocol_table, PROTOCOLS, provenance, scale, score_retrieval,
                                     SLOWFAST, survey, VCOP, ViewFeatures, windows_of, without_rest)
from be_nb.settings import EvaluateConfig, RetrieveConfig
from be_nb.training import finetune
from be_nb.training.classifier import Classifier, predict

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


class Videos:
    "A source in memory: wide videos of given lengths, three classes in turn."

    def __init__(self, lengths, height=12, width=20, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.videos = [torch.randint(0, 256, (n, 3, height, width), generator=generator).byte() for n in lengths]
        self.labels = np.arange(len(lengths)) % 3
        self.names, self.classes = [f"video {i}" for i in range(len(lengths))], ["a", "b", "c"]

    def __len__(self):
        return len(self.videos)

    def num_frames(self, i):
        return len(self.videos[i])

    def read(self, i, frames):
        return self.videos[i][torch.as_tensor(np.asarray(frames))]


class Net(nn.Module):
    "A backbone in float64 precision where it matters: a map, and its mean."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv3d(3, 5, 3, padding=1), nn.BatchNorm3d(5)

    def features(self, x):
        return self.norm(self.conv(x)).relu()

    def forward(self, x):
        return self.features(x).mean((2, 3, 4))


QUIET = dict(progress=False, amp="fp32", device="cpu")


# facts

@each_protocol
def test_every_fact_has_a_source(protocol):
    told = {f.name for f in dataclasses.fields(Protocol)} - {"name", "about", "sources", "known"}
    assert set(protocol.sources) == told
    for fact, source in protocol.sources.items():
        assert len(source) > 20, fact
        assert "/" in source or source.startswith(("not stated", "no loader", "frames are")), (fact, source)
        assert fact in provenance(protocol) and source in provenance(protocol)
    assert protocol.placement in PLACEMENTS and protocol.known
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.frames = 3


def test_a_protocol_without_sources_is_refused():
    for missing in ("frames", "crops"):
        with pytest.raises(ValueError, match=f"'be' gives no source for: {missing}$"):
            dataclasses.replace(BE, sources={key: value for key, value in BE.sources.items() if key != missing})


@pytest.mark.parametrize("wrong, hint", [("slow-fast", "Did you mean slowfast"), ("cocrl", "Did you mean coclr"),
                                         ("xyzzy", "Choose one of: be, coclr, vcop, fame, slowfast")])
def test_unknown_names_show_the_nearest(wrong, hint):
    with pytest.raises(ValueError, match=f"Unknown protocol '{wrong}'. {hint}"):
        get_protocol(wrong)
    with pytest.raises(ValueError, match=f"Unknown protocol '{wrong}'"):
        evaluate.retrieve(RetrieveConfig("nowhere", "scenebias", protocol=wrong))


# frames

@given(st.integers(32, 400))
def test_ten_clips_are_those_of_torchvision(length):
    clips = TorchvisionClips.__new__(TorchvisionClips)
    clips.clips = [torch.arange(length - FAME.span + 1)]  # as FAME makes them: a start at every frame, 32 frames each
    starts = list(UniformClipSampler(clips, 10))
    assert windows_of(FAME, length)[:, 0].tolist() == starts
    assert (np.diff(windows_of(FAME, length)) == 2).all()
    vcop = [int(middle - 8) for middle in np.linspace(8, length - 8, 10)]  # from the middles of the clips
    assert np.abs(windows_of(VCOP, length)[:, 0] - vcop).max() <= (0 if (length - 16) % 9 else 1)


@given(st.integers(1, 400))
def test_slowfast_frames_by_exact_fractions(length):
    expected = []
    for k in range(10):
        start = Fraction(max(length - 64, 0) * k, 10)
        expected.append([min(int(start + Fraction(63 * j, 7)), length - 1) for j in range(8)])
    assert windows_of(SLOWFAST, length).tolist() == expected


@given(st.integers(1, 300))
def test_coclr_windows_by_a_loop(length):
    expected, start = [], 0
    if length <= 17:
        pass
    elif length <= 32:
        expected.append([0] * (32 - length) + list(range(length)))
    else:
        while start + 32 <= length:
            expected.append(list(range(start, start + 32)))
            start += 15
    assert windows_of(COCLR, length).tolist() == expected


@given(st.integers(1, 300))
def test_be_takes_the_centre_and_loops(length):
    first = max(length - 64, 0) // 2
    assert windows_of(BE, length).tolist() == [[(first + j) % length for j in range(64)]]


@given(st.sampled_from(list(PROTOCOLS.values())), st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_windows_are_frames_of_the_video(protocol, length, frames, stride):
    protocol = scale(protocol, frames=frames, stride=stride)
    found = windows_of(protocol, length)
    assert found.dtype == np.int64 and found.shape[1] == frames
    assert len(found) == 0 or (found.min() >= 0 and found.max() < length)
    assert len(found) in ((0, protocol.clips) if protocol.clips else range(length + 1))
    if protocol.short not in ("drop", "lead"):
        assert len(found)


def test_windows_are_deterministic():
    for protocol in PROTOCOLS.values():
        assert np.array_equal(windows_of(protocol, 77), windows_of(protocol, 77))


@given(st.sampled_from(list(PROTOCOLS.values())), st.integers(8, 256), st.integers(1, 64))
def test_scaling_keeps_the_proportions(protocol, size, frames):
    small = scale(protocol, size, frames)
    kept = ("clips", "crops", "crop", "placement", "short", "pool", "unit", "centred", "drop_last", "sources")
    assert all(getattr(small, key) == getattr(protocol, key) for key in kept)
    assert abs(small.span - protocol.span) <= frames / 2 or small.stride == 1
    before, after = protocol.frame_size[0] / protocol.size, small.frame_size[0] / small.size
    assert abs(before - after) <= 0.5 / size + 1e-9
    assert scale(protocol) == protocol


# features

def by_hand(net, source, protocol):
    "The mean over clips and crops in float64, one view at a time."
    found, (height, width) = [], source.videos[0].shape[-2:]
    side = min(height, width)
    for video in source.videos:
        vectors = []
        for window in windows_of(protocol, len(video)):
            clip = video[torch.as_tensor(window)][None]
            squares = [clip[..., :side], clip, clip[..., -side:]] if protocol.crops == 3 else [clip]
            for square in squares:
                x = CenterCrop(protocol.size, protocol.crop)(square)
                if protocol.pool == "max":
                    maps = net.features(x)[0].double()
                    c, t, h, w = maps.shape
                    vector = torch.stack([maps[:, :, 2 * r:2 * r + 2, 2 * q:2 * q + 2].amax((2, 3))
                                          for r in range(h // 2) for q in range(w // 2)], -1).flatten()
                else:
                    vector = net(x)[0].double()
                vectors.append(vector / vector.norm() if protocol.unit else vector)
        if vectors:
            found.append(sum(vectors) / len(vectors))
    return torch.stack(found)


@each_protocol
def test_features_by_hand(protocol):
    source, net, small = Videos([40, 70, 33, 90]), Net().eval(), scale(protocol, size=8, frames=4)
    with torch.no_grad():
        expected = by_hand(net, source, small)
    found = protocol_features(net, source, small, batch_size=3, **QUIET)
    torch.testing.assert_close(found.features.double(), expected, atol=2e-6, rtol=1e-4)


def test_thirty_views_by_hand():
    source, net, small = Videos([50, 80]), Net().eval(), scale(SLOWFAST, size=12, frames=4)
    seen = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        expected = by_hand(net, source, small)
    assert len(seen) == 60  # ten clips × three crops of two videos
    found = protocol_features(net, source, small, batch_size=7, **QUIET)
    assert sum(seen) == 120
    torch.testing.assert_close(found.features.double(), expected, atol=2e-6, rtol=1e-4)
    centre = protocol_features(net, source, dataclasses.replace(small, crops=1), **QUIET)
    assert not torch.allclose(found.features, centre.features, atol=1e-4)  # the ends of a wide frame matter


@each_protocol
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_video_counts_for_any_batch_size(protocol, batch_size):
    source, small = Videos([70] * 7), scale(protocol, size=8, frames=4)
    found = protocol_features(Net(), source, small, batch_size=batch_size, **QUIET)
    assert found.names == source.names and found.dropped == []
    reference = protocol_features(Net(), source, small, batch_size=17, **QUIET)
    torch.testing.assert_close(found.features, reference.features, atol=2e-6, rtol=1e-4)


def test_short_videos_are_dropped_and_counted():
    source = Videos([70, 10, 17, 18, 31, 32])
    names = {name: protocol_features(Net(), source, scale(p, size=8), **QUIET).dropped
             for name, p in PROTOCOLS.items() if name not in ("coclr", "vcop", "fame")}
    assert names == {"be": [], "slowfast": []}
    expected = {"coclr": ["video 1", "video 2"], "vcop": ["video 1"], "fame": [f"video {i}" for i in (1, 2, 3, 4)]}
    for name, dropped in expected.items():
        with pytest.warns(UserWarning, match=f"{len(dropped)} of 6 videos are not scored"):
            assert protocol_features(Net(), source, scale(PROTOCOLS[name], size=8), **QUIET).dropped == dropped
        assert survey(source, PROTOCOLS[name])["kept"] == 6 - len(dropped)
    assert survey(source, BE) == {"kept": 6, "short": 5} and survey(source, COCLR)["short"] == 2


# retrieval

@each_protocol
def test_retrieval_agrees_with_scikit_learn(protocol):
    gallery, queries, net = Videos([40] * 12, seed=1), Videos([50] * 9, seed=2), Net()
    small = scale(protocol, size=8, frames=4)
    row = score_retrieval(net, gallery, queries, small, ks=(1, 3), **QUIET)
    x, q = (protocol_features(net, s, small, **QUIET).features.double().numpy() for s in (gallery, queries))
    if protocol in (COCLR, FAME):
        x, q = x - x.mean(0), q - q.mean(0)
    _, rows = NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute").fit(x).kneighbors(q)
    hits = gallery.labels[rows] == queries.labels[:, None]
    assert row["R@1"] == round(hits[:, 0].mean(), 4) and row["R@3"] == round(hits.any(1).mean(), 4)
    assert (row["scored"], row["gallery"], row["dropped"]) == (9, 12, 0)


def test_centred_retrieval_by_hand():
    x = torch.tensor([[5.0, 1.0], [7.0, 3.0], [3.0, 5.0]])
    assert centre_features(x, COCLR).tolist() == [[0.0, -2.0], [2.0, 0.0], [-2.0, 2.0]]
    assert centre_features(x, COCLR).dtype == torch.float64 and torch.equal(centre_features(x, VCOP), x.double())
    query = torch.tensor([[9.0, 9.0], [11.0, 9.0]])  # centred: to the left and to the right
    found = evaluate.retrieval(centre_features(x, FAME), torch.tensor([0, 1, 2]), centre_features(query, FAME),
                               torch.tensor([2, 1]), ks=(1,))
    assert found.neighbours.flatten().tolist() == [2, 1] and found.recall[1] == 1


def test_unit_vectors_have_length_one():
    x = torch.rand(4, 3, 2, 8, 8)
    assert torch.allclose(ViewFeatures(Net(), unit=True)(x).norm(dim=1), torch.ones(4))
    assert ViewFeatures(Net(), "max")(x).shape == (4, 5 * 2 * 4 * 4)
    tiny = ViewFeatures(Net(), "max")(torch.rand(4, 3, 2, 1, 1))  # a map of one pixel is left as it is
    assert tiny.shape == (4, 10)


def test_the_rest_is_dropped_only_on_request():
    gallery, queries, small = Videos([40] * 17), Videos([40] * 11, seed=3), scale(VCOP, size=8, frames=4)
    all_of_them = score_retrieval(Net(), gallery, queries, small, ks=(1,), **QUIET)
    published = score_retrieval(Net(), gallery, queries, small, ks=(1,), drop_last=True, **QUIET)
    assert [(r["gallery"], r["scored"], r["dropped"]) for r in (all_of_them, published)] == [(17, 11, 0), (16, 8, 3)]
    other = score_retrieval(Net(), gallery, queries, scale(FAME, size=8, frames=4), ks=(1,), drop_last=True, **QUIET)
    assert (other["scored"], other["dropped"]) == (11, 0)
    ucf101 = Features(torch.zeros(3783, 1), torch.zeros(3783), [str(i) for i in range(3783)], [])
    cut = without_rest(ucf101, VCOP.drop_last)
    assert len(cut) == 3776 and cut.dropped == [str(i) for i in range(3776, 3783)] and len(cut.names) == 3776


# from the command line

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from be_nb.train import pretrain

    return str(pretrain(out=str(tmp_path_factory.mktemp("runs")), steps=0, progress=False).checkpoint)


@pytest.fixture
def few(monkeypatch):
    "SceneBias in small: its splits have hundreds of clips."
    real = sources.SceneBias
    monkeypatch.setattr(sources, "SceneBias", lambda split, *a, **k: real(split, *a[:2], **k | {"size": 21}))


def test_all_protocols_print_one_table(checkpoint, few, tmp_path, capsys):
    out = tmp_path / "report.json"
    cli.main(["retrieve", "--checkpoint", checkpoint, "--data", "scenebias", "--train-split", "probe", "--test-split",
              "swapped", "--protocol", "all", "--size", "24", "--frames", "4", "--ks", "1", "5", "--out", str(out)])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    head, names = [cell.strip() for cell in lines[0]], [line[0].strip() for line in lines[2:]]
    assert names == list(PROTOCOLS) and {"protocol", "scored", "dropped", "R@1", "R@5"} <= set(head)
    report = json.loads(out.read_text())
    assert [row["protocol"] for row in report["protocols"]] == names
    assert all(row["scored"] == 21 and row["dropped"] == 0 for row in report["protocols"])
    assert protocol_table(report["protocols"]).splitlines()[0].count("chance") == 0


def test_one_protocol_with_its_dropped_rest(checkpoint, few, capsys):
    config = RetrieveConfig(checkpoint, "scenebias", "probe", "test", protocol="vcop", omit=True, size=24,
                            frames=4, ks=(1,))
    row, = evaluate.retrieve(config)["protocols"]
    assert (row["scored"], row["dropped"], row["views"]) == (16, 5, "10 × 1")
    judged, = evaluate.evaluate(EvaluateConfig(checkpoint, "scenebias", "probe", "test", protocol="be", size=24,
                                               frames=4))["protocols"]
    assert 0 <= judged["linear probe"] <= 1 and judged["short"] == 21 and judged["scored"] == 21


def test_what_cannot_be_scored_is_refused_before_any_feature(checkpoint, few, monkeypatch):
    monkeypatch.setattr("be_nb.judging.protocols.protocol_features",
                        lambda *args, **how: pytest.fail("features were computed"))
    config = dict(checkpoint=checkpoint, data="scenebias", train_split="probe", test_split="test", protocol="all")
    with pytest.raises(ValueError, match="probe has 21 videos that count under protocol be; 50 are needed"):
        evaluate.retrieve(RetrieveConfig(**config))
    with pytest.raises(ValueError, match="probe has 0 videos that count under protocol vcop"):
        evaluate.retrieve(RetrieveConfig(**config | dict(protocol="vcop"), frames=50, stride=1, ks=(1,)))
    for fixed in (dict(clips=3), dict(short="drop")):
        with pytest.raises(ValueError, match=f"{next(iter(fixed))} cannot be set beside protocol=all"):
            chosen_protocols(RetrieveConfig(**config, **fixed))


def test_without_the_flag_nothing_changes(checkpoint, few):
    config = RetrieveConfig(checkpoint, "scenebias", "probe", "test", clips=2, ks=(1,))
    report = evaluate.retrieve(config)
    assert report["R@1"] >= 0 and "protocols" not in report and report["clips"] == 2


# the test of fine-tuning takes the views

def test_predict_takes_windows_and_crops_of_a_protocol():
    source, net = Videos([30, 55]), Net().eval()
    small = scale(SLOWFAST, size=8, frames=4)
    found = predict(net, source, frames=4, size=8, crops=3, windows=lambda n: windows_of(small, n), amp="fp32",
                             batch_size=3, device="cpu")
    assert found.probabilities.shape == (2, 10, 5)
    views = test_views(8, 3)
    clip = source.videos[1][torch.as_tensor(windows_of(small, 55)[9])][None]
    with torch.no_grad():
        expected = sum(net(view(clip)).double().softmax(1) for view in views) / 3
    torch.testing.assert_close(found.probabilities[1, 9].double(), expected[0], atol=1e-5, rtol=1e-4)


def test_finetuning_names_what_it_cannot_take():
    with pytest.raises(ValueError, match="protocol=coclr takes more clips of a longer video"):
        finetune.finetune(protocol="coclr")
    with pytest.raises(ValueError, match="Did you mean slowfast"):
        finetune.finetune(protocol="slowfst")
    model = Classifier(SimpleBackbone(), 3).eval()
    config = finetune.FinetuneConfig(protocol="slowfast", frames=4, size=8)
    tested = finetune.test_all(model, {"val": Videos([40, 30])}, config, False)["val"]
    assert (tested.videos, tested.clips) == (2, 10)


class SimpleBackbone(Net):
    feature_dim = 5
