"""Weights given away and taken in: equal to the last bit, recognised by content, and refused when in doubt."""
import dataclasses
import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model, get_model_weights

import be_nb
from be_nb import cli
from be_nb.augment import CenterCrop
from be_nb.backbones import create_backbone
from be_nb.data.scenebias import SceneBias
from be_nb.evaluate import open_splits
from be_nb.judging.features import extract_features
from be_nb.machine.device import lay_out
from be_nb.saving import export as exporter
from be_nb.saving import weights
from be_nb.saving.checkpoint import CheckpointError, save_checkpoint
from be_nb.saving.export import export, git_commit
from be_nb.saving.weights import card_path, find_weights, identify_torchvision, load, weights_digest
from be_nb.settings import EvaluateConfig, FinetuneConfig, PretrainConfig
from be_nb.training.classifier import starting_backbone
from be_nb.training.finetune import finetune

CONFIG = dataclasses.asdict(PretrainConfig(steps=4, out="/media/disk/runs"))


def a_run(folder, step=4, name="tiny", config=CONFIG):
    torch.manual_seed(step)
    backbone = lay_out(create_backbone(name), torch.device("cpu"), "channels_last")  # as the trainer does on GPUs
    method = {f"backbone.{k}": v for k, v in backbone.state_dict().items()} | {"queue.keys": torch.zeros(9)}
    save_checkpoint(folder, {"step": step, "config": config | {"backbone": name}, "method": method}, keep=9)
    return backbone.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def refused(place, *words):
    with pytest.raises(CheckpointError) as caught:
        load(place)
    assert all(word in str(caught.value) for word in (str(place), *words)), caught.value


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    a_run(folder / "run")
    return export(folder / "run", folder / "out" / "tiny.safetensors")


def test_round_trip_is_bit_equal_from_every_place(tmp_path):
    state = a_run(tmp_path / "run")
    path = export(tmp_path / "run", tmp_path / "a new folder" / "w.safetensors")
    alone = tmp_path / "no name for it"
    shutil.copy(path, alone)
    for place in (path, str(path), path.parent, alone):
        found = be_nb.load(place)
        assert same(found.state_dict(), state) and not found.training
        assert found.pretrain_config == CONFIG | {"out": "runs"}  # tuples are tuples again; the folder stayed at home
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.safetensors", "w.safetensors.json"]
    assert same(load_file(path), state), "another reader of the format must read the same"
    for k in range(4):
        assert export(path, tmp_path / f"{k}.safetensors").read_bytes() == path.read_bytes()


def test_the_card_says_what_a_reader_wants_to_know(tmp_path):
    state = a_run(tmp_path / "run")
    report = {"checkpoint": str(tmp_path / "run"), "data": str(tmp_path / "private"), "clips": 10, "R@1": 0.25}
    (tmp_path / "retrieve.json").write_text(json.dumps(report))
    path = export(tmp_path / "run", tmp_path / "w.safetensors", [tmp_path / "retrieve.json"])
    card = json.loads(card_path(path).read_text())
    assert card["backbone"] == "tiny" and card["feature_dim"] == 64 and card["step"] == 4
    assert card["data"] == {"name": "scenebias", "split": "train.txt", "steps": 4, "batch_size": CONFIG["batch_size"]}
    assert card["scores"] == [report | {"checkpoint": "run", "data": "private"}]
    assert card["sha256"] == weights_digest(state) and card["be_nb"] == be_nb.__version__ and card["date"]
    assert str(tmp_path) not in card_path(path).read_text() and b"media/disk" not in path.read_bytes()


def test_the_digest_is_of_the_weights_and_of_nothing_else():
    state = {"a": torch.arange(6.).view(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    reference = weights_digest(state)
    assert weights_digest(dict(reversed(state.items()))) == reference
    assert weights_digest(state | {"a": state["a"].t().contiguous().t()}) == reference
    others = [state | {"a": state["a"].view(3, 2)}, state | {"a": -state["a"]}, state | {"b": torch.tensor(3.)},
              {"A" if k == "a" else k: v for k, v in state.items()}, {k: state[k] for k in "ab"}]
    assert len({reference, *map(weights_digest, others)}) == 6


def test_commit_is_of_our_checkout_or_nothing(tmp_path, monkeypatch):
    git = shutil.which("git")
    if git is None:
        assert git_commit() is None
        pytest.skip("no git here")
    run = lambda *words: subprocess.run([git, "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                                        check=True, capture_output=True, text=True).stdout.strip()
    package = tmp_path / "be_nb"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(be_nb, "__file__", str(package / "__init__.py"))
    assert git_commit() is None  # outside any repository
    run("init", "-q")
    (tmp_path / "theirs").write_text("")
    run("add", "theirs")
    run("commit", "-qm", "theirs")
    assert git_commit() is None, "installed inside somebody else's repository"
    run("add", ".")
    run("commit", "-qm", "ours")
    head = run("rev-parse", "HEAD")
    assert git_commit() == head
    (package / "__init__.py").write_text("changed")
    assert git_commit() == head + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_any_truncation_is_noticed(exported, tmp_path):
    content, bad = exported.read_bytes(), tmp_path / "short.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    for end in [0, 1, 7, 8, 9, 10, 50, header - 1, header, header + 1, *range(header, len(content), 50_021),
                len(content) - 1]:
        bad.write_bytes(content[:end])
        refused(bad)
    legacy = tmp_path / "legacy.pth"
    torch.save({f"w{i}": torch.ones(50) for i in range(8)}, legacy, _use_new_zipfile_serialization=False)
    content = legacy.read_bytes()
    for end in [*range(0, len(content), 97), len(content) - 1]:
        legacy.write_bytes(content[:end])
        refused(legacy)


def test_any_flipped_bit_is_noticed_or_harmless(exported, tmp_path):
    content, bad, rng = exported.read_bytes(), tmp_path / "flipped.safetensors", random.Random(0)
    truth, config = load(exported).state_dict(), load(exported).pretrain_config
    header, noticed = 8 + int.from_bytes(content[:8], "little"), 0
    places = [rng.randrange(header) for _ in range(60)] + [rng.randrange(header, len(content)) for _ in range(20)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        bad.write_bytes(flipped)
        try:
            found = load(bad)
        except CheckpointError:
            noticed += 1
            continue
        assert place < header and same(found.state_dict(), truth)  # a setting or a space in the header
    assert noticed >= 50 and config


class Bomb:
    "Unpickling it makes a folder."

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_with_code_are_refused_without_running_it(tmp_path, zipped):
    marker, path = tmp_path / "marker", tmp_path / "r3d_18.pth"
    torch.save({"stem.0.weight": Bomb(marker)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "mkdir", "was not loaded")
    with pytest.raises(CheckpointError, match="was not loaded"):
        export(path, tmp_path / "out.safetensors")
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the attack does not work even where it should: the test above shows nothing"


def rewrite(path, out, card=None, tensors=None):
    "An export with another card or other tensors in it."
    own = weights.read_safetensors(path)[1]
    save_file(tensors or load_file(path), out, {"be_nb": json.dumps(own | (card or {}))})
    return out


def test_cards_that_do_not_fit_are_refused(exported, tmp_path):
    out, tensors = tmp_path / "x.safetensors", load_file(exported)
    save_file(tensors, out)
    refused(out, "no card")
    for card in ({"card": 3}, {"card": 0}, {"backbone": None}, {"config": []}, {"config": {}}, {"sha256": 3},
                 {"step": "4"}, {"backbone": "c3d"}):
        refused(rewrite(exported, out, card), "card")
    save_file(tensors, out, {"be_nb": "[1]"})
    refused(out, "card")
    save_file(tensors, out, {"be_nb": "{"})
    refused(out)
    first = next(iter(tensors))
    refused(rewrite(exported, out, tensors=tensors | {first: tensors[first] + 1}), "SHA-256")
    other = {**CONFIG, "backbone": "r3d18"}
    refused(rewrite(exported, out, {"backbone": "r3d18", "config": other}), "r3d18", "missing")
    refused(rewrite(exported, out, {"backbone": "tinny", "config": {"backbone": "tinny"}}), "'tiny'")
    wide = create_backbone("tiny", width=8).state_dict()
    refused(rewrite(exported, out, {"sha256": weights_digest(wide)}, wide), "another shape")


def test_a_card_beside_must_be_that_of_the_file(exported, tmp_path):
    path = tmp_path / "w.safetensors"
    shutil.copy(exported, path)
    card = json.loads(card_path(exported).read_text())
    card_path(path).write_text(json.dumps(card | {"date": "yesterday", "scores": [{"knn": 1}]}))
    assert load(path).name == "tiny"  # what is only for readers may be written by readers
    for change in ({"sha256": "0" * 64}, {"step": 5}, {"backbone": "c3d"}, {"feature_dim": 3}):
        card_path(path).write_text(json.dumps(card | change))
        refused(path, *change)
    card_path(path).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load(path)


def test_a_card_of_format_1_is_read_with_the_meaning_that_its_settings_had(exported, tmp_path):
    "JSON has made lists of the tuples; `frames` of clip order was the window."
    then = json.loads(json.dumps(CONFIG | {"method": "order", "frames": 28, "gap": 8, "beta": 10.0}))
    found = load(rewrite(exported, tmp_path / "old.safetensors", {"card": 1, "config": then}))
    assert found.pretrain_config["frames"] == 4 and found.pretrain_config["crop"] == CONFIG["crop"]
    assert found.pretrain_config["distractor"] == "intra_frame" and found.pretrain_config["negative"] == "none"
    again = export(tmp_path / "old.safetensors", tmp_path / "again.safetensors")
    card = weights.read_safetensors(again)[1]
    assert card["card"] == weights.CARD and card["config"]["frames"] == 4 and load(again).pretrain_config["frames"] == 4


def test_a_killed_export_leaves_what_can_be_loaded_and_is_completed_by_the_next(tmp_path, monkeypatch):
    a_run(tmp_path / "old", step=4), a_run(tmp_path / "new", step=8)
    path = export(tmp_path / "old", tmp_path / "w.safetensors")
    write, died = exporter.write_atomically, []

    def dying(target, action):
        if target == card_path(path):
            died.append(target)
            raise KeyboardInterrupt
        write(target, action)

    monkeypatch.setattr(exporter, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "new", path)
    assert died and find_weights(path).step == 8
    monkeypatch.undo()
    export(tmp_path / "new", path)
    assert json.loads(card_path(path).read_text())["step"] == 8


def test_a_full_disk_is_told_and_leaves_the_old_export(tmp_path):
    "A real limit of the system: no file may grow beyond 100 KB, and the weights are larger."
    a_run(tmp_path / "old", step=4), a_run(tmp_path / "new", step=8)
    path = export(tmp_path / "old", tmp_path / "w.safetensors")
    before = {p.name: p.read_bytes() for p in (path, card_path(path))}
    code = ("import resource, sys; from be_nb import cli\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "cli.main(['export', '--checkpoint', sys.argv[1], '--out', sys.argv[2]])")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "new"), str(path)], capture_output=True,
                          text=True)
    assert done.returncode == 2 and f"The export {path} could not be written: " in done.stderr
    assert "Traceback" not in done.stderr and "Make room" in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_export_checks_everything_before_it_writes(tmp_path):
    a_run(tmp_path / "run")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"knn": ')
    out = tmp_path / "out"
    for name, scores, told in (("w.pt", [], "safetensors"), ("w.safetensors", ["missing.json"], "missing.json"),
                               ("w.safetensors", ["list.json"], "list"), ("w.safetensors", ["torn.json"], "torn.json")):
        with pytest.raises(ValueError, match=told):
            export(tmp_path / "run", out / name, [tmp_path / score for score in scores])
    with pytest.raises(CheckpointError, match="nowhere"):
        export(tmp_path / "nowhere", out / "w.safetensors")
    assert not out.exists()


def test_what_a_folder_stands_for(tmp_path):
    folder = tmp_path / "run"
    first, second = a_run(folder / "a", 4), a_run(folder / "b", 8)
    refused(folder, "no readable checkpoint")
    export(folder / "a", folder / "a.safetensors")
    assert same(load(folder).state_dict(), first)
    export(folder / "b", folder / "b.safetensors")
    refused(folder, "2 exports")
    last = a_run(folder, 12)
    assert same(load(folder).state_dict(), last)  # a run goes before exports in its folder
    (folder / "step-00000012.pt").write_bytes(b"noise")
    with pytest.warns(UserWarning, match="damaged"):
        refused(folder, "no readable checkpoint")  # and a damaged run is not replaced by something else in silence
    shutil.copy(folder / "b" / "step-00000008.pt", folder / "best.pt")
    assert same(load(folder).state_dict(), second)


# ---- torchvision

def test_torchvision_is_imported_for_its_own_weights_only(exported):
    "Neither our modules nor a checkpoint, a run or an export of ours bring it in; its networks do."
    code = ("import sys, be_nb, be_nb.backbones.torchvision, be_nb.saving.export, be_nb.saving.weights\n"
            "found = [be_nb.load(place).name for place in sys.argv[1:]]; print(found, 'torchvision' in sys.modules)\n"
            "be_nb.backbones.create_backbone('tv_s3d'); print('torchvision' in sys.modules)")
    run = exported.parents[1] / "run"
    places = map(str, (run, run / "step-00000004.pt", exported))
    done = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['tiny', 'tiny', 'tiny'] False", "True"]


def uneven(network):
    "Running statistics as after training, so that a norm in the wrong place shows; filters that let the clip through."
    for m in network.modules():
        if isinstance(m, nn.Conv3d):
            nn.init.kaiming_normal_(m.weight)  # torchvision's S3D starts with filters so small that its map is constant
        if isinstance(m, nn.BatchNorm3d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
    return network.eval()


def their_features(network, clips):
    "What torchvision's network hands to its classifier, for clips in its own normalisation."
    if hasattr(network, "features"):
        return network.features(clips).mean((2, 3, 4))  # its fixed pooling wants 224²; the mean is what it amounts to
    found = []
    handle = network.avgpool.register_forward_hook(lambda module, args, out: found.append(out.flatten(1)))
    network(clips)
    handle.remove()
    return found[0]


@pytest.fixture(scope="module")
def theirs():
    "torchvision's networks with weights as after training, made once."
    torch.manual_seed(0)
    return {name: uneven(get_model(name, weights=None, num_classes=7)) for name in weights.TORCHVISION}


@pytest.mark.parametrize("name", weights.TORCHVISION)
def test_torchvision_weights_give_torchvisions_features(theirs, name, tmp_path):
    "Both ways start from the same bytes; ours goes through CenterCrop with ImageNet's colours."
    network, path = theirs[name], tmp_path / "some name.bin"
    state = list(network.state_dict().items())
    random.Random(0).shuffle(state)
    torch.save(dict(state), path, _use_new_zipfile_serialization=name == "s3d")
    backbone = load(path)
    assert backbone.name == weights.TORCHVISION[name]
    clip = torch.randint(0, 256, (6, 3, 40, 48), dtype=torch.uint8)
    preset = get_model_weights(name).DEFAULT.transforms(crop_size=(32, 32), resize_size=(40, 48))
    with torch.no_grad():
        expected, seen = their_features(network, preset(clip)[None]), CenterCrop(32, crop=0.8)(clip[None])
        torch.testing.assert_close(backbone(seen), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-6)
        plain = backbone.stages[1:](seen).mean((2, 3, 4))
    assert (plain - expected).norm() > 0.005 * expected.norm(), "the input layer makes no difference: the test is blind"
    config, full = backbone.pretrain_config, get_model_weights(name).DEFAULT.transforms()
    assert config["frames"] == 16 and config["size"] == full.crop_size[0]
    assert config["frame_size"] == tuple(full.resize_size) and config["data"] == "not known"


def test_recognised_by_content_and_only_whole(theirs, tmp_path):
    state = theirs["mc3_18"].state_dict()
    assert identify_torchvision("x", state) == "mc3_18"
    bare = {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    assert identify_torchvision("x", bare) == "mc3_18"
    for bad in ({k: v for k, v in bare.items() if k != "layer4.1.conv2.1.bias"}, bare | {"extra": torch.ones(1)},
                bare | {"stem.0.weight": torch.ones(64, 1, 3, 7, 7)}):
        with pytest.raises(CheckpointError, match="mc3_18, 1 do not fit"):
            identify_torchvision("x", bad)
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "tensors without settings", "r2plus1d_18")
    torch.save({}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "no checkpoint")


def test_a_name_is_looked_up_in_the_cache_and_never_downloaded(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("a download was started"))
    official = tmp_path / "checkpoints" / "r3d_18-b3b3357e.pth"
    with pytest.raises(CheckpointError) as caught:
        load("torchvision/r3d_18")
    for word in (str(official), "R3D_18_Weights.KINETICS400_V1", "downloads nothing"):
        assert word in str(caught.value)
    assert "://" not in str(caught.value)
    with pytest.raises(ValueError, match="torchvision/r3d_18"):
        load("torchvision/r3d18")
    official.parent.mkdir()
    torch.save(theirs["r3d_18"].state_dict(), official, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="promises a SHA-256"):
        load("torchvision/r3d_18")
    digits = hashlib.sha256(official.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(weights, "official_name", lambda name: f"{name}-{digits}.pth")
    official.rename(official.with_name(f"r3d_18-{digits}.pth"))
    backbone = load("torchvision/r3d_18")
    assert backbone.name == "tv_r3d18" and backbone.pretrain_config["data"] == "kinetics400"


def test_evaluation_and_fine_tuning_start_from_them(theirs, tmp_path):
    path = tmp_path / "mc3.pth"
    torch.save(theirs["mc3_18"].state_dict(), path)
    backbone, settings, sources = open_splits(EvaluateConfig(str(path), "scenebias", "probe", "test", clips=1))
    assert (settings["frames"], settings["stride"], settings["size"]) == (16, 2, 112) and len(sources) == 2
    features = extract_features(backbone, SceneBias("test", size=3), 1, 4, size=16, device="cpu", progress=False)
    assert features.features.shape == (3, 512)
    with pytest.raises(ValueError, match="holds a tv_mc3_18, not a tiny"):
        starting_backbone(FinetuneConfig(checkpoint=str(path), backbone="tiny"))
    small = dict(checkpoint=str(path), out=str(tmp_path), name="tuned", frames=2, size=16, data_size=12, test_size=6,
                 batch_size=6, steps=2, clips=1, validation=0.0, test_splits=("test",), device="cpu", amp="fp32",
                 lr=1e-3)
    result = finetune(FinetuneConfig(**small), progress=False)
    tuned = result.model.backbone.state_dict()
    start = load(path).state_dict()
    assert torch.equal(tuned["stages.input.shift"].cpu(), start["stages.input.shift"])  # a constant of the weights
    assert not torch.equal(tuned["stages.stem.0.weight"], start["stages.stem.0.weight"])
    for place in (result.checkpoint, tmp_path / "tuned", export(tmp_path / "tuned", tmp_path / "t.safetensors")):
        found = load(place)
        assert same(found.state_dict(), {k: v.contiguous() for k, v in tuned.items()})
        assert found.pretrain_config["backbone"] == "tv_mc3_18"
    again = finetune(FinetuneConfig(**small, resume=True), progress=False)
    assert same(again.model.state_dict(), result.model.state_dict())


# ---- the command line

def test_the_command_passes_its_flags_on(monkeypatch, capsys):
    seen = []
    fake = types.SimpleNamespace(export=lambda *words: seen.append(words) or words[1])
    monkeypatch.setitem(sys.modules, "be_nb.saving.export", fake)
    monkeypatch.setattr(cli, "look_first", lambda *what: None)  # the paths are made up
    cli.main("export --checkpoint runs/a --out b.safetensors --scores c.json d.json".split())
    assert seen == [("runs/a", "b.safetensors", ("c.json", "d.json"))]
    assert capsys.readouterr().out.split() == ["weights:", "b.safetensors", "card:",
                                               str(weights.card_path("b.safetensors"))]


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "w.safetensors")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("be-nb: There is no checkpoint") and err.count("\n") == 1


@pytest.mark.parametrize("name", weights.TRAINED)
def test_networks_that_come_along(name):
    "Three seeds of each, small, different, with a card that says how they were made; a bare name means the first."
    found = [find_weights(f"{name}-{seed}") for seed in range(3)]
    assert len({weights_digest(one.tensors) for one in found}) == 3
    for seed, one in enumerate(found):
        card = json.loads(card_path(one.path).read_text(encoding="utf8"))
        assert one.path.stat().st_size <= 1e6 and one.step == one.config["steps"] >= 400 and card["commit"]
        assert one.config["seed"] == seed and one.config["data"] == "scenebias" and "/" not in one.config["out"]
        train, save = card["made_by"]
        assert train.startswith("be-nb pretrain") and ("--seed" in train) == (seed > 0) and one.path.name in save
        same_run = cli.parse_recipe("pretrain", type(PretrainConfig()), shlex.split(train)[2:], "")
        assert all(getattr(same_run, key) == one.config[key] for key in ("method", "distractor", "negative", "steps"))
    assert find_weights(name).path == found[0].path
    clip = CenterCrop(24)(SceneBias("test", size=6).read(0, range(8))[None])
    with torch.no_grad():
        assert load(name)(clip).shape == (1, 64)


def test_a_network_that_should_have_come_along_and_did_not(tmp_path, monkeypatch):
    "The error names the file; a folder of that name is meant by ./name, and other names are paths as before."
    with pytest.raises(CheckpointError, match=r"scenebias-be-7.safetensors is neither in .*or write \./scenebias-be-7"):
        load("scenebias-be-7")
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "scenebias-be")
    assert find_weights("./scenebias-be").path.parent.name == "scenebias-be"
    with pytest.raises(CheckpointError, match="no checkpoint at scenebias-bee"):
        load("scenebias-bee")


def test_made_by_is_what_differs_from_the_defaults(tmp_path):
    config = dataclasses.asdict(PretrainConfig(seed=2, flip=0.5, crop=(0.5, 1.0), name="x y", compile=True))
    train, save = exporter.made_by(config, tmp_path / "a.safetensors")
    assert train == "be-nb pretrain --name 'x y' --seed 2 --crop 0.5 1.0 --flip 0.5 --compile"
    assert save == "be-nb export --checkpoint 'runs/x y' --out a.safetensors"
    assert exporter.made_by({"weights": "torchvision/r3d_18"}, tmp_path / "a.safetensors") == []
