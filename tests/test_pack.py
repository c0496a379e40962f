"""Packs: every frame in its place, the same bytes every time, kills, damage, streams, the odd files of real sets."""
import functools
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tarfile
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import webdataset
from conftest import little_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_videos import TURNK, coded_pictures, frame, number, write
from torch.utils.data import DataLoader
from torchvision.io import decode_jpeg, ImageReadMode

import be_nb.data.decode as decode_module
import be_nb.data.pack.write as module
from be_nb import cli
from be_nb.data.clips import ClipDataset, EpochSampler
from be_nb.data.decode import decode, VideoError
from be_nb.data.lists import Split
from be_nb.data.pack.doctor import doctor
from be_nb.data.decode import CODECS, frame_to_bytes, jpegs_to_frames
from be_nb.data.pack.format import FRAME, VIDEO, PackError, is_pack, scan_shard, seal_of, sha256
from be_nb.data.pack.read import cover, PackedVideos
from be_nb.data.pack.stream import stream
from be_nb.data.pack.write import pack
from be_nb.data.scenebias import SceneBias, SPLITS
from be_nb.data.sources import build_source, knn_sources, labelled_source, open_list, open_source, usual_lists
from be_nb.data.videos import VideoFolder
from be_nb.evaluate import evaluate, retrieve
from be_nb.judging.bias.report import bias
from be_nb.settings import BiasConfig, EvaluateConfig, FinetuneConfig, PretrainConfig, RetrieveConfig
from be_nb.train import finetune, pretrain

quiet_pack = functools.partial(pack, progress=False)
NAMES = {"a [b] (c).avi": 20, "#1 hash!.mp4": 12, "sub/plain.mkv": 31, "50% é.avi": 7, "one.mp4": 1, "v2.avi": 9,
         "v3.avi": 10, "v4.avi": 11}


def folder_of_videos(root, names=NAMES, height=48, width=64):
    for name, length in names.items():
        write(root / "videos" / name, [frame(k, height, width) for k in range(length)], bf=2)
    lines = [f"{name} {k % 2}" for k, name in enumerate(names)]
    (root / "train.txt").write_text("\n".join(lines[:5]) + "\n", encoding="utf8")
    (root / "val.txt").write_text("\n".join(lines[5:]) + "\n", encoding="utf8")
    (root / "classes.txt").write_text("even\nodd class\n")
    return root


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return folder_of_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def packs(root, tmp_path_factory):
    "codec → a pack of all videos; tests only read it."
    out = tmp_path_factory.mktemp("packs")
    for codec in CODECS:
        report = quiet_pack(root, ("train.txt", "val.txt"), out / codec, 24, codec=codec, shard_videos=2)
        assert (report.videos, report.frames, report.problems) == (8, 101, {}) and report.classes == ["even",
                                                                                                      "odd class"]
    return {codec: out / codec for codec in CODECS}


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


each_codec = pytest.mark.parametrize("codec", CODECS)


# --- what is in a pack ------------------------------------------------------------------------------------------------

@each_codec
@pytest.mark.parametrize("cache", [False, True])
def test_every_frame_at_its_place(root, packs, codec, cache):
    for split in ("train.txt", "val.txt"):
        folder = VideoFolder(root, split, frame_size=(24, 32))
        for size in (None, (24, 32)):
            source = PackedVideos(packs[codec], split, size, cache)
            assert source.names == folder.names and source.classes == folder.classes and not source.skipped
            assert source.labels.dtype == np.int64 and source.labels.tolist() == folder.labels.tolist()
            for twin in (source, pickle.loads(pickle.dumps(source))):
                for i in range(len(source)):
                    last = source.num_frames(i) - 1
                    asked = np.array([last, 0, last // 2, last // 2])
                    clip = twin.read(i, asked)
                    assert clip.dtype == torch.uint8 and clip.shape == (4, 3, 24, 32) and clip.is_contiguous()
                    assert [number(image) for image in clip] == asked.tolist() and last + 1 == folder.num_frames(i)
                    if codec == "raw":
                        assert torch.equal(clip, folder.read(i, asked))
                    for bad in ([last + 1], [-1], []):
                        with pytest.raises(IndexError):
                            twin.read(i, bad)


@each_codec
def test_tarfile_numpy_and_pillow_see_the_same(packs, codec):
    "Three readers that know nothing of the index."
    source = {split: PackedVideos(packs[codec], split) for split in ("train.txt", "val.txt")}
    seen = []
    for path in sorted(packs[codec].glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert members[-1].name == "__shard__" and all(m.mtime == 0 and not m.uname for m in members)
            read = lambda m: tar.extractfile(m).read()
            for about in (json.loads(read(m)) for m in members if m.name.endswith(".json")):
                (split, (position, label)), = about["lists"].items()
                key = next(m.name[:8] for m in members if m.name.endswith(".json") and json.loads(read(m)) == about)
                stored = [read(m) for m in members if m.name.startswith(key) and not m.name.endswith(".json")]
                if codec == "raw":
                    video = np.load(io.BytesIO(stored[0]))
                else:
                    video = np.stack([np.asarray(Image.open(io.BytesIO(b))).transpose(2, 0, 1) for b in stored])
                    assert about["crc32"] == [zlib.crc32(b) for b in stored]
                mine = source[split]
                assert mine.names[position] == about["name"] and mine.labels[position] == label
                clip = mine.read(position, range(mine.num_frames(position))).numpy()
                assert clip.shape == video.shape and np.abs(clip.astype(int) - video).max() <= (2 if codec == "jpeg"
                                                                                                else 0)
                seen.append(about["name"])
    assert sorted(seen) == sorted(NAMES)


@each_codec
def test_webdataset_alone_gives_one_sample_a_video(packs, codec):
    urls = [str(p) for p in sorted(packs[codec].glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == 8 and len({s["__key__"] for s in samples}) == 8
    for sample in samples:
        frames = NAMES[sample["json"]["name"]]
        assert sample["json"]["frames"] == frames
        assert sample["npy"].shape == (frames, 3, 24, 32) if codec == "raw" else f"{frames - 1:05d}.jpg" in sample


@pytest.mark.parametrize("settings, shape", [
    (dict(), (128, 171)), (dict(short_side=24), (24, 32)), (dict(short_side=None), (48, 64)),
    (dict(short_side=0), (48, 64)),
    (dict(frame_size=(30, 30)), (30, 30))])
def test_sizes(root, tmp_path, settings, shape):
    split = Split(["v2.avi", "v3.avi"], [0, 1])
    quiet_pack(root, {"few.txt": split}, tmp_path / "p", codec="raw", **settings)
    assert PackedVideos(tmp_path / "p", "few.txt").read(0, [3]).shape[2:] == shape
    if "short_side" not in settings:
        direct = torch.from_numpy(decode(root / "videos" / "v2.avi", shape, [3, 8])).permute(0, 3, 1, 2)
        assert torch.equal(PackedVideos(tmp_path / "p", "few.txt").read(0, [3, 8]), direct)
    other = PackedVideos(tmp_path / "p", "few.txt", (16, 20)).read(0, [3, 8])
    assert other.shape == (2, 3, 16, 20) and [number(image) for image in other] == [3, 8]


def test_portrait_videos_and_fit(tmp_path):
    write(tmp_path / "tall.mp4", [frame(k, 64, 48) for k in range(3)])
    quiet_pack(tmp_path, {"a.txt": Split(["tall.mp4"], [-1])}, tmp_path / "p", 24)
    source = PackedVideos(tmp_path / "p", "a.txt")
    assert source.read(0, [1]).shape == (1, 3, 32, 24) and source.labels.tolist() == [-1] and source.classes == []
    with pytest.warns(UserWarning, match="larger than 1 of 1 videos.*short_side=48"):
        PackedVideos(tmp_path / "p", "a.txt", (48, 64))
    clip = torch.arange(24 * 40).reshape(1, 1, 24, 40).expand(2, 3, -1, -1).to(torch.uint8)
    assert torch.equal(cover(clip, (24, 32)), clip[..., 4:36]) and cover(clip, (12, 12)).shape == (2, 3, 12, 12)


def test_names_that_are_not_utf8(tmp_path):
    try:
        write(tmp_path / "x.avi", [frame(k)
                                   for k in range(5)]).rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.avi"))
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    (tmp_path / "train.txt").write_bytes(b"caf\xe9.avi 0\ngone\xff.avi 1\n")
    report = quiet_pack(tmp_path, ["train.txt"], tmp_path / "p", 16)
    assert list(report.problems) == ["gone\udcff.avi"] and b"\\udcff" in str(report).encode()
    # what was left out is in none of its lists
    assert (tmp_path / "p" / "train.txt").read_bytes() == b"caf\xe9.avi 0\n"
    for on_error in ("skip", "raise"):
        with pytest.warns(UserWarning, match="1 of 2 videos left out"):
            source = PackedVideos(tmp_path / "p", "train.txt", on_error=on_error)
        assert list(source.skipped) == ["gone\udcff.avi"]
    assert os.fsencode(source.names[0]) == b"caf\xe9.avi" and source.num_frames(0) == 5
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.avi 3\n")  # a list from elsewhere
    assert PackedVideos(tmp_path / "p", tmp_path / "list.txt").labels.tolist() == [3]
    checked = doctor(tmp_path / "p", progress=False)
    assert checked.problems == {} and list(checked.left_out) == ["gone\udcff.avi"]


# --- the same bytes, whatever happens ---------------------------------------------------------------------------------

def test_bytes_do_not_depend_on_workers(root, packs, tmp_path):
    quiet_pack(root, ("train.txt", "val.txt"), tmp_path / "p", 24, shard_videos=2, workers=2)
    assert content(tmp_path / "p") == content(packs["jpeg"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the interpreter")
def test_killed_and_run_again(root, packs, tmp_path, monkeypatch):
    out, real = tmp_path / "p", module.encode_video
    reader, writer = os.pipe()

    def stuck_in_the_second_shard(path, settings):
        if (out / "shard-000000.tar").exists() and list(out.glob(".*.tmp")):
            os.write(writer, b"!")
            time.sleep(300)  # killed long before
        return real(path, settings)
    child = os.fork()
    if child == 0:
        try:
            module.encode_video = stuck_in_the_second_shard
            quiet_pack(root, ("train.txt", "val.txt"), out, 24, shard_videos=2)
        finally:  # never back into the tests
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"!", "the child ended, or failed, before its second shard"  # its end closes the pipe
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(out.glob(".*.tmp")) and not (out / "pack.json").exists()
    for scan in out.glob("shard-*.tar"):
        scan_shard(scan)  # a shard that has its name is whole
    for broken in (lambda: PackedVideos(out, "train.txt"), lambda: open_source(out, "train.txt"), lambda: doctor(out)):
        with pytest.raises(PackError, match="not finished"):
            broken()
    finished, calls = content(out).keys() & content(packs["jpeg"]).keys(), []
    monkeypatch.setattr(module, "encode_video", lambda path, settings: calls.append(path) or real(path, settings))
    quiet_pack(root, ("train.txt", "val.txt"), out, 24, shard_videos=2)
    assert content(out) == content(packs["jpeg"]) and len(calls) <= 8 - 2 * len(finished)
    calls.clear()
    report = quiet_pack(root, ("train.txt", "val.txt"), out, 24, shard_videos=2)
    assert not calls and report.videos == 8 and content(out) == content(packs["jpeg"])


def in_part(root, out, part, **more):
    return quiet_pack(root, ("train.txt", "val.txt"), out, 24, shard_videos=2, part=part, **more)


def test_parts_make_the_same_pack(root, packs, tmp_path, monkeypatch):
    "In any order, also at the same time; joining decodes nothing and reads no video, whoever remembers its checksum."
    out, whole = tmp_path / "p", content(packs["jpeg"])
    shards = len([name for name in whole if name.endswith(".tar")])
    reports = [in_part(root, out, "3/3")]
    assert set(content(out)) == {f"shard-{number:06d}.tar" for number in range(2, shards, 3)}
    with pytest.raises(PackError, match="not finished"):
        doctor(out)
    with ThreadPoolExecutor(2) as pool:
        reports += pool.map(lambda part: in_part(root, out, part), ("2/3", "1/3"))
    assert sum(r.videos for r in reports) == 8 and sum(r.shards for r in reports) == shards == reports[0].total
    calls = []
    monkeypatch.setattr(module, "encode_video", lambda *args: calls.append(args))
    monkeypatch.setattr(module, "file_sha256", lambda *args: calls.append(args))
    assert in_part(root, out, "").videos == 8 and content(out) == whole and not calls
    assert not doctor(out, progress=False).problems


def test_a_part_can_be_made_again(root, packs, tmp_path):
    "It mends its own shards, leaves those of others alone, and what lies half written beside them."
    out, whole = tmp_path / "p", content(packs["jpeg"])
    shutil.copytree(packs["jpeg"], out)
    (out / "shard-000001.tar").write_bytes(b"damaged")
    foreign = out / ".shard-000001.tar.99999.tmp"
    foreign.write_bytes(b"another machine is writing here")
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    in_part(root, out, "1/2")
    assert foreign.exists() and (out / "shard-000001.tar").read_bytes() == b"damaged" and (out / "pack.json").exists()
    with pytest.warns(UserWarning, match="shard-000001"):
        report = in_part(root, out, "2/2")
    assert not foreign.exists() and not (out / "pack.json").exists() and "part 2/2: " in str(report)
    in_part(root, out, "")
    assert content(out) == whole and (out / "shard-000000.tar").stat().st_mtime_ns == before


def test_what_is_wrong_with_a_part_is_said(root, tmp_path):
    for part in ("0/2", "3/2", "1/0", "2", "1/2/3", "-1/2", "one/two", "1/2 "):
        with pytest.raises(ValueError, match="is not I/N with I from 1 to N"):
            in_part(root, tmp_path / "p", part)
    assert not (tmp_path / "p").exists()
    report = in_part(root, tmp_path / "p", "99/99")
    assert (report.shards, report.videos, report.problems) == (0, 0, {})
    shutil.copytree(root, tmp_path / "v")
    (tmp_path / "v/videos/v3.avi").unlink()
    found = [in_part(tmp_path / "v", tmp_path / "q", part) for part in ("1/2", "2/2")]
    problems = found[0].problems | found[1].problems
    assert problems == in_part(tmp_path / "v", tmp_path / "q", "").problems and list(problems) == ["v3.avi"]
    assert any("v3.avi: no such video" in str(report) for report in found)
    with pytest.raises(ValueError, match="packed with other settings"):
        in_part(tmp_path / "v", tmp_path / "q", "1/2", quality=50)


def test_parts_from_the_command_line(root, tmp_path, capsys):
    for part in ("--part 2/2", "--part=1/2", ""):
        cli.main(["pack", "--root", str(root), "--out", str(tmp_path / "p"), *part.split()])
    out = capsys.readouterr().out
    assert out.index("part 2/2: ") < out.index("part 1/2: ") and (tmp_path / "p/pack.json").is_file()
    with pytest.raises(SystemExit):
        cli.main(["pack", "--root", str(root), "--out", str(tmp_path / "p"), "--part", "3/2"])
    assert "--part 3/2 is not I/N" in capsys.readouterr().err


def test_stopped_by_an_error(root, tmp_path):
    shutil.copytree(root, tmp_path / "v")
    good = (tmp_path / "v/videos/v3.avi").read_bytes()
    (tmp_path / "v/videos/v3.avi").write_bytes(good[:-300])
    make = functools.partial(quiet_pack, tmp_path / "v", ("train.txt", "val.txt"), tmp_path / "p", 24, shard_videos=1)
    with pytest.raises(VideoError, match="v3.avi: truncated"):
        make(on_error="raise")
    report = make()
    assert list(report.problems) == ["v3.avi"] and str(tmp_path) not in report.problems["v3.avi"] and report.videos == 7
    checked = doctor(tmp_path / "p", progress=False)  # a sound pack, which says what it does not hold
    assert not checked.problems and list(checked.left_out) == ["v3.avi"]
    assert "v3.avi: truncated" in checked.left_out["v3.avi"]
    assert "'v3.avi': left out when packed: truncated" in str(checked)  # the name once
    cli.main(["doctor", str(tmp_path / "p")])  # no exit code
    with pytest.raises(VideoError, match="val.txt, line 2: v3.avi is not in the pack: .*truncated"):
        PackedVideos(tmp_path / "p", tmp_path / "v/val.txt")
    for open_it in (PackedVideos, lambda *args, **kwargs: open_source(*args, frame_size=(24, 32), **kwargs)):
        for on_error in ("skip", "raise"):
            with pytest.warns(UserWarning,
                              match="1 of 3 videos left out of val.txt when it was packed: v3.avi: truncated"):
                source = open_it(tmp_path / "p", "val.txt", on_error=on_error)
            assert source.names == ["v2.avi", "v4.avi"] and list(source.skipped) == ["v3.avi"]
            assert source.labels.tolist() == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ClipDataset(PackedVideos(tmp_path / "p", "val.txt"), 4, seed=1)
    for item in (items := list(stream(tmp_path / "p", "val.txt", 4, seed=1, buffer=0))):
        assert torch.equal(item["clips"], dataset[0, item["index"]]["clips"])
    assert sorted(item["index"] for item in items) == [0, 1]
    before = (tmp_path / "p/shard-000000.tar").stat().st_mtime_ns
    (tmp_path / "v/videos/v3.avi").write_bytes(good)  # repaired: only its shard is made anew
    assert not make(on_error="raise").problems and not doctor(tmp_path / "p", progress=False).problems
    assert (tmp_path / "p/shard-000000.tar").stat().st_mtime_ns == before


def test_other_settings_or_lists_do_not_mix(root, tmp_path):
    few = {"few.txt": Split(["v2.avi", "v3.avi"], [0, 1])}
    quiet_pack(root, few, tmp_path / "p", 24)
    before = content(tmp_path / "p")
    with pytest.raises(ValueError, match="quality: 90 → 50"):
        quiet_pack(root, few, tmp_path / "p", 24, quality=50)
    with pytest.raises(ValueError, match="other lists"):
        quiet_pack(root, {"few.txt": Split(["v2.avi", "v3.avi"], [0, 0])}, tmp_path / "p", 24)
    (tmp_path / "p/shard-000007.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match="shard-000007.tar of another pack"):
        quiet_pack(root, few, tmp_path / "p", 24)
    (tmp_path / "p/shard-000007.tar").unlink()
    assert content(tmp_path / "p") == before


@pytest.mark.parametrize("changes, told", [
    (dict(codec="png"), "Unknown codec"), (dict(quality=0), "quality"), (dict(shard_videos=0), "shard_videos"),
    (dict(workers=0), "workers"), (dict(short_side=3), "short_side"), (dict(frame_size=(0, 9)), "frame_size"),
    (dict(on_error="ignore"), "Unknown on_error"), (dict(splits=[]), "at least one list"),
    (dict(splits="train.txt"), "several"),
    (dict(splits={"../x.txt": "train.txt"}), "named like train.txt"),
    (dict(splits={"classes.txt": "train.txt"}), "named like"),
    (dict(splits={"a.txt": Split(["a\nb"], [0])}), "cannot stand in a list"),
    (dict(splits={"a.txt": Split([], [])}), "no videos"),
    (dict(splits={"a.txt": Split(["x"], [7])}), "2 classes, but a label is 7"),
    (dict(splits={"a.txt": Split(["x", "x"], [0, 0])}), "stands twice"),
    (dict(splits={"a.txt": Split(["x"], [0], ["other"])}), "other classes")])
def test_bad_input_is_refused_before_anything_is_written(root, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        quiet_pack(root, changes.pop("splits", ["train.txt"]), tmp_path / "p", **changes)
    assert not (tmp_path / "p").exists() or not list((tmp_path / "p").iterdir())
    for folder, split in ((tmp_path / "nowhere", "train.txt"), (root, "gone.txt")):
        with pytest.raises(FileNotFoundError):
            quiet_pack(folder, [split], tmp_path / "p")


# --- damage -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def broken(packs, tmp_path_factory):
    "A copy of each pack to be damaged, and its frames."
    out, found = tmp_path_factory.mktemp("broken"), {}
    for codec, folder in packs.items():
        shutil.copytree(folder, out / codec)
        found[codec] = out / codec, read_all(folder)
    return found


def read_all(folder):
    sources = [PackedVideos(folder, split) for split in ("train.txt", "val.txt")]
    return {s.names[i]: s.read(i, range(s.num_frames(i))) for s in sources for i in range(len(s))}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(codec=st.sampled_from(CODECS), which=st.integers(0, 99), place=st.floats(0, 1, exclude_max=True),
       bit=st.integers(0, 7), cut=st.booleans())
def test_no_damage_goes_unseen(broken, codec, which, place, bit, cut):
    folder, frames = broken[codec]
    files = sorted(p for p in folder.iterdir())
    path = files[which % len(files)]
    good = path.read_bytes()
    at = int(place * len(good))
    path.write_bytes(good[:at] if cut else good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1:])
    try:
        try:
            report = doctor(folder, progress=False)
            assert report.problems
            if path.suffix == ".tar":
                assert all(name == path.name or path.name in why for name, why in report.problems.items())
        except PackError as error:
            assert path.name == "pack.json" and "pack.json" in str(error)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read_all(folder)
        except (PackError, VideoError, ValueError) as error:
            assert str(error)
        else:  # what is wrong lies outside frames and lists: the doctor's business. classes.txt is in pack.json, too
            assert path.suffix == ".tar" or path.name == "classes.txt"
            assert found.keys() == frames.keys() and all(torch.equal(found[name], frames[name]) for name in frames)
    finally:
        path.write_bytes(good)


def test_doctor_names_the_bad_video_and_frame(packs, tmp_path, capsys):
    shutil.copytree(packs["jpeg"], tmp_path / "p")
    assert not doctor(tmp_path / "p", progress=False).problems
    assert cli.main(["doctor", str(tmp_path / "p")]) is None and "problems: 0" in capsys.readouterr().out
    source = PackedVideos(tmp_path / "p", "train.txt")
    source.read(2, [17])
    row = source.reader.rows[source.paths[2]]
    offset = int(source.reader._frames[int(row["first"]) + 17]["offset"]) + 100
    shard = tmp_path / "p" / source.reader.shards[row["shard"]][0]
    data = bytearray(shard.read_bytes())
    data[offset] ^= 8
    shard.write_bytes(data)
    problems = doctor(tmp_path / "p", progress=False).problems
    assert list(problems) == ["sub/plain.mkv"]
    assert "1 of 31 frames are damaged, the first is 17" in problems["sub/plain.mkv"]
    fresh = PackedVideos(tmp_path / "p", "train.txt")
    with pytest.raises(VideoError, match="sub/plain.mkv: frame 17 is damaged.*doctor"):
        fresh.read(2, [16, 17])
    assert number(fresh.read(2, [16])[0]) == 16
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", str(tmp_path / "p")])
    assert stop.value.code == 1 and "sub/plain.mkv" in capsys.readouterr().out
    shard.unlink()
    assert shard.name in doctor(tmp_path / "p", progress=False).problems
    with pytest.raises(PackError, match="cannot be read"):
        PackedVideos(tmp_path / "p", "train.txt").read(2, [16])
    with pytest.raises(FileNotFoundError, match="is .* a pack"):
        doctor(tmp_path)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(text=st.binary(max_size=60) | st.lists(st.sampled_from([*NAMES, "../x", "a b 1", "\0"]), max_size=4).map(
    lambda names: "".join(f"{n} 0\n" for n in names).encode()))
def test_lists_of_any_bytes(packs, tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(text)
    try:
        source = PackedVideos(packs["jpeg"], path)
    except (ValueError, VideoError) as error:
        assert "fuzz.txt" in str(error) or "classes" in str(error)
    else:
        assert set(source.names) <= set(NAMES)
        assert all(number(source.read(i, [0])[0]) == 0 for i in range(len(source)))


# --- lies: what a file says about itself is a claim -------------------------------------------------------------------

def reseal(folder, content, **files):
    "Write a pack.json, and files with it, as somebody would who wants them to be believed."
    for name, data in files.items():
        name = name.replace("_", ".")
        (folder / name).write_bytes(data)
        content["files"][name], content["sizes"][name] = sha256(data), len(data)
    (folder / "pack.json").write_text(json.dumps({**content, "seal": seal_of(content)}))


def same_or_a_named_error(folder, frames):
    "Whatever reads a pack gives what was packed, or one of the two errors that name a file."
    for read in (read_all, lambda folder: doctor(folder, progress=False),
                 lambda folder: [list(stream(folder, split, buffer=0)) for split in ("train.txt", "val.txt")]):
        try:
            with warnings.catch_warnings(), little_memory():
                warnings.simplefilter("ignore")
                found = read(folder)
        except (PackError, VideoError) as error:
            assert "\n" not in str(error) and (str(folder) in str(error)
                                               or any(name in str(error) for name in NAMES)), error
        else:
            if isinstance(found, dict):
                assert found.keys() <= frames.keys() and all(torch.equal(found[name], frames[name]) for name in found)


def places(tree, path=()):
    "All places in a tree of JSON."
    if path:
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


LIES = [None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, "", "../../etc/passwd", "/etc/passwd", "names.txt", [], {},
        [[]], {"x": 1},
        "jpeg", "raw", "shard-000000.tar"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(codec=st.sampled_from(CODECS), which=st.integers(0, 10**6), lie=st.sampled_from(LIES))
def test_a_pack_that_lies_is_one_named_error(broken, codec, which, lie):
    folder, frames = broken[codec]
    good = (folder / "pack.json").read_text()
    content = json.loads(good)
    *way, last = (found := list(places(content)))[which % len(found)]
    functools.reduce(lambda tree, key: tree[key], way, content)[last] = lie
    try:
        reseal(folder, content)
        same_or_a_named_error(folder, frames)
    finally:
        (folder / "pack.json").write_text(good)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(codec=st.sampled_from(CODECS), table=st.sampled_from([("videos.npy", c) for c in VIDEO.names] + [
    ("frames.npy", c) for c in FRAME.names]), row=st.integers(0, 10**6),
    lie=st.sampled_from([-2**31, -1, 0, 1, 5, 4096, 10**6, 2**31 - 1]), twice=st.booleans())
def test_an_index_with_rows_outside_is_one_named_error(broken, codec, table, row, lie, twice):
    folder, frames = broken[codec]
    good = {name: (folder / name).read_bytes() for name in ("pack.json", table[0])}
    rows = np.load(folder / table[0])
    rows[table[1]][row % len(rows)] = abs(lie) if table[1] == "crc32" else lie
    if twice:  # larger than the table
        rows = np.concatenate([rows, rows])
    file = io.BytesIO()
    np.save(file, rows)
    try:
        reseal(folder, json.loads(good["pack.json"]), **{table[0].replace(".", "_"): file.getvalue()})
        same_or_a_named_error(folder, frames)
    finally:
        for name, data in good.items():
            (folder / name).write_bytes(data)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(codec=st.sampled_from(CODECS), which=st.sampled_from(["pack.json", "videos.npy", "frames.npy", "names.txt",
                                                             "val.txt", "record",
       "record"]), place=st.floats(0, 1, exclude_max=True), bytes_=st.binary(min_size=1, max_size=40),
       insert=st.booleans())
def test_bytes_of_anybody_are_one_named_error(broken, codec, which, place, bytes_, insert):
    folder, frames = broken[codec]
    path, span = (folder / "shard-000001.tar", 2000) if which == "record" else (folder / which, None)
    good = path.read_bytes()
    at = int(place * len(good[:span]))
    path.write_bytes(good[:at] + bytes_ + good[at + (0 if insert else len(bytes_)):])
    try:
        same_or_a_named_error(folder, frames)
        if which == "record":
            try:
                scan_shard(path)
            except PackError as error:
                assert "shard-000001.tar" in str(error)
    finally:
        path.write_bytes(good)


def test_a_pack_opens_only_files_of_its_folder(packs, tmp_path):
    for name in ("shard-000000.tar", "frames.npy", "train.txt", "pack.json"):
        shutil.copytree(packs["jpeg"], tmp_path / name)
        (tmp_path / f"{name}.elsewhere").write_bytes((tmp_path / name / name).read_bytes())
        (tmp_path / name / name).unlink()
        (tmp_path / name / name).symlink_to(tmp_path / f"{name}.elsewhere")
        with pytest.raises(PackError, match="only files of its own folder"):
            read_all(tmp_path / name)
    (tmp_path / "link").symlink_to(packs["jpeg"])  # the folder itself may be anywhere
    assert read_all(tmp_path / "link").keys() == set(NAMES)
    # a hole of a terabyte takes no room on the disk
    for name in ("pack.json", "videos.npy", "val.txt", "names.txt", "frames.npy"):
        shutil.copytree(packs["jpeg"], tmp_path / f"{name}.hole")
        os.truncate(tmp_path / f"{name}.hole" / name, 2**40)
        with little_memory(), pytest.raises(PackError, match=name):
            read_all(tmp_path / f"{name}.hole")


@pytest.fixture(params=["simplejpeg", "torchvision"])
def jpeg_decoder(request, monkeypatch):
    "Each of the two that `jpegs_to_frames` can use."
    pytest.importorskip("simplejpeg")
    if request.param == "torchvision":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    decode_module._jpeg_decoder.cache_clear()
    yield request.param
    decode_module._jpeg_decoder.cache_clear()


@pytest.mark.parametrize("height, width", [(1, 1), (7, 9), (16, 16), (33, 50), (128, 171)])
def test_pixels_of_jpeg_are_those_of_torchvision(jpeg_decoder, height, width):
    images = np.random.default_rng(0).integers(0, 256, (5, height, width, 3), dtype=np.uint8)
    images[1:3] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]  # a smooth one, where upsampling shows
    files = [frame_to_bytes(image, "jpeg", quality) for image, quality in zip(images, (100, 90, 50, 90, 5))]
    files.append(jpeg_of(images[0], subsampling="4:4:4"))
    files.append(jpeg_of(images[1], progressive=True))
    files.append(jpeg_of(images[1][..., 0]))  # a grey picture
    found = jpegs_to_frames(files, height, width)
    expected = [decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB) for file in files]
    assert torch.equal(found, torch.stack(expected)) and found.is_contiguous()
    with Image.open(io.BytesIO(files[0])) as picture:  # a third decoder, whose arithmetic may differ by a little
        assert np.abs(np.asarray(picture.convert("RGB"), int) - found[0].permute(1, 2, 0).numpy()).max() <= 2
    assert jpegs_to_frames([], height, width).shape == (0, 3, height, width)


def jpeg_of(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **options)
    return file.getvalue()


def test_what_is_no_picture_is_said(jpeg_decoder):
    good = frame_to_bytes(np.zeros((16, 16, 3), np.uint8), "jpeg")
    for bad in (b"", b"\xff\xd8", good[:60], b"x" + good):
        with pytest.raises(ValueError, match="is no JPEG picture"):
            jpegs_to_frames([good, bad], 16, 16)
    with pytest.raises(ValueError, match="has 16×16 pixels, the index says 16×17"):
        jpegs_to_frames([good], 16, 17)


def test_pictures_that_claim_to_be_large_are_not_decoded():
    bomb = frame_to_bytes(np.zeros((16, 16, 3), np.uint8), "jpeg")
    at = bomb.index(b"\xff\xc0")
    bomb = bomb[:at + 5] + b"\xff\xff\xff\xff" + bomb[at + 9:]
    for height, width in ((16, 16), (40_000, 40_000)):
        with little_memory(), pytest.raises(ValueError, match="65535×65535 pixels, the index says"):
            jpegs_to_frames([bomb] * 8, height, width)


@pytest.mark.parametrize("label", ["2000000000", "1" * 30, "1" * 5000, "100000"], ids=len)
def test_a_label_is_bounded_by_the_classes(root, packs, tmp_path, label):
    (tmp_path / "train.txt").write_text(f"v2.avi 0\nv3.avi {label}\n")
    for opened in (lambda: VideoFolder(root, tmp_path / "train.txt"),
                   lambda: PackedVideos(packs["jpeg"], tmp_path / "train.txt"),
                   lambda: open_source(root, tmp_path / "train.txt"),
                   lambda: quiet_pack(root, {"a.txt": tmp_path / "train.txt"},
                                                                                      tmp_path / "p")):
        with little_memory(), pytest.raises(ValueError, match="train.txt, line 2: "):
            opened()
    assert Split(["a"] * 20_000, range(20_000)).labels[-1] == 19_999  # each video a class of its own


# --- what is reused is recognised by what it was made from ---------------------------------------------------------

def test_what_changed_is_packed_again(root, tmp_path, monkeypatch):
    shutil.copytree(root / "videos", tmp_path / "v")
    split, calls, real = {"few.txt": Split(["v2.avi", "v3.avi", "v4.avi"], [0, 1, 0])}, [], module.encode_video
    make = functools.partial(quiet_pack, tmp_path / "v", split, tmp_path / "p", 24, shard_videos=1)
    make()
    monkeypatch.setattr(module, "encode_video", lambda path, settings: calls.append(os.path.basename(path))
                        or real(path, settings))
    victim = tmp_path / "v/v3.avi"
    before, times = victim.read_bytes(), os.stat(victim)
    other = tmp_path / "other.avi"
    write(other, [frame(20 + k, 48, 64) for k in range(9)], bf=2)
    data = other.read_bytes()
    size = max(len(before), len(data))
    assert (make(), calls) == (make(), [])
    for content in (data.ljust(size, b"\0"), before.ljust(size, b"\0"), data.ljust(size, b"\0")):  # of one size
        victim.write_bytes(content)
        os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))  # and of one time
        calls.clear()
        make()
        assert calls == ["v3.avi"]
        assert number(PackedVideos(tmp_path / "p", "few.txt").read(1, [0])[0]) == (20 if content[:len(data)] == data
                                                                                   else 0)
    calls.clear()
    shutil.move(tmp_path / "v", tmp_path / "moved")  # the same videos at another place, with other times
    for path in (tmp_path / "moved").iterdir():
        path.touch()
    quiet_pack(tmp_path / "moved", split, tmp_path / "p", 24, shard_videos=1)
    assert not calls


@each_codec
def test_packing_again_repairs_what_the_doctor_names(root, packs, tmp_path, codec, monkeypatch):
    shutil.copytree(packs[codec], tmp_path / "p")
    again = functools.partial(quiet_pack, root, ("train.txt", "val.txt"), tmp_path / "p", 24, codec=codec,
                              shard_videos=2)
    good, calls, real = content(packs[codec]), [], module.encode_video
    monkeypatch.setattr(module, "encode_video", lambda path, settings: calls.append(path) or real(path, settings))
    shard = tmp_path / "p/shard-000001.tar"
    size = shard.stat().st_size
    for at in (1, 600, 2000, size // 2, size - 3000, size - 1, "cut", "gone"):
        data = bytearray(good[shard.name])
        if at == "gone":
            shard.unlink()
        else:
            if at != "cut":
                data[at] ^= 4
            shard.write_bytes(data[:-5000] if at == "cut" else data)
        assert doctor(tmp_path / "p", progress=False).problems, at
        calls.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again()
        assert 1 <= len(calls) <= 2 and content(tmp_path / "p") == good, at
    for name in ("videos.npy", "frames.npy", "train.txt", "pack.json", "names.txt"):
        (tmp_path / "p" / name).write_bytes(good[name][:-9])
        calls.clear()
        again()
        assert not calls and content(tmp_path / "p") == good, name


def test_packs_of_the_first_format_are_read(packs, tmp_path):
    shutil.copytree(packs["jpeg"], tmp_path / "p")
    about = json.loads((tmp_path / "p/pack.json").read_text())
    listed = (tmp_path / "p/val.txt").read_bytes() + b"gone.avi 1\n"  # its lists named everything
    old = {key: value for key, value in about.items() if key not in ("sizes", "left_out")} | {"format": 1, "sizes": {}}
    reseal(tmp_path / "p", old | {"problems": {"gone.avi": "gone.avi: no such file"}}, val_txt=listed)
    with pytest.warns(UserWarning, match="1 of 4 videos left out of val.txt"):
        source = PackedVideos(tmp_path / "p", "val.txt")
    assert list(source.skipped) == ["gone.avi"] and len(source) == 3
    assert not doctor(tmp_path / "p", progress=False).problems


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "pack"])
def test_one_broken_video_is_said_once_and_refused_by_nobody(root, tmp_path, packed):
    "Pretraining with on_error='skip': whatever judges that run on the same data, or goes on from it, does as it did."
    shutil.copytree(root, tmp_path / "v")
    (tmp_path / "v/videos/v2.avi").write_bytes(b"no video")
    data, told = str(tmp_path / "v"), "1 of 3 videos left out"
    if packed:
        quiet_pack(data, ("train.txt", "val.txt"), tmp_path / "p", 24)
        data = str(tmp_path / "p")
    shape = dict(frame_size=(24, 32), frames=2, size=16, batch_size=2, device="cpu")
    with pytest.warns(UserWarning, match=told):
        run = pretrain(data=data, split="val.txt", on_error="raise" if packed else "skip", steps=1,
                       out=str(tmp_path / "runs"),
                       name="run", progress=False, queue_size=4, **shape)
    lists = dict(train_split="train.txt", test_split="val.txt")
    with pytest.warns(UserWarning, match=told):
        report = evaluate(EvaluateConfig(run.checkpoint, data, clips=1, device="cpu", **lists))
    assert report["val.txt"]["scored"] == 2 and report["val.txt"]["unreadable"] == 1
    with pytest.warns(UserWarning, match=told):
        assert retrieve(RetrieveConfig(run.checkpoint, data, clips=1, device="cpu", **lists))["val.txt"]["scored"] == 2
    with pytest.warns(UserWarning, match=told):
        bias(BiasConfig((str(run.checkpoint),), str(tmp_path / "report"), data, clips=1, resamples=10, untrained=False,
                        pictures=False, device="cpu", **lists), progress=False)
    with pytest.warns(UserWarning, match=told):
        finetune(checkpoint=str(run.checkpoint), data=data, split="train.txt", test_splits=("val.txt",),
                 validation=0.0, steps=1,
                 out=str(tmp_path / "runs"), name="tuned", progress=False, clips=1, **shape)
    if not packed:
        for other in (dict(on_error="raise"), {}):  # told otherwise, and other data
            elsewhere = data if other else str(shutil.copytree(data, tmp_path / "w"))
            with pytest.raises(VideoError, match="v2.avi"):
                evaluate(EvaluateConfig(run.checkpoint, elsewhere, clips=1, device="cpu", **lists, **other))


# --- many readers -----------------------------------------------------------------------------------------------------

@each_codec
def test_loader_workers_read_the_same(packs, codec):
    dataset = ClipDataset(PackedVideos(packs[codec], "train.txt"), 6, 2, 2, 3)
    dataset[0, 0]  # files are open before the workers start
    batches = [list(DataLoader(dataset, batch_sampler=EpochSampler(5, 3, steps=4), num_workers=n)) for n in (0, 2)]
    for a, b in zip(*batches, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_reading_writes_nothing_and_holds_few_files(packs, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("wrote to a pack that may be read-only")
    before = {p: p.stat().st_mtime_ns for p in packs["jpeg"].iterdir()}
    for name in ("write_atomically", "remove_leftovers"):
        monkeypatch.setattr(module, name, refuse)
    source = PackedVideos(packs["jpeg"], "train.txt")
    source.reader._files.limit = 1
    for i in (0, 1, 2, 3, 4, 0, 3):
        assert number(source.read(i, [0])[0]) == 0 and len(source.reader._files.open) == 1
    doctor(packs["jpeg"], progress=False), list(stream(packs["jpeg"], "val.txt"))
    assert {p: p.stat().st_mtime_ns for p in packs["jpeg"].iterdir()} == before


def test_one_place_chooses_the_source(root, packs, tmp_path):
    assert is_pack(packs["raw"]) and not is_pack(root)
    for data, kind in ((str(root), VideoFolder), (str(packs["raw"]), PackedVideos)):
        config = PretrainConfig(data=data, frame_size=(24, 32), knn_every=1)
        found = [open_source(data, "val.txt", frame_size=(24, 32)), build_source(config), *knn_sources(config),
                 labelled_source(EvaluateConfig("runs/a", data), "val.txt", {"frame_size": (24, 32)}),
                 open_list(FinetuneConfig(data=data, frame_size=(24, 32)), "val.txt", 0)]
        assert all(type(source) is kind for source in found)
        assert torch.equal(found[0].read(1, [2]), open_source(root, "val.txt", frame_size=(24, 32)).read(1, [2]))


def test_the_built_in_set_is_opened_with_what_concerns_it():
    for kind, wanted in ((SceneBias("probe", 0.5, 3, 8), dict(rho=0.5, data_seed=3, size=8, frame_size=(1, 1))),
                         (SceneBias("probe", 0.9, 0, 5), dict(most=5)),
                         (SceneBias("probe", 0.9, 0, 3), dict(most=5, size=3, labelled=True)),
                         (SceneBias("probe", damping=1.5), dict(damping=1.5))):
        assert repr(open_source("scenebias", "probe", **wanted)) == repr(kind)
    assert set(usual_lists("scenebias")) <= set(SPLITS) and usual_lists("anything") == ("train.txt", "val.txt")
    with pytest.raises(ValueError, match="no split 'prob'"):
        open_source("scenebias", "prob", most=5)


def test_a_part_of_a_list_is_spread_over_it_and_labels_are_looked_at_first(root, packs):
    for data in (root, packs["raw"]):
        whole, part = (open_source(data, "train.txt", frame_size=(24, 32), most=most) for most in (None, 3))
        assert len(whole) == 5 and part.names == [whole.names[i] for i in (0, 2, 4)]
        assert part.labels.tolist() == whole.labels[[0, 2, 4]].tolist() and part.classes == whole.classes
    with pytest.raises(ValueError, match="1 videos have no label"):
        open_source(root, Split(["nowhere.mp4"], [-1]), labelled=True)


def test_command_line_packs(root, tmp_path, capsys):
    cli.main(["pack", "--root", str(root), "--out", str(tmp_path / "p"), "--splits", "val.txt", "--frame-size", "24",
              "32"])
    assert "3 videos, 30 frames, 2 classes" in capsys.readouterr().out
    assert PackedVideos(tmp_path / "p", "val.txt").read(0, [0]).shape == (1, 3, 24, 32)


# --- streams ----------------------------------------------------------------------------------------------------------

@each_codec
@pytest.mark.parametrize("short", ["loop", "clamp", "drop"])
def test_a_stream_gives_the_items_of_the_dataset(packs, codec, short):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ClipDataset(PackedVideos(packs[codec], "train.txt", (20, 20)), 5, 3, 2, 4, short, seed=3)
    items = list(stream(packs[codec], "train.txt", 5, 3, 2, 4, short, seed=3, epoch=7, frame_size=(20, 20), buffer=2))
    assert sorted(item["index"] for item in items) == dataset.indices
    for item in items:
        same = dataset[7, dataset.indices.index(item["index"])]
        assert item.keys() == same.keys() and item["label"] == same["label"]
        assert torch.equal(item["clips"], same["clips"]) and torch.equal(item["starts"], same["starts"])


def test_ranks_and_workers_share_the_videos(root, tmp_path, monkeypatch):
    quiet_pack(root, {"all.txt": Split(list(NAMES), [0] * 8)}, tmp_path / "p", 16, shard_videos=1)
    addresses = [tmp_path / "p", str(tmp_path / "p" / "shard-{000000..000007}.tar")]
    for address in addresses:
        seen = {}
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank)), monkeypatch.setenv("WORLD_SIZE", "2")
            loader = DataLoader(stream(address, "all.txt", 4), batch_size=2, num_workers=2)
            seen[rank] = [i for batch in loader for i in batch["index"].tolist()]
        assert not set(seen[0]) & set(seen[1]) and sorted(seen[0] + seen[1]) == list(range(8))
        assert len(seen[0]) == len(seen[1]) == 4
    orders = [[item["index"] for item in stream(tmp_path / "p", "all.txt", epoch=epoch, buffer=4)]
              for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    monkeypatch.setenv("WORLD_SIZE", "9")
    with pytest.raises(ValueError, match="8 shards cannot feed 9 ranks × 1 workers"):
        list(stream(tmp_path / "p", "all.txt"))


def test_a_stream_opens_only_the_shards_of_its_list(packs, tmp_path):
    shutil.copytree(packs["jpeg"], tmp_path / "p")
    about = json.loads((tmp_path / "p/pack.json").read_text())["shards"]
    for name, info in about.items():
        assert len(info["lists"]) == 1
        if info["lists"] == ["val.txt"]:
            (tmp_path / "p" / name).unlink()
    assert len(list(stream(tmp_path / "p", "train.txt"))) == 5


@each_codec
def test_a_stream_that_breaks_off_is_an_error(packs, tmp_path, codec):
    shutil.copytree(packs[codec], tmp_path / "p")
    path = next(p for p in sorted((tmp_path / "p").glob("*.tar")) if len(scan_shard(p).names) == 2)
    good, start = path.read_bytes(), int(scan_shard(path).videos["start"][1])
    for end in (start, start + 512, start + 2600, len(good) // 2):
        path.write_bytes(good[:end])
        with pytest.raises((PackError, VideoError, tarfile.TarError)):
            [list(stream(tmp_path / "p", split)) for split in ("train.txt", "val.txt")]


@pytest.mark.parametrize("changes, told", [
    (dict(split="test.txt"), "lists train.txt, val.txt, not with 'test.txt'"), (dict(short="pad"), "short"),
    (dict(windows=0), "windows=0"), (dict(pack="pipe:cat x.tar"), "shell command")])
def test_stream_arguments(packs, changes, told):
    with pytest.raises(ValueError, match=told):
        stream(**{"pack": packs["jpeg"], "split": "train.txt", **changes})


# --- real files -------------------------------------------------------------------------------------------------------

# how many frames OpenCV 5.0.0 reads, in order, to the end
OPENCV = {TURNK: 83, "v_Archery_g01_c01.avi": 131, "v_BasketballDunk_g01_c01.avi": 61, "v_BenchPress_g01_c05.avi": 88,
          "v_PlayingViolin_g01_c01.avi": 186, "v_SoccerJuggling_g23_c01.avi": 240, "SOX5yA1l24A.mp4": 332,
          "dAeUFSdYG1I_000010_000020.mp4": 300, "flipping_a_pancake.mkv": 310, "milk.mkv": 51, "walk.mkv": 89}


def psnr(a, b):
    error = a.astype(np.float32) - b
    return 10 * np.log10(255 ** 2 / max(float((error * error).mean()), 1e-9))


def test_odd_real_files(footage, tmp_path):
    names = sorted(p.name for p in (footage / "clips").iterdir() if p.suffix in (".avi", ".mp4", ".mkv"))
    split = Split(names, [0] * len(names))
    report = quiet_pack(footage / "clips", {"all.txt": split}, tmp_path / "p")
    assert list(report.problems) == ["corrupted.mp4"] and report.videos == len(names) - 1
    with pytest.warns(UserWarning, match="corrupted.mp4"):
        source = PackedVideos(tmp_path / "p", "all.txt", on_error="skip")
    counts = dict(zip(source.names, map(source.num_frames, range(len(source)))))
    for name in (n for n in names if n.endswith(".avi") and n != TURNK):
        assert counts[name] == coded_pictures((footage / "clips" / name).read_bytes()), name
    assert {name: counts[name] for name in OPENCV} == OPENCV
    for name in (TURNK, "v_Archery_g01_c01.avi", "v_BenchPress_g01_c05.avi"):
        i = source.names.index(name)
        mine = source.read(i, range(counts[name])).permute(0, 2, 3, 1).numpy()
        original = decode(footage / "clips" / name, mine.shape[1:3])
        assert len(original) == len(mine) and min(map(psnr, mine, original)) > 33
        a, b = (x[:, ::2, ::2].reshape(len(x), -1).astype(np.float64) for x in (mine, original))
        distance, between = ((x ** 2).sum(1)[:, None] + (b ** 2).sum(1) - 2 * x @ b.T for x in (a, b))
        nearest_other = (between + np.diag(np.full(len(b), np.inf))).min(1)
        distinct = np.flatnonzero(nearest_other > 0)  # a frame may stand twice in a file
        assert len(distinct) > len(b) // 2 and (distance[distinct].argmin(1) == distinct).all()
    checked = doctor(tmp_path / "p", progress=False)
    assert not checked.problems and checked.left_out.keys() == {"corrupted.mp4"}
