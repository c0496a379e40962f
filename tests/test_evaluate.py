"""The judges against loops, scikit-learn and random orders; feature extraction against averaging by hand."""
import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_bf16
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

from be_nb import evaluate
from be_nb.augment import CenterCrop
from be_nb.data import sources
from be_nb.evaluate import fitting_ks
from be_nb.judging import judges
from be_nb.judging.features import clip_batches, evaluating, extract_features, VideoClips
from be_nb.judging.judges import (chance_recall, check_set, knn, largest, linear_probe, nearest_neighbours,
                                  retrieval)
from be_nb.saving.weights import load
from be_nb.settings import EvaluateConfig, RetrieveConfig
from be_nb.train import pretrain


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Videos:
    "A source in memory, with videos of any lengths; frame k of video i is a picture that depends on i and k."

    def __init__(self, lengths, side=12):
        generator = torch.Generator().manual_seed(5)
        self.videos = [torch.randint(0, 256, (n, 3, side, side + 4), generator=generator).byte() for n in lengths]
        self.labels = np.arange(len(lengths)) % 3
        self.names, self.classes = [f"video {i}" for i in range(len(lengths))], ["a", "b", "c"]
        self.reads = []

    def __len__(self):
        return len(self.videos)

    def num_frames(self, i):
        return len(self.videos[i])

    def read(self, i, frames):
        self.reads.append(i)
        return self.videos[i][torch.as_tensor(frames)]


class Net(nn.Module):
    "A backbone with everything that could go wrong in evaluation: BatchNorm, dropout, a frozen layer."

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.dropout, self.batches = nn.Dropout(0.5), []

    def forward(self, x):
        self.batches.append(len(x))
        return self.dropout(self.norm(self.conv(x)).relu().mean((2, 3, 4)))


HOW = dict(frames=4, stride=2, size=8, amp="fp32", progress=False)


def by_hand(net, source, i, clips, frames, stride, short="loop"):
    "The definition: the mean of the features of clips spread evenly from the first to the last position."
    length = source.num_frames(i)
    last = length - (frames - 1) * stride - 1
    found = []
    for k in range(clips):
        start = 0 if last < 0 else last // 2 if clips == 1 else k * last // (clips - 1)
        wanted = [start + j * stride for j in range(frames)]
        wanted = [w % length if short == "loop" else min(w, length - 1) for w in wanted]
        clip = source.videos[i][wanted]
        found.append(net(CenterCrop(8)(clip[None]))[0].double())
    return sum(found) / clips


@pytest.mark.parametrize("clips", [1, 3, 10])
@pytest.mark.parametrize("short", ["loop", "clamp"])
def test_features_match_averaging_by_hand(clips, short):
    source, net = Videos([30, 7, 3, 1, 12]), Net().eval()
    with torch.no_grad():
        expected = torch.stack([by_hand(net, source, i, clips, 4, 2, short) for i in range(5)])
    found = extract_features(net, source, clips=clips, short=short, batch_size=7, **HOW)
    torch.testing.assert_close(found.features.double(), expected, atol=1e-5, rtol=1e-4)
    assert found.features.dtype == torch.float32 and found.features.device.type == "cpu"
    assert found.labels.tolist() == [0, 1, 2, 0, 1] and found.labels.dtype == torch.int64
    assert found.names == source.names and found.classes == source.classes and found.dropped == []


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_every_video_is_scored_once(batch_size):
    source, net = Videos([20] * 7), Net()
    found = extract_features(net, source, clips=3, batch_size=batch_size, **HOW)
    assert sorted(source.reads) == list(range(7)) and len(found) == 7
    full, rest = divmod(21, batch_size)
    assert net.batches == [batch_size] * full + [rest] * (rest > 0)          # a ragged last batch, nothing dropped
    reference = extract_features(net, Videos([20] * 7), clips=3, batch_size=21, **HOW)
    torch.testing.assert_close(found.features, reference.features, atol=1e-6, rtol=1e-5)


def test_short_videos_that_are_dropped_are_named_and_counted():
    source, net = Videos([20, 6, 7, 5, 30]), Net()                            # a clip spans 7 frames
    with pytest.warns(UserWarning, match="2 of 5 videos are not scored: shorter than 7 frames"):
        found = extract_features(net, source, clips=2, short="drop", **HOW)
    assert found.dropped == ["video 1", "video 3"] and found.names == ["video 0", "video 2", "video 4"]
    assert found.labels.tolist() == [0, 2, 1] and "2 dropped" in repr(found)
    everything = extract_features(net, source, clips=2, short="loop", **HOW)
    torch.testing.assert_close(found.features, everything.features[[0, 2, 4]], atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="all 2 are shorter than a clip of 7 frames"):
        extract_features(net, Videos([3, 6]), short="drop", **HOW)


def test_the_backbone_is_left_as_it_was():
    net = Net().train()
    net.norm.eval()                                                           # a frozen layer in a training network
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    pointers = [p.data_ptr() for p in net.parameters()]
    extract_features(net, Videos([9, 9]), clips=2, **HOW)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == pointers and all(p.requires_grad for p in net.parameters())


def test_the_backbone_comes_back_after_an_error_too():
    class Broken(Videos):
        def read(self, i, frames):
            raise RuntimeError("no such frame")

    net = Net().train()
    with pytest.raises(RuntimeError, match="no such frame"):
        extract_features(net, Broken([9]), **HOW)
    assert all(module.training for module in net.modules())
    with pytest.raises(ValueError, match=r"one vector per clip, \(b, d\); it gave \(2, 3, 4, 8, 8\)"):
        extract_features(nn.Identity(), Videos([9]), clips=2, **HOW)


def test_evaluating_lends_a_module_without_parameters():
    with evaluating(nn.Identity().train(), "cpu") as device:
        assert device == torch.device("cpu")


def test_features_can_train_a_classifier():
    "They come from inference mode, but are ordinary tensors."
    found = extract_features(Net(), Videos([9, 9]), clips=2, **HOW)
    layer = nn.Linear(6, 3)
    F.cross_entropy(layer(found.features), found.labels).backward()
    assert layer.weight.grad is not None and not found.features.is_inference()


@needs_bf16
def test_bfloat16_is_close_to_float32():
    net, source = Net(), Videos([9, 20])
    exact = extract_features(net, source, clips=2, **HOW).features
    quick = extract_features(net, source, clips=2, **(HOW | dict(amp="bf16"))).features
    assert quick.dtype == torch.float32 and not torch.equal(exact, quick)
    torch.testing.assert_close(exact, quick, atol=0.03, rtol=0.03)


def test_workers_change_nothing():
    net, source = Net(), Videos([9, 20, 3])
    alone, helped = (extract_features(net, source, clips=2, workers=w, **HOW) for w in (0, 1))
    assert torch.equal(alone.features, helped.features)


def test_clips_are_streamed():
    "A batch is given out before the next video is asked for: memory does not grow with the number of clips."
    asked = []

    def videos():
        for row in itertools.count():
            asked.append(row)
            yield row, torch.zeros(3, 1)

    stream = clip_batches(videos(), batch_size=4)
    for step in range(1, 50):
        rows, clips = next(stream)
        assert len(rows) == len(clips) == 4 and len(asked) == math.ceil(4 * step / 3)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 5), max_size=8), batch_size=st.integers(1, 9))
def test_batches_hold_every_clip_once(counts, batch_size):
    videos = [(row, torch.arange(n)[:, None] + 10 * row) for row, n in enumerate(counts)]
    batches = list(clip_batches(videos, batch_size))
    assert all(len(rows) == batch_size for rows, _ in batches[:-1])
    got = [(int(r), int(c)) for rows, clips in batches for r, c in zip(rows, clips)]
    assert got == [(row, 10 * row + k) for row, n in enumerate(counts) for k in range(n)]


def test_windows_are_read_once_a_video_and_in_order():
    source = Videos([15, 4])
    clips = VideoClips(source, clips=3, frames=4, stride=2)
    row, found = clips[0]
    assert row == 0 and found.shape == (3, 4, 3, 12, 16) and source.reads == [0]
    for k, start in enumerate((0, 4, 8)):
        assert torch.equal(found[k], source.videos[0][start : start + 7 : 2])


def test_real_videos(footage):
    from be_nb.data.lists import read_list, Split
    from be_nb.data.videos import VideoFolder
    listed = read_list(footage / "ucf101-6" / "val.txt")
    few = Split(listed.paths[:3], listed.labels[:3], listed.classes)
    source = VideoFolder(footage / "ucf101-6", few, frame_size=(32, 43))
    found = extract_features(Net(), source, clips=3, frames=4, size=24, batch_size=4, progress=False)
    assert found.features.shape == (3, 6) and found.features.isfinite().all() and found.names == listed.paths[:3]


# Judges


def blobs(n, d=8, classes=4, spread=1.0, seed=0):
    "Clusters, one a class, that overlap as much as `spread` says."
    generator = torch.Generator().manual_seed(100)
    centres = 2 * torch.randn(classes, d, generator=generator)
    generator.manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), k=st.integers(1, 12), values=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_largest_is_a_stable_sort(n, k, values, seed):
    k = min(k, n)
    scores = np.random.default_rng(seed).integers(0, values, (6, n))            # few values: many ties
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(largest(torch.from_numpy(scores).double(), k).numpy(), expected)


def test_neighbours_match_scikit_learn():
    gallery, queries = (blobs(n, seed=n)[0].double() for n in (200, 90))
    distance, rows = NearestNeighbors(n_neighbors=50, metric="cosine").fit(gallery.numpy()).kneighbors(queries.numpy())
    similarity, ours = nearest_neighbours(gallery, queries, 50)
    assert np.array_equal(rows, ours.numpy())
    np.testing.assert_allclose(1 - distance, similarity.numpy(), atol=1e-8)


def test_slices_change_nothing(monkeypatch):
    gallery, queries = (blobs(n, seed=n)[0].double() for n in (50, 41))
    whole, without = nearest_neighbours(gallery, queries, 7), nearest_neighbours(queries, queries, 7, exclude_self=True)
    for held in (1, 150, 41 * 50):                                              # 1, 3 and 41 queries at a time
        monkeypatch.setattr(judges, "_SLICE", held)
        assert torch.equal(nearest_neighbours(gallery, queries, 7)[1], whole[1])
        assert torch.equal(nearest_neighbours(queries, queries, 7, exclude_self=True)[1], without[1])
    assert not (without[1] == torch.arange(41)[:, None]).any()


def test_ties_go_to_the_lower_row():
    x, y = blobs(30)
    doubled = retrieval(torch.cat([x, x]), torch.cat([y, y]), x, y, ks=(1, 2))
    assert doubled.neighbours[:, 0].tolist() == list(range(30))
    assert doubled.neighbours[:, 1].tolist() == list(range(30, 60))
    collapsed = retrieval(torch.ones(60, 8), torch.cat([y, y]), torch.ones(30, 8), y, ks=(1, 5))
    assert collapsed.neighbours.tolist() == [[0, 1, 2, 3, 4]] * 30


def test_recall_matches_the_loop():
    (gx, gy), (qx, qy) = blobs(80, spread=3), blobs(50, spread=3, seed=1)
    result = retrieval(gx, gy, qx, qy, ks=(20, 1, 5))
    for k in (1, 5, 20):
        hits = 0
        for query, label in zip(qx, qy):
            order = sorted(range(80), key=lambda i: -float(F.cosine_similarity(query, gx[i], dim=0)))
            hits += any(gy[i] == label for i in order[:k])
        assert result.recall[k] == hits / 50
    assert list(result.recall) == [1, 5, 20] and (result.queries, result.gallery) == (50, 80)
    assert result.neighbours.shape == (50, 20) and "50 queries, gallery of 80: R@1" in repr(result)


def test_leaving_oneself_out_matches_a_loop_of_single_queries():
    x, y = blobs(40, spread=3)
    together = retrieval(x, y, x, y, ks=(1, 5), exclude_self=True)
    for k in (1, 5):
        alone = []
        for i in range(40):
            rest = [j for j in range(40) if j != i]
            alone.append(retrieval(x[rest], y[rest], x[i : i + 1], y[i : i + 1], ks=(k,)))
        assert math.isclose(together.recall[k], sum(r.recall[k] for r in alone) / 40)
        assert math.isclose(together.chance[k], sum(r.chance[k] for r in alone) / 40)


def test_queries_without_a_friend_count_as_misses():
    gx, gy = blobs(30)
    result = retrieval(gx, gy, gx[:10], torch.full((10,), 77), ks=(1, 30))
    assert result.recall == {1: 0.0, 30: 0.0} and result.chance == {1: 0.0, 30: 0.0} and result.queries == 10
    half = retrieval(gx, gy, torch.cat([gx[:10], gx[:10]]), torch.cat([gy[:10], torch.full((10,), 77)]), ks=(1,))
    assert half.recall[1] == 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_properties_of_recall(seed, scale):
    (gx, gy), (qx, qy) = blobs(40, spread=4, seed=seed), blobs(20, spread=4, seed=seed + 1)
    ks = (1, 2, 5, 40)
    result = retrieval(gx, gy, qx, qy, ks=ks)
    values, order = list(result.recall.values()), torch.randperm(40)
    assert values == sorted(values)                                                  # longer lists find more
    assert values[-1] == np.mean([int(y) in set(gy.tolist()) for y in qy])           # the whole gallery: is it there?
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    for same in ((scale * gx, gy, qx, qy), (gx[order], gy[order], qx, qy), (gx, gy + 7, qx, qy + 7),
                 (gx.double() @ turn, gy, qx.double() @ turn, qy)):                  # length, order, names, rotation
        assert retrieval(*same, ks=ks).recall == result.recall


def test_chance_is_what_random_orders_give():
    generator = np.random.default_rng(0)
    gallery, queries = generator.integers(0, 5, 40), np.arange(5)
    same = torch.tensor([(gallery == label).sum() for label in queries])
    for k in (1, 4, 10):
        hits = [np.isin(queries, generator.permutation(gallery)[:k]).mean() for _ in range(4000)]
        assert abs(np.mean(hits) - chance_recall(same, 40, k)) < 4 * np.std(hits) / math.sqrt(4000) + 1e-9
    assert chance_recall(torch.tensor([3]), 3, 1) == 1 and chance_recall(torch.tensor([0]), 3, 3) == 0


def test_arrays_and_tensors_are_the_same():
    (gx, gy), (qx, qy) = blobs(40), blobs(20, seed=1)
    arrays = [value.numpy() for value in (gx, gy, qx, qy)]
    assert retrieval(*arrays, ks=(1, 5)).recall == retrieval(gx, gy, qx, qy, ks=(1, 5)).recall
    assert torch.equal(knn(*arrays, k=3).predictions, knn(gx, gy, qx, qy, k=3).predictions)
    assert torch.equal(linear_probe(*arrays).predictions, linear_probe(gx, gy, qx, qy).predictions)


def test_knn_matches_the_loop():
    (tx, ty), (x, y) = blobs(60, spread=4), blobs(30, spread=4, seed=1)
    for k in (1, 7, 60):
        result = knn(tx, ty, x, y, k=k, temperature=0.5)
        for i in range(30):
            similarity = [float(F.cosine_similarity(x[i].double(), t.double(), dim=0)) for t in tx]
            voters = sorted(range(60), key=lambda j: -similarity[j])[:k]
            votes = [sum(math.exp(similarity[j] / 0.5) for j in voters if ty[j] == label) for label in range(4)]
            assert result.predictions[i] == votes.index(max(votes))
        assert math.isclose(result.accuracy, (result.predictions == y).float().mean().item(), rel_tol=1e-6)


def test_probe_is_scikit_learns_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    (tx, ty), (x, y) = blobs(150, spread=3), blobs(80, spread=3, seed=1)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=10_000))
    oracle.fit(tx.double().numpy(), ty.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")                                                    # it converges
        result = linear_probe(tx, ty, x, y, c=0.1)
        scaled = linear_probe(tx * 100 + 5, ty, x * 100 + 5, y, c=0.1)
    assert np.array_equal(result.predictions.numpy(), oracle.predict(x.double().numpy()))
    assert result.accuracy == scaled.accuracy > 0.5 and result.tested == 80  # scale and offset do not matter


def test_probe_survives_constant_channels_and_unseen_classes():
    (tx, ty), (x, y) = blobs(60), blobs(20, seed=1)
    tx[:, 0], x[:, 0] = 3, 3
    y[:5] = 9
    result = linear_probe(tx, ty, x, y)
    assert result.per_class[9] == 0 and result.accuracy <= 0.75
    by_class = sum(result.per_class[int(label)] for label in y) / 20
    assert math.isclose(by_class, result.accuracy) and f"{result.accuracy:.1%} of 20 videos" in repr(result)


JUDGES = {"probe": linear_probe, "knn": lambda *x: knn(*x, k=3), "retrieval": lambda *x: retrieval(*x, ks=(1,))}


@pytest.mark.parametrize("judge", JUDGES)
def test_bad_input_is_named(judge):
    (gx, gy), (qx, qy) = blobs(20), blobs(10, seed=1)
    judge = JUDGES[judge]
    bad = qx.clone()
    bad[3] = math.nan
    cases = [((gx, gy, bad, qy), "1 of 10 rows .* NaN or infinity, the first is row 3"),
             ((gx * math.inf, gy, qx, qy), "NaN or infinity"),
             ((gx, gy[:-1], qx, qy), "has 20 rows, but labels of shape"),
             ((gx, gy, qx[:, :5], qy), "features of length 8.* of 5"),
             ((gx, gy, qx, torch.full((10,), -1)), "−1 means not known"),
             ((gx, gy, qx, qy.float()), "needs a class"),
             ((gx[:0], gy[:0], qx, qy), "n ≥ 1"),
             ((gx, gy, qx[0], qy[0]), r"features \(n, d\)")]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            judge(*arguments)


def test_numbers_out_of_range_are_refused():
    (gx, gy), (qx, qy) = blobs(20), blobs(10, seed=1)
    for ks in ((21,), (0,), (1, 50), ()):
        with pytest.raises(ValueError, match="between 1 and the 20 videos"):
            retrieval(gx, gy, qx, qy, ks=ks)
    with pytest.raises(ValueError, match="between 1 and the 19 videos"):
        retrieval(gx, gy, gx, gy, ks=(20,), exclude_self=True)
    with pytest.raises(ValueError, match="gallery and queries differ"):
        retrieval(gx, gy, qx, qy, ks=(1,), exclude_self=True)
    for k in (0, 21):
        with pytest.raises(ValueError, match="k must lie between 1 and the 20"):
            knn(gx, gy, qx, qy, k=k)
    with pytest.raises(ValueError, match="holds class 2 only"):
        linear_probe(gx, torch.full((20,), 2), qx, qy)


def test_a_vector_of_length_zero_is_no_error():
    gx, gy = blobs(20)
    result = retrieval(gx, gy, torch.zeros(2, 8), gy[:2], ks=(1,))
    assert result.neighbours.tolist() == [[0], [0]]                                       # similar to nothing: a tie
    assert check_set("set", gx, gy)[0].dtype == torch.float64


@pytest.mark.parametrize("gallery, ks, fitting", [
    (10, None, (1, 5, 10)), (9, None, (1, 5)), (1, None, (1,)), (500, None, (1, 5, 10, 20, 50)),
    (10, (3, 10), (3, 10))])
def test_a_small_gallery_needs_no_flag(gallery, ks, fitting):
    config = RetrieveConfig("a", "b") if ks is None else RetrieveConfig("a", "b", ks=ks)
    assert fitting_ks(config, gallery) == fitting
    with pytest.raises(ValueError, match=f"{gallery + 1} neighbours; train.txt has {gallery} videos"):
        fitting_ks(RetrieveConfig("a", "b", ks=(1, gallery + 1)), gallery)


def test_reports_of_a_checkpoint(tmp_path, capsys):
    run = pretrain(out=str(tmp_path), name="untrained", steps=0, progress=False)
    common = dict(checkpoint=str(run.checkpoint), data="scenebias", train_split="swapped", test_split="test", clips=1)
    written = tmp_path / "deep" / "report.json"
    found = evaluate.retrieve(RetrieveConfig(**common, ks=(1, 5), out=str(written)))
    assert json.loads(written.read_text()) == json.loads(json.dumps(found))
    assert found["test"] == {"scored": 512, "too short": 0, "unreadable": 0} and found["frames"] == 8
    out = capsys.readouterr().out
    assert found["R@1"] <= found["R@5"] and "R@5" in out and "512 scored, 0 too short, 0 unreadable" in out
    usual = {key: value for key, value in common.items() if not key.endswith("_split")}
    assert {"probe", "test"} <= evaluate.evaluate(EvaluateConfig(**usual)).keys()  # the built-in set has usual lists
    judged = evaluate.evaluate(EvaluateConfig(**common))
    assert 0 <= judged["linear probe"] <= 1 and 0 <= judged["knn"] <= 1
    with pytest.raises(ValueError, match="512 videos"):
        evaluate.retrieve(RetrieveConfig(**common, ks=(1, 513)))
    with pytest.raises(ValueError, match="no split"):
        evaluate.evaluate(EvaluateConfig(**common | {"test_split": "val.txt"}))


def test_the_roof_names_the_judges():
    from be_nb.judging.features import extract_features as features
    from be_nb.judging.judges import knn as vote, linear_probe as probe, retrieval as search

    assert (features, vote, probe, search) == (extract_features, knn, linear_probe, retrieval)
    assert {"evaluate", "retrieve", "extract_features", "linear_probe", "knn", "retrieval"} <= set(evaluate.__all__)


@pytest.mark.parametrize("age", ["new", "format 1"])
def test_an_order_run_is_shown_its_own_clips(age, tmp_path, monkeypatch):
    "Training reads a window of 3·4 + 2·2 frames, the network sees clips of 4; so does evaluation, without being told."
    path = pretrain(out=str(tmp_path), method="order", distractor="none", frames=4, gap=2, steps=0, progress=False,
                    data_size=8, batch_size=2).checkpoint
    if age == "format 1":  # there `frames` was the window
        state = torch.load(path, weights_only=True)
        assert state["config"]["frames"] == 4
        torch.save(state | {"format": 1, "config": state["config"] | {"frames": 16}}, path)
    seen, real = set(), sources.SceneBias
    monkeypatch.setattr(sources, "SceneBias", lambda split, *a, **k: real(split, *a[:2], **k | {"size": 30}))

    def watched(path):
        backbone = load(path)
        backbone.register_forward_pre_hook(lambda module, args: seen.add(tuple(args[0].shape[1:])))
        return backbone
    monkeypatch.setattr(evaluate, "load", watched)
    how = dict(checkpoint=str(path), data="scenebias", train_split="swapped", test_split="test", clips=1)
    for run, config in ((evaluate.evaluate, EvaluateConfig(**how)),
                        (evaluate.retrieve, RetrieveConfig(**how, ks=(1,)))):
        seen.clear()
        assert run(config)["frames"] == 4 and seen == {(3, 4, 24, 24)}
    seen.clear()
    assert evaluate.evaluate(EvaluateConfig(**how, frames=6))["frames"] == 6 and seen == {(3, 6, 24, 24)}
