"""The scripts that prepare datasets, on tiny archives in the official layout: from the archives to a checked pack."""
import csv
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.io
import torch
from conftest import ROOT
from rar import rar4, rar5
from test_archives import tar_bytes, zip_bytes

from be_nb.data.actors import PERSON
from be_nb.data.decode import decode, write_video
from be_nb.data.lists import read_diving48, read_hmdb51, read_list, read_ucf101
from be_nb.data.pack.doctor import doctor
from be_nb.data.prepare import prepare, prepare_cli, PrepareConfig
from be_nb.data.sources import open_source

SCRIPTS = ROOT / "data_scripts"


def script(name):
    "A script as a module."
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    "The bytes of a small video: 6 frames of 24×32."
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    clip = torch.arange(24 * 32).view(1, 1, 24, 32).expand(6, 3, -1, -1) % 200
    write_video(path, (clip + torch.arange(6).view(6, 1, 1, 1)).to(torch.uint8))
    return path.read_bytes()


def fake_ucf101(folder, video):
    "Two classes, four videos each (`video`: bytes, or number → bytes), names with blanks and brackets; a RAR 4."
    names = [f"{c}/v_{c} [{g}]_g0{g}_c01.avi" for c in ("Archery", "Bowling") for g in range(4)]
    content = (lambda k: video) if isinstance(video, bytes) else video
    (folder / "UCF101.rar").write_bytes(rar4([(f"UCF-101/{name}", content(k)) for k, name in enumerate(names)]))
    lists = {"classInd.txt": "1 Archery\r\n2 Bowling\r\n"}
    for k in (1, 2, 3):
        lists[f"trainlist0{k}.txt"] = "".join(f"{n} {1 + (n[0] == 'B')}\r\n" for n in names if f"[{k}]" not in n)
        lists[f"testlist0{k}.txt"] = "".join(f"{n}\r\n" for n in names if f"[{k}]" in n)
    (folder / "UCF101TrainTestSplits-RecognitionTask.zip").write_bytes(
        zip_bytes({f"ucfTrainTestlist/{name}": text.encode() for name, text in lists.items()}))
    return names


def fake_hmdb51(folder, video):
    "Two classes, three videos each, one name that is not UTF-8; RARs in a RAR."
    names = {c: [b"%s_a[1].avi" % c.encode(), b"%s_b!.avi" % c.encode(), b"%s_\xe9.avi" % c.encode()]
             for c in ("brush_hair", "cart")}
    inner = [(f"{c}.rar", rar4([(c.encode() + b"/" + n, video) for n in some])) for c, some in names.items()]
    (folder / "hmdb51_org.rar").write_bytes(rar5(inner))
    (folder / "test_train_splits.rar").write_bytes(rar4(
        [(f"testTrainMulti_7030_splits/{c}_test_split{k}.txt", b"".join(b"%s %d \n" % (n, (i + k) % 3)
          for i, n in enumerate(some))) for c, some in names.items() for k in (1, 2, 3)]))
    return [f"{c}/{os.fsdecode(n)}" for c, some in names.items() for n in some]


def fake_diving48(folder, video):
    names = [f"-x{k}_00{k}" for k in range(4)]
    (folder / "Diving48_rgb.tar.gz").write_bytes(tar_bytes({f"rgb/{n}.mp4": video for n in names}))
    for side, some in (("train", names[:2]), ("test", names[2:])):
        entries = [{"vid_name": n, "label": k % 2, "start_frame": 0, "end_frame": 6} for k, n in enumerate(some)]
        (folder / f"Diving48_V2_{side}.json").write_text(json.dumps(entries))
    (folder / "Diving48_vocab.json").write_text(json.dumps([["Back", "PIKE"], ["Forward", "TUCK"]]))
    return [f"{n}.mp4" for n in names]


def fake_kinetics400(folder, video):
    "Three training videos in two parts, one of them replaced, one gone; one for validation."
    rows = {"train": [("b", "--a1", 0, 10), ("a", "b2", 5, 15), ("a", "gone", 1, 11)], "val": [("b", "c3", 0, 10)]}
    name = lambda row: f"{row[1]}_{row[2]:06d}_{row[3]:06d}.mp4"
    for part in ("train", "val", "replacement", "annotations"):
        (folder / part).mkdir()
    for side, some in rows.items():
        with open(folder / "annotations" / f"{side}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("label", "youtube_id", "time_start", "time_end", "split"),
                                        *(r + (side,) for r in some)])
    (folder / "train/part_0.tar.gz").write_bytes(tar_bytes({name(rows["train"][0]): video}))
    (folder / "train/part_1.tar.gz").write_bytes(tar_bytes({name(rows["train"][1]): b"broken"}))
    (folder / "val/part_0.tar.gz").write_bytes(tar_bytes({name(rows["val"][0]): video}))
    (folder / "replacement/replacement_for_corrupted_k400.tgz").write_bytes(
        tar_bytes({f"replacement_for_corrupted_k400/{name(rows['train'][1])}": video}))
    return [name(row) for some in rows.values() for row in some]


FAKES = {"ucf101": fake_ucf101, "hmdb51": fake_hmdb51, "diving48": fake_diving48, "kinetics400": fake_kinetics400}
each_set = pytest.mark.parametrize("name", FAKES)


def dataset(name):
    module = script(name)
    return getattr(module, name.upper())


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@each_set
def test_from_archives_to_a_pack_and_again(name, tmp_path, video, capsys):
    source, out = tmp_path / "in [1]", tmp_path / "out"
    source.mkdir()
    names = FAKES[name](source, video)
    config = PrepareConfig(archives=str(source), out=str(out), short_side=24, check_counts=False)
    before = files(tmp_path)
    rehearsal = PrepareConfig(archives=str(source), out=str(out), short_side=24, dry_run=True, check_counts=False)
    assert prepare(dataset(name), rehearsal) is None
    assert files(tmp_path) == before and not out.exists()
    told = capsys.readouterr().out
    assert all(words in told for words in ("to extract", f"{len(names)} listed", "minutes of packing", "GB free"))
    assert f"{len(names) - sum(n.startswith('gone') for n in names)} there" in told or name == "hmdb51"  # RARs in a RAR
    made = prepare(dataset(name), config)
    gone = [n for n in names if n.startswith("gone")]
    assert made.videos == len(names) - len(gone) and made.frames == 6 * made.videos and made.classes == 2
    assert list(made.problems) == gone and made.verified
    assert json.loads((out / "report.json").read_text())["videos"] == made.videos
    checked = doctor(out / "pack", progress=False)
    assert not checked.problems and set(checked.left_out) == set(gone)
    first = next(iter(made.lists))
    videos = open_source(out / "pack", first, frame_size=(24, 32), on_error="skip" if gone else "raise")
    assert len(videos) == made.lists[first] - len(gone) and videos.read(0, [0, 5]).shape == (2, 3, 24, 32)
    done = files(tmp_path)
    prepare(dataset(name), rehearsal)
    # now also of HMDB51
    assert files(tmp_path) == done and f"{len(names) - len(gone)} there" in capsys.readouterr().out
    prepare(dataset(name), config)
    again = files(tmp_path)
    assert done.keys() == again.keys()
    assert [p for p in done if done[p] != again[p] and p.suffix not in (".json", ".npy", ".txt")] == [], "done again"


def test_unpacked_folders_do_as_well(tmp_path, video):
    for name in ("ucf101", "hmdb51"):
        source = tmp_path / name
        source.mkdir()
        FAKES[name](source, video)
        first = prepare(dataset(name), PrepareConfig(archives=str(source), out=str(tmp_path / f"{name}-a"),
                                                     check_counts=False))
        unpacked = tmp_path / f"{name}-unpacked"
        unpacked.mkdir()
        lists, videos = tmp_path / f"{name}-a/extracted/lists", tmp_path / f"{name}-a/extracted/videos"
        for place in [*lists.iterdir(), *videos.iterdir()]:
            place.rename(unpacked / place.name) if not place.name.startswith(".") else None
        second = prepare(dataset(name), PrepareConfig(archives=str(unpacked), out=str(tmp_path / f"{name}-b"),
                                                      check_counts=False))
        assert (first.lists, first.frames, first.bytes) == (second.lists, second.frames, second.bytes)
        assert not (tmp_path / f"{name}-b/extracted").exists() or not files(tmp_path / f"{name}-b/extracted")


READERS = {"ucf101": read_ucf101, "hmdb51": read_hmdb51, "diving48": lambda folder, split: read_diving48(folder)}


@pytest.mark.parametrize("name", READERS)
def test_official_lists_have_the_official_counts_and_come_out_as_they_went_in(name, tmp_path, footage, capsys):
    lists = footage / "lists" / name
    prepare_cli(dataset(name), "", ["--archives", str(lists), "--out", str(tmp_path), "--lists-only"])
    for k in (1,) if name == "diving48" else (1, 2, 3):
        for side, official in READERS[name](lists, k)._asdict().items():
            written = read_list(tmp_path / f"{side}{'' if name == 'diving48' else k}.txt")
            assert written.paths == official.paths and written.classes == official.classes
            assert written.labels.tolist() == official.labels.tolist()


def test_hmdb51_has_6766_videos(footage):
    folder = footage / "lists/hmdb51/testTrainMulti_7030_splits"
    for k in (1, 2, 3):
        lines = [line for path in folder.glob(f"*_test_split{k}.txt") for line in path.read_text().splitlines()
                 if line.strip()]
        assert len(lines) == 6766


def test_lists_that_are_not_official_stop_before_the_videos_are_touched(tmp_path, video, capsys):
    fake_ucf101(tmp_path, video)
    with pytest.raises(SystemExit) as stop:
        prepare_cli(dataset("ucf101"), "", ["--archives", str(tmp_path), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "train1.txt: 6 videos, the official list has 9537" in told
    assert "--no-check-counts" in told
    assert not (tmp_path / "out/extracted/videos").exists()


def damage(archive):
    archive.write_bytes(archive.read_bytes()[:-200])


def other_videos(folder, video):
    (folder / "Diving48_rgb.tar.gz").write_bytes(tar_bytes({"rgb/holiday.mp4": video}))


@pytest.mark.parametrize("name, spoil, options, told", [
    ("ucf101", lambda folder, video: None, ["--check-counts"], "train1.txt: 6 videos, the official list has 9537"),
    ("ucf101", lambda folder, video: damage(folder / "UCF101.rar"), [], "UCF101.rar: damaged"),
    ("ucf101", lambda folder, video: damage(folder / "UCF101TrainTestSplits-RecognitionTask.zip"), [], "zip: damaged"),
    ("hmdb51", lambda folder, video: (folder / "hmdb51_org.rar").write_bytes(b"<html>not found</html>"), [],
     "hmdb51_org.rar: damaged"),
    ("diving48", lambda folder, video: (folder / "Diving48_V2_train.json").write_text("[{"), [],
     "Diving48_V2_train.json: not valid"),
    ("diving48", lambda folder, video: damage(folder / "Diving48_rgb.tar.gz"), [], "Diving48_rgb.tar.gz: damaged"),
    ("diving48", other_videos, [], "no folder in it holds|none of the 4 listed videos"),
    ("diving48", lambda folder, video: (folder / "out").write_text("a file"), [], "out: cannot be written"),
    ("diving48", lambda folder, video: None, ["--short-side", "3"], "short_side must be at least 8"),
    ("kinetics400", lambda folder, video: damage(folder / "val/part_0.tar.gz"), [], "part_0.tar.gz: damaged"),
])
def test_a_dry_run_refuses_what_the_real_run_would(name, spoil, options, told, tmp_path, video, capsys):
    FAKES[name](tmp_path, video)
    spoil(tmp_path, video)
    before = files(tmp_path)
    words = ["--archives", str(tmp_path), "--out", str(tmp_path / "out"), *(options or ["--no-check-counts"])]
    words += [] if options else ["--short-side", "24"]
    for more in (["--dry-run"], []):
        with pytest.raises(SystemExit) as stop:
            prepare_cli(dataset(name), "", words + more)
        *_, error = capsys.readouterr().err.splitlines()  # behind the progress bars
        assert stop.value.code == 2 and re.search(told, error) and error.startswith(dataset(name).name), error
        assert not more or files(tmp_path) == before


def test_a_dry_run_knows_a_full_disk_and_another_pack(tmp_path, video, capsys, monkeypatch):
    fake_diving48(tmp_path, video)
    config = PrepareConfig(archives=str(tmp_path), out=str(tmp_path / "out"), check_counts=False, short_side=24)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: full)
        for dry_run in (True, False):
            with pytest.raises(OSError, match="extracting needs about"):
                prepare(dataset("diving48"), dataclasses.replace(config, dry_run=dry_run))
    prepare(dataset("diving48"), config)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="quality: 90 → 50"):
            prepare(dataset("diving48"), dataclasses.replace(config, quality=50, dry_run=dry_run))


@each_set
def test_what_is_missing_is_named_with_its_source(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare_cli(dataset(name), "", ["--archives", str(tmp_path), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    for part in dataset(name).parts:
        assert part.optional or (part.what in told and part.source in told and (part.archives + part.ready)[0] in told)
    assert not (tmp_path / "out").exists()


def test_a_bad_video_is_reported_not_fatal(tmp_path, video):
    fake_diving48(tmp_path, video)
    (tmp_path / "Diving48_rgb.tar.gz").write_bytes(tar_bytes({f"rgb/-x{k}_00{k}.mp4": video if k else b"bad"
                                                              for k in range(4)}))
    made = prepare(dataset("diving48"), PrepareConfig(archives=str(tmp_path), out=str(tmp_path / "o"),
                                                      check_counts=False))
    assert made.videos == 3 and list(made.problems) == ["-x0_000.mp4"]


def test_scripts_run_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, SCRIPTS / "ucf101.py", "--help"], cwd=tmp_path, capture_output=True,
                          text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "--archives" in done.stdout and "--dry-run" in done.stdout


def test_a_killed_script_goes_on(tmp_path, video):
    fake_diving48(tmp_path, video)
    program = textwrap.dedent("""
        import os, signal, sys
        from be_nb.data.pack import write as pack
        encode = pack.encode_video
        def dying(path, settings):
            if "-x2" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(path, settings)
        pack.encode_video = dying
        sys.argv = [sys.argv[1], "--archives", sys.argv[2], "--out", sys.argv[3], "--no-check-counts"]
        import runpy
        runpy.run_path(sys.argv[0], run_name="__main__")""")
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, SCRIPTS / "diving48.py", tmp_path, out], capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (out / "pack/pack.json").exists() and not (out / "report.json").exists()
    extracted = files(out / "extracted")
    made = prepare(dataset("diving48"), PrepareConfig(archives=str(tmp_path), out=str(out), check_counts=False))
    assert made.videos == 4 and not made.problems and files(out / "extracted") == extracted


def fake_jhmdb(folder):
    "Two classes of a bright square that moves in front of stripes, with masks in two forms and one video without."
    rng, packed = np.random.default_rng(0), {}
    names = [f"{c}/{c}_{k} [x]" for c in ("catch", "wave") for k in range(4)]
    for n, name in enumerate(names):
        clip = np.broadcast_to(rng.integers(0, 90, (3, 1, 40), dtype=np.uint8), (8, 3, 30, 40)).copy()
        mask = np.zeros((8, 30, 40), bool)
        for t in range(8):
            mask[t, 8:20, 2 + 3 * t:12 + 3 * t] = True
        clip.transpose(0, 2, 3, 1)[mask] = 200 + n
        path = folder / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, torch.from_numpy(clip))
        if n == 0:
            place = folder / "puppet_mask" / name
            place.mkdir(parents=True)
            scipy.io.savemat(place / "puppet_mask.mat", {"part_mask": mask[:6].astype(np.uint8).transpose(1, 2, 0)})
        elif n != 3:
            packed[name] = np.packbits(mask, axis=-1)
    np.savez(folder / "actor_masks.npz", **packed)
    (folder / "classes.txt").write_text("catch\nwave\n")
    for side, keep in (("train", (0, 1, 3)), ("val", (2,))):
        (folder / f"{side}.txt").write_text("".join(f"{n}.mp4 {int(n[0] == 'w')}\n" for n in names
                                                    if int(n.split("_")[1][0]) in keep))
    return names


def test_actor_sets(tmp_path, capsys):
    actors = script("actor_hmdb51")
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    names = fake_jhmdb(source)
    config = actors.ActorConfig(archives=str(source), out=str(out), short_side=24, grow=1)
    assert actors.make(actors.ActorConfig(archives=str(source), out=str(out),
                                          dry_run=True)) is None and not out.exists()
    told = capsys.readouterr().out
    assert "train.txt 6, val.txt 2" in told and "8 listed, 8 there" in told and "masks: 7 of 8" in told

    def detector(pictures):
        assert all(picture.shape == (3, 30, 40) and float(picture.max()) <= 1 for picture in pictures)
        found = [(picture.mean(0) > 0.7).nonzero() for picture in pictures]
        return [{"boxes": torch.tensor([[f[:, 1].min(), f[:, 0].min(), f[:, 1].max() + 1, f[:, 0].max() + 1]]).float(),
                 "labels": torch.tensor([PERSON]), "scores": torch.tensor([0.9])} for f in found]
    report = actors.make(config, detector)
    assert report["problems"] == {} and report["classes"] == 2
    assert {kind: values[:2] for kind, values in report["packs"].items()} == {kind: [8, 62] for kind in actors.KINDS}
    scenes = json.loads((out / "scenes.json").read_text())
    assert all(path.split("/")[0] != scene.split("/")[0] for path, scene in scenes.items())
    assert sorted(scenes.values()) == sorted(f"{n}.mp4" for n in names)
    for name in names[:2]:
        empty, swapped = (decode(out / kind / f"{name}.mp4") for kind in ("background", "swapped"))
        crop, scene = decode(out / "actor" / f"{name}.mp4"), decode(out / "background" / scenes[f"{name}.mp4"])
        assert empty.max() < 110, "the actor is still there"
        assert swapped[2, 12, 12].min() > 180 and abs(swapped[2, 2].astype(int) - scene[2, 2]).mean() < 6
        assert crop.shape[1] < 20
    done = files(out)
    actors.make(config, detector)
    assert {p for p in done if p.suffix in (".mp4", ".tar") and done[p] != files(out)[p]} == set()
    with pytest.raises(ValueError, match="other settings"):
        actors.make(actors.ActorConfig(archives=str(source), out=str(out), short_side=24, grow=1, margin=0.5), detector)


def test_actor_videos_without_masks_are_counted(tmp_path):
    actors = script("actor_hmdb51")
    fake_jhmdb(tmp_path)  # one video has no mask, there is no detector, and so the other class has more than half
    with pytest.raises(ValueError, match="5 of 6 videos of a list could be taken apart.*more than half"):
        actors.make(actors.ActorConfig(archives=str(tmp_path), out=str(tmp_path / "out")))
