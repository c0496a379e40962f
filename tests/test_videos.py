"""Videos: real files against independent oracles, official lists, bad input, windows, samplers and workers."""
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate

from be_nb.data.clips import ClipDataset, collate, draw_starts, epoch_order, EpochSampler, uniform_starts, window_frames
from be_nb.data.decode import (as_shown, count_frames, decode, open_video, ToRGB, video_frames, video_size, VideoError,
                                write_video)
from be_nb.data.lists import (divide, groups_of, open_split, read_diving48, read_hmdb51, read_list, read_ucf101,
                              scan_videos, Split, write_split)
from be_nb.data.pack.format import seal_of
from be_nb.data.pack.read import PackedVideos
from be_nb.data.pack.write import pack
from be_nb.data.scenebias import SceneBias
from be_nb.data.sources import build_source, open_source, SteadyClips
from be_nb.data.videos import FrameIndex, Selection, VideoFolder, write_folder
from be_nb.settings import PretrainConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
footage = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real footage at {DATA}")
CLIPS = DATA / "clips"
FILES = sorted(p.name for p in CLIPS.iterdir()) if CLIPS.is_dir() else ["none.avi"]
AVIS = [name for name in FILES if name.endswith(".avi")]
PLAYABLE = [name for name in FILES if name.endswith((".avi", ".mp4", ".mkv")) and name != "corrupted.mp4"]
TURNK = "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BE_NB_CACHE", str(tmp_path / "cache"))


def frame(k, height=48, width=64):
    "An image whose grey value tells its number."
    return np.full((height, width, 3), 16 + 6 * (k % 40), np.uint8)


def number(image):
    return round((float(np.asarray(image, float).mean()) - 15) / 6)


def write(path, images, codec="mpeg4", aspect=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for k, image in enumerate(images):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = k
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.fixture
def root(tmp_path):
    "Four videos with awkward names, one of them in a sub-folder, a list and class names."
    root = tmp_path / "data"
    names = {"a [b] (c).avi": 20, "#1 hash!.mp4": 12, "sub/plain.mkv": 31, "50% é.avi": 7}
    for name, length in names.items():
        write(root / "videos" / name, [frame(k) for k in range(length)], bf=2)
    (root / "list.txt").write_text("".join(f"{name} {k % 2}\n" for k, name in enumerate(names)), encoding="utf8")
    (root / "classes.txt").write_text("even\nodd class\n")
    return root


# --- decoding ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bframes", [0, 1, 2])
@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_every_frame_in_order(tmp_path, ending, bframes):
    path = write(tmp_path / f"x.{ending}", [frame(k) for k in range(23)], bf=bframes)
    assert [number(image) for image in decode(path)] == list(range(23))
    asked = [22, 0, 5, 5, 21]
    assert [number(image) for image in decode(path, frames=asked)] == asked


def test_reads_only_as_far_as_needed(tmp_path):
    path = write(tmp_path / "x.avi", [frame(k) for k in range(40)])
    data = bytearray(path.read_bytes())
    vops = [m.start() for m in re.finditer(b"\x00\x00\x01\xb6", data)]
    data[vops[30]:vops[30] + 4] = b"\xff" * 4  # picture 30 is broken
    path.write_bytes(data)
    assert number(decode(path, frames=[20])[0]) == 20
    with pytest.raises(VideoError, match="x.avi"):
        decode(path)


@pytest.mark.parametrize("frames", [[20], [-1], [3, 99], []])
def test_frame_numbers_out_of_range(tmp_path, frames):
    with pytest.raises(IndexError, match="x.avi"):
        decode(write(tmp_path / "x.avi", [frame(k) for k in range(20)]), frames=frames)


@pytest.mark.parametrize("size,shape", [((48, 64), (96, 128)), ((40, 60), (62, 82)), ((33, 35), (90, 46)),
                                        ((50, 70), (20, 30))])
def test_cover_and_crop_against_pillow(tmp_path, size, shape):
    from PIL import Image
    (height, width), (h, w) = size, shape
    y, x = np.mgrid[:h, :w] / 8
    image = np.stack([128 + 90 * np.sin(x), 128 + 90 * np.cos(y), 128 + 60 * np.sin(x + y)], -1).astype(np.uint8)
    path = write(tmp_path / "x.mp4", [image] * 2)
    stored, got = decode(path)[0], decode(path, size)[0]
    assert stored.shape == (h, w, 3) and got.shape == (height, width, 3)
    scale = max(height / h, width / w)
    tall, wide = max(height, round(h * scale)), max(width, round(w * scale))
    top, left = (tall - height) // 2, (wide - width) // 2
    expected = np.asarray(Image.fromarray(stored).resize((wide, tall), Image.BICUBIC))
    expected = expected[top:top + height, left:left + width]
    assert np.abs(got.astype(int) - expected).mean() < 4  # other chroma siting and rounding, but the same picture
    shift = width // 8  # a wrong crop would be seen
    shifted = np.abs(got[:, shift:].astype(int) - expected[:, :-shift]).mean()
    assert np.abs(got.astype(int) - expected).mean() < shifted / 2


def test_truncated_files_are_reported(tmp_path):
    for ending in ("avi", "mp4", "mkv"):
        whole = write(tmp_path / f"x.{ending}", [frame(k) for k in range(60)]).read_bytes()
        for cut in range(1, len(whole) - 1, max(1, len(whole) // 17)):
            path = tmp_path / f"cut.{ending}"
            path.write_bytes(whole[:cut])
            with pytest.raises(VideoError, match=f"cut.{ending}"):
                count_frames(path)


def test_no_video_in_the_file(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="sound.mp4.*no video"):
        decode(tmp_path / "sound.mp4")
    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="none.avi"):
        decode(tmp_path / "none.avi")


class Bits:
    def __init__(self, data):
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def __call__(self, count):
        self.left -= count
        return self.value >> self.left & (1 << count) - 1


def coded_pictures(data):
    "How many pictures an MPEG-4 (part 2) stream codes, read from its headers alone: ISO/IEC 14496-2, 6.2.3 and 6.2.5."
    pictures = 0
    for code in re.finditer(b"\x00\x00\x01[\x20-\x2f\xb6]", data):
        bits = Bits(data[code.end():code.end() + 40])
        if data[code.end() - 1] != 0xb6:  # the header of the stream: only the resolution of time matters
            bits(9)
            bits(7) if bits(1) else None
            bits(16) if bits(4) == 15 else None
            if bits(1):
                bits(3)
                bits(79) if bits(1) else None
            assert bits(2) == 0 and bits(1)
            width = max((bits(16) - 1).bit_length(), 1)
        else:
            bits(2)
            while bits(1):
                pass
            bits(1 + width + 1)
            pictures += bits(1)  # vop_coded; 0 is the filler behind a packed pair
    return pictures


@footage
@pytest.mark.parametrize("name", AVIS)
def test_real_avis_lose_no_frame(name):
    coded = coded_pictures((CLIPS / name).read_bytes())
    if name == TURNK:  # cut off right behind a packed pair, without the filler that makes FFmpeg decode its B-frame
        assert (count_frames(CLIPS / name), coded) == (83, 84)
    else:
        assert count_frames(CLIPS / name) == coded


@footage
@pytest.mark.parametrize("name", PLAYABLE)
def test_real_clips_against_opencv(name):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    capture, asked, images = cv2.VideoCapture(str(CLIPS / name)), [], []
    for k in itertools.count():
        found, image = capture.read()
        if not found:
            break
        if k % 30 == 0:
            asked.append(k), images.append(image[..., ::-1])
    assert count_frames(CLIPS / name) == k
    for mine, other in zip(decode(CLIPS / name, frames=asked), images, strict=True):
        assert np.abs(mine.astype(int) - other).mean() < 2


@footage
def test_corrupted_clip_is_reported():
    with pytest.raises(VideoError, match="corrupted.mp4"):
        count_frames(CLIPS / "corrupted.mp4")
    with pytest.raises(VideoError, match=r"\.mat"):
        decode(CLIPS / "100_pullups_pullup_f_nm_np1_fr_med_1.mat")


def test_written_videos_come_back(tmp_path):
    clip = (torch.arange(21 * 35).view(1, 1, 21, 35) % 250).expand(7, 3, -1, -1).to(torch.uint8)
    write_video(tmp_path / "name.without.mp4.tmp", clip)
    back = torch.from_numpy(decode(tmp_path / "name.without.mp4.tmp")).permute(0, 3, 1, 2)
    assert back.shape == clip.shape and (back.float() - clip.float()).abs().mean() < 2


# --- what a player shows ---------------------------------------------------------------------------------------------

CORNERS = np.zeros((48, 64, 3), np.uint8)  # red, green / blue, white
CORNERS[:24, :32, 0] = CORNERS[:24, 32:, 1] = CORNERS[24:, :32, 2] = 230
CORNERS[24:, 32:] = 230
# a, b, c, d of a display matrix: x' = a·x + c·y, y' = b·x + d·y; and what becomes of an upright picture
MATRICES = {"upright": ((1, 0, 0, 1), np.asarray), "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
            "half a turn": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
            "counter-clockwise": ((0, -1, 1, 0), np.rot90), "mirrored": ((-1, 0, 0, 1), np.fliplr),
            "upside down": ((1, 0, 0, -1), np.flipud), "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
            "other diagonal": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1))}


def set_matrix(path, a, b, c, d):
    "Write a display matrix into the track header of an MP4."
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    numbers = [round(a * 65536), round(b * 65536), 0, round(c * 65536), round(d * 65536), 0, 0, 0, 1 << 30]
    data[at:at + 36] = np.array(numbers, ">i4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_as_a_player_turns_them(tmp_path, name):
    matrix, turned = MATRICES[name]
    path = set_matrix(write(tmp_path / "x.mp4", [CORNERS] * 3), *matrix)
    coded = next(video_frames(path)).picture.to_ndarray(format="rgb24")
    assert coded.shape == (48, 64, 3) and np.abs(coded.astype(int) - CORNERS).mean() < 8  # as it lies in the file
    upright = decode(path)[2]
    assert upright.shape == turned(coded).shape and video_size(path) == upright.shape[:2]
    assert np.abs(upright.astype(int) - turned(coded)).mean() < 3
    small = decode(path, (30, 30), [1])[0]  # covered and cut after turning
    expected = decode(write(tmp_path / "y.mp4", [turned(CORNERS)] * 3), (30, 30), [1])[0]
    off, wrong = (np.abs(image.astype(int) - expected).mean() for image in (small, small[::-1, ::-1]))
    assert off < 8 and wrong > 40
    folder = VideoFolder(tmp_path, Split(["x.mp4"], [0]), frame_size=(32, 24), cache=True)
    assert np.array_equal(folder.read(0, [0])[0].permute(1, 2, 0).numpy(), decode(path, (32, 24), [0])[0])
    pack(tmp_path, {"train.txt": Split(["x.mp4"], [0])}, tmp_path / "pack", short_side=0, codec="raw", progress=False)
    stored = PackedVideos(tmp_path / "pack", "train.txt").read(0, [2])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(stored, upright)


def test_a_matrix_may_lie_a_little_and_not_more(tmp_path):
    path = write(tmp_path / "x.mp4", [CORNERS] * 3)
    assert video_size(set_matrix(path, .01, 1, -1, .01)) == (64, 48)
    assert video_size(set_matrix(path, 0, 0, 0, 0)) == (48, 64)  # nonsense that players pass over
    set_matrix(path, .7, .7, -.7, .7)
    with pytest.raises(VideoError, match="x.mp4.*not by a quarter turn"):
        count_frames(path)
    write(tmp_path / "good.mp4", [CORNERS] * 3)
    with pytest.warns(UserWarning, match="1 of 2 videos left out.*quarter turn"):
        assert len(VideoFolder(tmp_path, Split(["x.mp4", "good.mp4"], [0, 1]), on_error="skip")) == 1


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_pixels_become_square(tmp_path, ending):
    path = write(tmp_path / f"x.{ending}", [CORNERS] * 3, aspect=Fraction(4, 3))
    assert video_size(path) == (48, 85) and decode(path).shape == (3, 48, 85, 3)
    wide = write(tmp_path / "y.mp4", [np.repeat(CORNERS, 4, 1)[:, ::3][:, :84]] * 3)
    assert np.abs(decode(path, (48, 84))[0].astype(int) - decode(wide, (48, 84))[0]).mean() < 8
    if ending == "mp4":  # the aspect is that of the pixels as coded
        assert video_size(set_matrix(path, 0, 1, -1, 0)) == (85, 48)
    # the half pixel that a rounded size leaves is no reason to scale: 170 × 128 of 4 : 3
    same = write(tmp_path / f"z.{ending}", [np.zeros((128, 170, 3), np.uint8)] * 2, aspect=Fraction(256, 255))
    assert video_size(same) == (128, 170)


def test_what_a_file_says_of_its_size_has_limits(tmp_path):
    path = write(tmp_path / "x.mp4", [CORNERS] * 3, aspect=Fraction(12, 1))
    with pytest.raises(VideoError, match="x.mp4.*12 times as wide as high"):
        count_frames(path)
    with pytest.raises(VideoError, match="x.mp4.*65536 × 1024 pixels|x.mp4.*65600 × 1024 pixels, the limit"):
        as_shown(av.VideoFrame(65600, 1024, "gray"), 1, "x.mp4")
    thin = as_shown(av.VideoFrame(8192, 2, "gray"), 8, "x.mp4")
    assert (thin.height, thin.width) == (2, 65536)
    with pytest.raises(VideoError, match="x.mp4.*cannot cover 128 × 171"):  # it would be 4 million pixels wide
        ToRGB((128, 171))(thin)


def test_old_packs_say_that_they_know_nothing_of_turning(tmp_path):
    write(tmp_path / "x.mp4", [CORNERS] * 3)
    pack(tmp_path, {"train.txt": Split(["x.mp4"], [0])}, tmp_path / "pack", progress=False)
    about = json.loads((tmp_path / "pack/pack.json").read_text())
    assert about["settings"].pop("geometry") == "shown"
    (tmp_path / "pack/pack.json").write_text(json.dumps({**about, "seal": seal_of(about)}))
    with pytest.warns(UserWarning, match="before be_nb minded how a player turns"):
        PackedVideos(tmp_path / "pack", "train.txt")


# --- what a file says is a claim --------------------------------------------------------------------------------------

def test_a_lying_header_costs_no_memory(tmp_path, capsys):
    path = write(tmp_path / "x.avi", [frame(k) for k in range(20)])
    data = bytearray(path.read_bytes())
    data[48:52] = data[data.index(b"strh") + 40:data.index(b"strh") + 44] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)  # avih and strh promise two thousand million frames
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 2**31 - 1
    for on_error in ("raise", "skip"):
        folder = VideoFolder(tmp_path, Split(["x.avi"], [0]), (128, 171), cache=True, on_error=on_error)
        assert folder.num_frames(0) == 20 and number(folder.read(0, [7])[0]) == 7
        assert sum(block.nbytes for block in folder._store.blocks) <= 1 << 28
    most = path.stat().st_size / 8 * 128 * 171 * 3 / 1e6
    said = re.findall(r"about ([\d,]+) MB", capsys.readouterr().out)
    assert len(said) == 2 and all(float(number.replace(",", "")) <= most + 1 for number in said)


def test_cached_videos_fill_several_blocks(tmp_path, monkeypatch):
    import be_nb.data.videos as module
    monkeypatch.setattr(module, "BLOCK_BYTES", 10 * 24 * 32 * 3)
    lengths = [7, 4, 12, 3, 9]
    for k, length in enumerate(lengths):
        write(tmp_path / f"{k}.mp4", [frame(j + k) for j in range(length)])
    folder = VideoFolder(tmp_path, Split([f"{k}.mp4" for k in range(5)], [0] * 5), (24, 32), cache=True)
    assert [folder.num_frames(k) for k in range(5)] == lengths and len(folder._store.blocks) > 2
    for k, length in enumerate(lengths):
        assert [number(image) for image in folder.read(k, range(length))] == list(range(k, k + length))


@pytest.mark.parametrize("entry", [[1], "abc", None, {"a": 1}, [0, 0, "many"], [0, 0, -3], [0, 0, True], [0, 0, 2.5]])
def test_remembered_counts_are_checked(root, entry):
    VideoFolder(root, "list.txt").num_frames(0)
    index = FrameIndex(root)
    path = next(iter(index.known))
    index.known[path] = [*index._stamp(path), entry[2]] if isinstance(entry, list) and len(entry) == 3 else entry
    index.file.write_text(json.dumps(index.known))
    assert FrameIndex(root).get(path) is None and VideoFolder(root, "list.txt").num_frames(0) == 20


@pytest.mark.parametrize("ending,codes", [("mp4", [b"avc1"]), ("avi", [b"FMP4"]), ("mkv", [b"V_MPEG4/ISO/ASP"])])
def test_a_codec_that_ffmpeg_does_not_know(tmp_path, ending, codes):
    codec = "libx264" if ending == "mp4" else "mpeg4"
    data = write(tmp_path / f"x.{ending}", [frame(k) for k in range(5)], codec).read_bytes()
    for code in codes:
        assert code in data
        data = data.replace(code, b"V_ZZZZ9/IZO/AZP"[:len(code)])
    (tmp_path / f"x.{ending}").write_bytes(data)
    write(tmp_path / "good.mp4", [frame(k) for k in range(5)])
    split = Split([f"x.{ending}", "good.mp4"], [0, 1])
    with pytest.raises(VideoError, match=f"x.{ending}.*codec"):
        VideoFolder(tmp_path, split).num_frames(0)
    for cache in (False, True):
        with pytest.warns(UserWarning, match="1 of 2 videos left out.*codec"):
            assert VideoFolder(tmp_path, split, (24, 32), cache, "skip").names == ["good.mp4"]
    report = pack(tmp_path, {"train.txt": split}, tmp_path / "pack", progress=False)
    assert report.videos == 1 and "codec" in report.problems[f"x.{ending}"]


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("name,text", [("x.m3u8", HLS),
                                       ("x.mp4", "ffconcat version 1.0\nfile good.mp4\n"),
                                       ("y.mp4", "\ufeff#EXTM3U\n#EXTINF:1,\ngood.mp4\n"),
                                       ("z.mpd", '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema"></MPD>\n'),
                                       ("x.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
                                                 "m=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n")])
def test_playlists_are_no_videos(tmp_path, name, text):
    write(tmp_path / "good.mp4", [frame(k) for k in range(5)])
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError, match=f"{name}: " + ("cannot be decoded" if name == "x.sdp" else "is a playlist")):
        count_frames(tmp_path / name)
    with pytest.warns(UserWarning, match="1 of 2 videos left out"):
        assert len(VideoFolder(tmp_path, Split([name, "good.mp4"], [0, 1]), on_error="skip")) == 1


def test_no_playlist_is_opened_even_if_its_beginning_is_hidden(tmp_path):
    write(tmp_path / "good.mp4", [frame(k) for k in range(5)])
    (tmp_path / "x.m3u8").write_text(HLS)
    with pytest.raises(av.FFmpegError):
        open_video(tmp_path / "x.m3u8")


def test_a_video_that_became_shorter(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, [frame(k) for k in range(30)])
    split = Split(["a.mp4", "b.mp4"], [0, 1])
    strict, lenient = (VideoFolder(tmp_path, split, (24, 32), on_error=on_error) for on_error in ("raise", "skip"))
    assert strict.num_frames(0) == lenient.num_frames(0) == 30
    write(tmp_path / "a.mp4", [frame(k) for k in range(4)])
    for source in (strict, lenient):
        with pytest.raises(VideoError, match="a.mp4: became shorter since its 30 frames were counted"):
            source.read(0, [20])
        with pytest.raises(IndexError):
            source.read(0, [30])
    with pytest.raises(VideoError, match="became shorter"):
        SteadyClips(strict, 16, 2)[0, 0]
    for source in (lenient, Selection(lenient, [0, 1])):
        data = SteadyClips(source, 16, 2)
        with pytest.warns(UserWarning, match="a.mp4: became shorter.* b.mp4 stands in for it"):
            item = data[3, 0]
        assert item["index"] == item["label"] == 1 and torch.equal(item["clips"], data[3, 1]["clips"])
    (tmp_path / "b.mp4").write_bytes(b"gone")
    with pytest.raises(VideoError, match="a.mp4"):
        SteadyClips(lenient, 16, 2)[0, 0]
    assert VideoFolder(tmp_path, Split(["a.mp4"], [0])).num_frames(0) == 4


def test_lists_that_lead_out_of_their_folder_say_so(tmp_path):
    for place in ("inside/a.mp4", "outside/b.mp4"):
        write(tmp_path / place, [frame(k) for k in range(5)])
    root = tmp_path / "inside"
    for path in ("../outside/b.mp4", str(tmp_path / "outside/b.mp4")):
        split = Split(["a.mp4", path], [0, 1])
        with pytest.warns(UserWarning, match="1 of 2 paths of the list lead out of .*outside/b.mp4"):
            VideoFolder(root, split)
        with pytest.warns(UserWarning, match="1 of 2 paths of the list lead out of .*outside/b.mp4"):
            pack(root, {"train.txt": split}, tmp_path / "pack", progress=False, on_error="raise")
        for file in (tmp_path / "pack").iterdir():
            file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(VideoFolder(root, Split(["a.mp4", "x/../a.mp4"][:1], [0]))) == 1


def test_lists_are_text_with_labels_that_can_be(tmp_path):
    for text, message in (("a.mp4 2000000000\n", "line 1: label 2000000000"),
                          ("a.mp4 99999999999999999999\n", "whole number as label"),
                          ("a.mp4 0\n".encode("utf-16"), "UTF-16"), (b"\0\1\2", "no text")):
        (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            read_list(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.mp4 0 25\n")
    with pytest.raises(VideoError, match="no such video.*a.mp4 0. Is there a column too many"):
        VideoFolder(tmp_path, "list.txt")


# --- folders instead of lists -----------------------------------------------------------------------------------------

def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_folder_of_videos_is_enough_to_pretrain_and_to_pack(tmp_path):
    for name in ("one.mp4", "deep/er/two.avi", "deep/three.mkv"):
        write(tmp_path / name, [frame(k) for k in range(6)])
    touch(tmp_path, "readme.txt", "deep/notes.txt", ".hidden.mp4", "deep/._three.mkv")
    config = PretrainConfig(data=str(tmp_path), frame_size=(24, 32))
    with pytest.warns(UserWarning, match="holds no list train.txt: taking all 3 videos"):
        source = build_source(config)
    assert source.names == ["deep/er/two.avi", "deep/three.mkv", "one.mp4"] and source.labels.tolist() == [-1] * 3
    assert ClipDataset(source, 4)[0, 0]["label"] == -1
    with pytest.warns(UserWarning, match="taking all 3"):
        report = pack(tmp_path, ("train.txt", "val.txt"), tmp_path / "out/pack", progress=False)
    assert (report.videos, report.problems) == (3, {})
    assert build_source(PretrainConfig(data=str(tmp_path / "out/pack"), frame_size=(24, 32))).names == source.names
    with pytest.raises(FileNotFoundError, match="val.txt: no such list file.*be-nb lists"):
        open_source(tmp_path, "val.txt")
    for judged in ("train.txt", "val.txt"):
        with pytest.raises(FileNotFoundError, match="be-nb lists --root"):
            open_source(tmp_path, judged, labelled=True)
    with pytest.raises(FileNotFoundError, match="typo.txt"):
        pack(tmp_path, ("typo.txt",), tmp_path / "other", progress=False)
    (tmp_path / "mine.txt").write_text("one.mp4\n")  # there is a list, only not this one
    with pytest.raises(FileNotFoundError, match="train.txt"):
        build_source(config)


def test_a_list_of_bare_paths_is_enough_to_pretrain_and_to_pack(tmp_path):
    for name in ("one.mp4", "two words.mp4"):
        write(tmp_path / name, [frame(k) for k in range(6)])
    (tmp_path / "train.txt").write_text("two words.mp4\none.mp4\n")
    source = build_source(PretrainConfig(data=str(tmp_path), frame_size=(24, 32)))
    assert source.names == ["two words.mp4", "one.mp4"] and source.labels.tolist() == [-1, -1]
    pack(tmp_path, ("train.txt",), tmp_path / "pack", progress=False)
    packed = build_source(PretrainConfig(data=str(tmp_path / "pack"), frame_size=(24, 32)))
    assert packed.names == source.names and packed.labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="line 1: expected `path label`"):
        open_source(tmp_path, "train.txt", labelled=True)
    with pytest.raises(ValueError, match="2 videos have no label"):
        open_source(tmp_path / "pack", "train.txt", labelled=True)


@pytest.mark.parametrize("labels, named, warned", [((1, 2, 2), False, True), ((1, 2, 2), True, False),
                                                   ((0, 1, 2), False, False), ((1, 3), False, False),
                                                   ((1, 1), False, False)])
def test_labels_that_count_from_one_are_told(tmp_path, labels, named, warned):
    "Only where they look like that: 1, 2, …, with no names; some list may lack the class 0."
    (tmp_path / "train.txt").write_text("".join(f"{k}.mp4 {label}\n" for k, label in enumerate(labels)))
    if named:
        (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read_list(tmp_path / "train.txt").labels.tolist() == list(labels)
    assert [("subtract 1" in str(each.message)) for each in said] == [True] * warned


def test_class_folders_are_labels(tmp_path):
    touch(tmp_path, "train/walk/a.mp4", "train/run/b.MP4", "train/sit/c.avi", "train/sit/notes.txt")
    touch(tmp_path, "val/walk/d.mp4", "val/sit/e/f.mkv")
    learn, test = open_split(tmp_path, "train.txt"), open_split(tmp_path, "val")
    assert learn.paths == ["train/run/b.MP4", "train/sit/c.avi", "train/walk/a.mp4"]
    assert learn.labels.tolist() == [0, 1, 2]
    assert test.paths == ["val/sit/e/f.mkv", "val/walk/d.mp4"] and test.labels.tolist() == [1, 2]  # not 0 and 1
    assert learn.classes == test.classes == ["run", "sit", "walk"]
    (tmp_path / "classes.txt").write_text("walk\nrun\nsit\nfly\n")
    assert open_split(tmp_path, "val").labels.tolist() == [2, 0] and len(open_split(tmp_path, "val").classes) == 4
    (tmp_path / "val.txt").write_text("val/walk/d.mp4 3\n")  # a list that is there counts
    assert open_split(tmp_path, "val.txt").labels.tolist() == [3]
    touch(tmp_path, "test/loose.mp4", "test/walk/g.mp4")
    with pytest.raises(ValueError, match="test: no labels: the videos must lie in two or more folders"):
        open_split(tmp_path, "test.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no video"):
        open_split(tmp_path, "empty")
    (tmp_path / "train" / "round").symlink_to(tmp_path / "train")  # a link in a circle
    assert len(scan_videos(tmp_path, "train")) == 3


people = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), min_size=2, max_size=60)


@settings(max_examples=150, deadline=None)
@given(people, st.floats(.05, .6), st.integers(0, 5))
def test_divided_sides_share_no_group_and_lose_no_class(videos, share, seed):
    labels, groups = np.array([label for label, _ in videos]), [group for _, group in videos]
    first, second = divide(labels, groups, share, seed)
    assert sorted([*first, *second]) == list(range(len(videos)))
    assert not {groups[i] for i in first} & {groups[i] for i in second}
    assert set(labels[first]) == set(labels)
    assert [part.tolist() for part in divide(labels, groups, share, seed)] == [first.tolist(), second.tolist()]


def test_single_videos_are_divided_class_by_class():
    labels = np.repeat([0, 1, 2], [50, 20, 2])
    first, second = divide(labels, range(72), .2)
    assert np.bincount(labels[second]).tolist() == [10, 4, 1] and len(first) == 57


def test_lists_are_written_for_class_folders(tmp_path):
    names = [f"{act}/person{p:02}_{act}_d{d}.avi" for act in ("box", "jog") for p in range(10) for d in range(3)]
    touch(tmp_path, *names)
    said = write_split(tmp_path, .2, r"(person\d+)_")
    assert "60 videos, 2 classes, 10 groups" in said and "train.txt: 48" in said and "val.txt: 12" in said
    learn, test = read_list(tmp_path / "train.txt"), read_list(tmp_path / "val.txt")
    assert sorted(learn.paths + test.paths) == sorted(names) and learn.classes == ["box", "jog"]
    assert all(learn.classes[label] == path.split("/")[0] for path, label in zip(learn.paths, learn.labels))
    assert not {path[4:12] for path in learn.paths} & {path[4:12] for path in test.paths}
    with pytest.raises(FileExistsError, match="train.txt is there already"):
        write_split(tmp_path)
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "classes.txt").write_text("box\nswim\n")
    with pytest.raises(ValueError, match="classes.txt does not name the folders"):
        write_split(tmp_path)
    with pytest.raises(ValueError, match="no regular expression"):
        groups_of(["a"], "(")
    with pytest.raises(ValueError, match="finds nothing in any path"):
        groups_of(["a"], "person")
    with pytest.warns(UserWarning, match="finds nothing in 1 of 2 paths"):
        assert len(set(groups_of(["a1", "b"], r"\d"))) == 2
    films = (("Film", "run"), ("Film", "sit"), ("X", "run"))
    films = [f"{act}/{film}_{act}_f_nm_np1_ba_med_0.avi" for film, act in films]
    assert groups_of(films) == ["Film", "Film", "X"]  # one film, two classes
    assert groups_of(["Archery/v_Archery_g08_c03.avi"]) == ["Archery/v_Archery_g08"]


def test_the_command_that_writes_lists(tmp_path, capsys):
    from be_nb.cli import main, usage

    touch(tmp_path, *(f"{action}/p{p}.mp4" for action in ("box", "jog") for p in range(5)))
    main(["lists", "--root", str(tmp_path), "--val", "0.4", "--group", "p[0-9]"])
    assert "train.txt: 6 videos" in capsys.readouterr().out and "be-nb lists --root DIR" in usage()
    sides = [{Path(path).stem for path in read_list(tmp_path / name).paths} for name in ("train.txt", "val.txt")]
    assert [len(side) for side in sides] == [3, 2] and not sides[0] & sides[1]
    for arguments, message in ((["--root", str(tmp_path)], "lists are not overwritten"),
                               (["--root", "nowhere"], "no such folder"),
                               (["--root", str(tmp_path), "--val", "1"], "val must be")):
        with pytest.raises(SystemExit) as ended:
            main(["lists", *arguments])
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("names,error", [(["a.mp4", "b.mp4"], "two or more folders"),
                                         (["x/a.mp4", "x/b.mp4"], "two or more folders"),
                                         (["x/a.mp4", "y/b.mp4"], "no group can be set aside"),
                                         (["x/a.txt"], "holds no video"),
                                         (["x/a.mp4", "y/c\n.mp4", "y/d.mp4"], "cannot stand in a list"),
                                         (["train/x/a.mp4", "val/x/b.mp4"], "two or more folders")])
def test_folders_that_cannot_be_divided(tmp_path, names, error):
    touch(tmp_path, *names)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        write_split(tmp_path)
    assert not (tmp_path / "train.txt").exists() and not (tmp_path / "val.txt").exists()


# --- lists ------------------------------------------------------------------------------------------------------------

@footage
@pytest.mark.parametrize("split,train,test", [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101(split, train, test):
    sides = read_ucf101(DATA / "lists" / "ucf101", split)
    assert (len(sides.train), len(sides.test)) == (train, test)
    for side in sides:
        assert len(side.classes) == 101 and set(side.labels.tolist()) == set(range(101))
        assert all(path.split("/")[0] == side.classes[label] for path, label in zip(side.paths, side.labels))
        assert not any("\r" in path for path in side.paths)
    assert sides.train.classes[0] == "ApplyEyeMakeup" and sides.train.classes[100] == "YoYo"
    assert not set(sides.train.paths) & set(sides.test.paths)


@footage
@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51(split):
    sides = read_hmdb51(DATA / "lists" / "hmdb51", split)
    assert (len(sides.train), len(sides.test), len(sides.train.classes)) == (3570, 1530, 51)
    assert all(np.bincount(sides.train.labels) == 70) and all(np.bincount(sides.test.labels) == 30)
    assert any("[" in path for path in sides.train.paths + sides.test.paths)  # the names that glob would lose
    jhmdb = {1: (660, 268), 2: (658, 270), 3: (663, 265)}
    assert tuple(map(len, read_hmdb51(DATA / "lists" / "jhmdb", split))) == jhmdb[split]


@footage
def test_diving48():
    sides = read_diving48(DATA / "lists" / "diving48")
    assert (len(sides.train), len(sides.test), len(sides.train.classes)) == (15027, 1970, 48)
    assert len(set(sides.train.labels.tolist()) | set(sides.test.labels.tolist())) == 47
    assert sides.train.paths[0] == "-mmq0PT-u8k_00155.mp4" and sides.train.classes[0] == "Back 15som 05Twis FREE"


@pytest.mark.parametrize("split", [0, 4, "1", None])
def test_official_splits_are_1_2_3(tmp_path, split):
    for read in (read_ucf101, read_hmdb51):
        with pytest.raises(ValueError, match="splits 1, 2 and 3"):
            read(tmp_path, split)


def test_official_lists_missing_or_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="classInd.txt"):
        read_ucf101(tmp_path)
    with pytest.raises(FileNotFoundError, match="CLASS_test_split1.txt"):
        read_hmdb51(tmp_path)
    with pytest.raises(FileNotFoundError, match="vocab"):
        read_diving48(tmp_path)
    (tmp_path / "classInd.txt").write_bytes(b"1 A\r\n2 B\r\n")
    (tmp_path / "trainlist01.txt").write_bytes(b"A/x.avi 1\r\nB/y.avi 1\r\n")
    with pytest.raises(ValueError, match="trainlist01.txt, line 2"):
        read_ucf101(tmp_path)
    (tmp_path / "wave_test_split1.txt").write_text("x.avi 3\n")
    with pytest.raises(ValueError, match="wave_test_split1.txt, line 1: code 3"):
        read_hmdb51(tmp_path)
    (tmp_path / "Diving48_vocab.json").write_text("[[")
    with pytest.raises(ValueError, match="vocab.json: not valid JSON"):
        read_diving48(tmp_path)


names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(st.tuples(names, st.integers(0, 400)), min_size=1, max_size=6),
       end=st.sampled_from(["\n", "\r\n", " \n\n"]), bom=st.booleans())
def test_lists_keep_any_name(tmp_path_factory, entries, end, bom):
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    text = "".join(f"{name} {label}{end}" for name, label in entries)
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf8"))
    if not bom and text.startswith("\ufeff"):
        return  # a name that looks like a byte-order mark
    split = read_list(path)
    assert split.paths == [name.strip(" \t\r") for name, _ in entries]
    assert split.labels.tolist() == [label for _, label in entries] and split.labels.dtype == np.int64


@pytest.mark.parametrize("text,message", [
    ("", "list.txt: the list is empty"), ("\n \r\n", "list.txt: the list is empty"),
    ("a.avi 0\n\nb c.avi\n", "list.txt, line 3: expected"), ("a.avi 0\nb.avi 1.5\n", "list.txt, line 2: expected"),
    ("7\n", "list.txt, line 1: expected"), ("a.avi 0\nb.avi -2\n", "list.txt, line 2: label -2"),
    ("a.avi ３\n", "line 1: expected"),
    ("a b.avi jump\n", "a whole number as label, got 'a b.avi jump'. Number the classes"),
])
def test_list_errors_name_file_and_line(tmp_path, text, message):
    (tmp_path / "list.txt").write_bytes(text.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        read_list(tmp_path / "list.txt")


def test_list_missing_and_labels_beyond_the_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        read_list(tmp_path / "nowhere.txt")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "list.txt").write_text("x.avi 1\ny.avi 2\n")
    with pytest.raises(ValueError, match="list.txt, line 2: label 2, but the classes are 0 to 1"):
        read_list(tmp_path / "list.txt")


def test_list_without_labels(tmp_path):
    (tmp_path / "list.txt").write_text("a b.avi\nc.avi 4\n")
    split = read_list(tmp_path / "list.txt", labels=False)
    assert split.paths == ["a b.avi", "c.avi"] and split.labels.tolist() == [-1, 4]


def test_names_that_are_not_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.avi"
    try:
        os.rename(write(tmp_path / "x.avi", [frame(k) for k in range(5)]), raw)
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.avi 0\n")
    source = VideoFolder(tmp_path, "list.txt", frame_size=(8, 8))
    assert source.num_frames(0) == 5 and VideoFolder(tmp_path, "list.txt", frame_size=(8, 8)).num_frames(0) == 5


# --- folders ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cache", [False, True])
def test_folder_is_a_source(root, cache):
    source = VideoFolder(root, "list.txt", frame_size=(24, 40), cache=cache)
    assert len(source) == 4 and source.classes == ["even", "odd class"] and not source.skipped
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [0, 1, 0, 1]
    assert [source.num_frames(i) for i in range(4)] == [20, 12, 31, 7]
    for twin in (source, pickle.loads(pickle.dumps(source))):
        for i in range(4):
            last = source.num_frames(i) - 1
            clip = twin.read(i, np.array([last, 0, 3, 3]))
            assert clip.dtype == torch.uint8 and clip.shape == (4, 3, 24, 40) and clip.is_contiguous()
            assert [number(image) for image in clip] == [last, 0, 3, 3]
            with pytest.raises(IndexError):  # also in RAM, where the neighbour's frames lie right behind
                twin.read(i, np.array([last + 1]))
            with pytest.raises(IndexError):
                twin.read(i, np.array([-1]))


def test_folder_without_videos_subfolder_and_absolute_list(root, tmp_path):
    split = tmp_path / "elsewhere.txt"
    split.write_text("sub/plain.mkv 3\n")
    source = VideoFolder(root / "videos", split, frame_size=(8, 8))
    assert source.names == ["sub/plain.mkv"] and source.num_frames(0) == 31 and source.classes == ["0", "1", "2", "3"]
    unlabelled = VideoFolder(root, Split(["sub/plain.mkv"], [-1]), frame_size=(8, 8))
    assert unlabelled.labels.tolist() == [-1]


def test_skip_leaves_out_counts_and_names(root):
    (root / "videos" / "bad.avi").write_bytes(b"RIFF....AVI nothing")
    (root / "list.txt").write_text("bad.avi 1\nsub/plain.mkv 0\ngone #2.avi 1\n50% é.avi 1\n", encoding="utf8")
    for cache in (False, True):
        with pytest.warns(UserWarning, match="left out") as caught:
            source = VideoFolder(root, "list.txt", frame_size=(8, 8), cache=cache, on_error="skip")
        text = " ".join(str(w.message) for w in caught)
        assert "1 of 4 videos left out" in text and "list.txt, line 3: no such video" in text and "bad.avi" in text
        assert list(source.skipped) == ["gone #2.avi", "bad.avi"] and "bad.avi" in source.skipped["bad.avi"]
        assert source.names == ["sub/plain.mkv", "50% é.avi"] and source.labels.tolist() == [0, 1]
        assert [source.num_frames(i) for i in range(len(source))] == [31, 7] and number(source.read(1, [6])[0]) == 6
    with pytest.raises(VideoError, match="list.txt, line 3: no such video.*on_error='skip'"):
        VideoFolder(root, "list.txt")
    (root / "list.txt").write_text("bad.avi 1\nsub/plain.mkv 0\n")
    with pytest.raises(VideoError, match="bad.avi"):
        VideoFolder(root, "list.txt", cache=True)
    with pytest.raises(VideoError, match="bad.avi"):
        VideoFolder(root, "list.txt").num_frames(1)
    (root / "list.txt").write_text("bad.avi 1\n")
    with pytest.raises(VideoError, match="none of the 1 videos"):
        VideoFolder(root, "list.txt", on_error="skip")


def test_a_written_folder_is_read_as_it_was(tmp_path):
    drawn = {"train.txt": SceneBias("probe", size=3, frames=10), "val.txt": SceneBias("test", size=2, frames=9)}
    write_folder(tmp_path, drawn)
    for name, source in drawn.items():
        read = VideoFolder(tmp_path, name, frame_size=(30, 30))
        assert read.labels.tolist() == source.labels.tolist() and read.classes == list(source.classes)
        for i in range(len(source)):
            frames = range(source.num_frames(i))
            assert read.num_frames(i) == len(frames)
            assert (read.read(i, frames).float() - source.read(i, frames).float()).abs().mean() < 4


def test_folder_arguments(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        VideoFolder(tmp_path / "nowhere", "list.txt")
    with pytest.raises(FileNotFoundError, match="val.txt"):
        VideoFolder(root, "val.txt")
    with pytest.raises(ValueError, match="on_error"):
        VideoFolder(root, "list.txt", on_error="ignore")
    with pytest.raises(ValueError, match="frame_size"):
        VideoFolder(root, "list.txt", frame_size=(0, 8))
    with pytest.raises(ValueError, match="no videos"):
        VideoFolder(root, Split([], []))
    with pytest.raises(ValueError, match="classes.txt: 2 classes, but a label is 5"):
        VideoFolder(root, Split(["sub/plain.mkv"], [5]))


def test_counts_are_remembered_and_forgotten(root, monkeypatch):
    import be_nb.data.videos as module
    counted, real = [], module.count_frames
    monkeypatch.setattr(module, "count_frames", lambda path: counted.append(path) or real(path))
    assert VideoFolder(root, "list.txt").num_frames(2) == 31 and len(counted) == 4
    assert VideoFolder(root, "list.txt").num_frames(2) == 31 and len(counted) == 4  # from the JSON
    write(root / "videos" / "sub" / "plain.mkv", [frame(k) for k in range(9)])
    assert VideoFolder(root, "list.txt").num_frames(2) == 9 and len(counted) == 5
    index = FrameIndex(root)
    assert index.file.parent == Path(os.environ["BE_NB_CACHE"]) and len(json.loads(index.file.read_text())) == 4
    assert [p.name for p in index.file.parent.iterdir()] == [index.file.name]  # nothing half-written is left
    for rubbish in ("{broken", "[1, 2]"):
        index.file.write_text(rubbish)
        assert VideoFolder(root, "list.txt").num_frames(0) == 20
    (root / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("BE_NB_CACHE", str(root / "blocked"))
    with pytest.warns(UserWarning, match="BE_NB_CACHE"):
        assert VideoFolder(root, "list.txt").num_frames(0) == 20


@footage
def test_real_folders(tmp_path):
    source = VideoFolder(DATA / "ucf101-6", "val.txt", frame_size=(32, 43))
    assert len(source) == 148 and source.classes[0] == "Archery" and source.read(0, [0]).shape == (1, 3, 32, 43)
    split = read_list(DATA / "jhmdb-21" / "val.txt")
    assert len(split) == 176 and len(split.classes) == 21
    split = Split(split.paths[:6], split.labels[:6], split.classes)
    some = VideoFolder(DATA / "jhmdb-21", split, frame_size=(32, 43), cache=True)
    assert all(15 <= some.num_frames(i) <= 40 for i in range(6))
    names = ["corrupted.mp4", TURNK, "Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0.avi"]
    with pytest.warns(UserWarning, match="1 of 3 videos left out: .*corrupted.mp4"):
        odd = VideoFolder(CLIPS, Split(names, [0, 1, 2]), frame_size=(32, 43), on_error="skip")
    assert [odd.num_frames(i) for i in range(2)] == [83, 89] and odd.labels.tolist() == [1, 2]


# --- windows ----------------------------------------------------------------------------------------------------------

windows = dict(n=st.integers(1, 120), frames=st.integers(1, 20), stride=st.integers(1, 8))


@settings(max_examples=200, deadline=None)
@given(**windows, start=st.integers(0, 119))
def test_window_frames(n, frames, stride, start):
    start %= n
    loop, clamp = (window_frames(n, frames, stride, start, short) for short in ("loop", "clamp"))
    first_round = n // math.gcd(n, stride)  # after it the same frames would come again
    assert loop[:first_round].tolist() == [(start + k * stride) % n for k in range(min(frames, first_round))]
    assert len(set(loop.tolist())) == min(frames, n) and loop.dtype == np.int64 and 0 <= loop.min() <= loop.max() < n
    if first_round == n:
        assert loop.tolist() == [(start + k * stride) % n for k in range(frames)]
    assert clamp.tolist() == [min(start + k * stride, n - 1) for k in range(frames)]
    if start + (frames - 1) * stride < n:
        assert window_frames(n, frames, stride, start, "drop").tolist() == loop.tolist() == clamp.tolist()
    else:
        with pytest.raises(ValueError, match="drop"):
            window_frames(n, frames, stride, start, "drop")
    assert window_frames(n, frames, stride, np.array([start, 0])).shape == (2, frames)


@settings(max_examples=200, deadline=None)
@given(**windows, clips=st.integers(1, 12))
def test_uniform_starts(n, frames, stride, clips):
    span = (frames - 1) * stride + 1
    starts = uniform_starts(n, frames, stride, clips)
    assert starts.dtype == np.int64 and len(starts) == clips
    if n < span:
        assert not starts.any() and len(uniform_starts(n, frames, stride, clips, "drop")) == 0
    else:
        assert starts.min() >= 0 and starts.max() + span <= n and (np.diff(starts) >= 0).all()
        gaps = np.diff(starts)
        assert clips == 1 or (starts[0] == 0 and starts[-1] + span == n and gaps.max() - gaps.min() <= 1)
        assert starts.tolist() == uniform_starts(n, frames, stride, clips, "drop").tolist()


@pytest.mark.parametrize("n,stride,right", [(8, 8, [0, 1, 2, 3, 4, 5]), (4, 8, [0, 1, 2, 3, 0, 1]),
                                            (6, 3, [0, 3, 1, 4, 2, 5]), (10, 4, [0, 4, 8, 2, 6, 1]),
                                            (5, 3, [0, 3, 1, 4, 2, 0]), (1, 2, [0] * 6)])
def test_a_looped_window_does_not_stand_still(n, stride, right):
    assert window_frames(n, 6, stride, 0).tolist() == right


def test_videos_of_one_frame_are_told():
    with pytest.warns(UserWarning, match="1 of 2 videos have a single frame"):
        SteadyClips(Numbers([1, 30]), 4, 2)


def test_window_arguments():
    for bad in ((10, 0, 1, 0), (10, 4, 0, 0), (10, 4, 1, 10), (10, 4, 1, -1), (10, 4, 1, 0, "pad"), (0, 4, 1, 0)):
        with pytest.raises(ValueError, match="must be|not a frame"):
            window_frames(*bad)
    for bad in ((0, 4, 1, 10), (10, 4, 1, 0), (10, 0, 1, 10), (10, 4, 1, 10, "pad")):
        with pytest.raises(ValueError, match="must be"):
            uniform_starts(*bad)


def distance(a, b, positions, circular):
    return min((a - b) % positions, (b - a) % positions) if circular else abs(a - b)


@settings(max_examples=150, deadline=None)
@given(positions=st.integers(1, 60), count=st.integers(2, 4), offset=st.integers(0, 30), circular=st.booleans(),
       seed=st.integers(0, 9))
def test_starts_keep_their_distance(positions, count, offset, circular, seed):
    starts = draw_starts(np.random.default_rng(seed), positions, count, offset, circular)
    possible = positions // count if circular else (positions - 1) // (count - 1)
    assert len(starts) == count and starts.min() >= 0 and starts.max() < positions
    closest = min(distance(a, b, positions, circular) for a, b in itertools.combinations(starts.tolist(), 2))
    assert closest >= min(offset, possible)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("positions,count,offset",
                         [(9, 2, 3), (7, 2, 1), (9, 3, 2), (8, 4, 2), (5, 2, 0), (6, 1, 3), (7, 3, 9)])
def test_starts_are_uniform_over_all_that_is_allowed(positions, count, offset, circular):
    "Against all tuples, listed by brute force; a chi-square of more than 6 sd would be no accident."
    if count > 1:
        offset = min(offset, positions // count if circular else (positions - 1) // (count - 1))
    allowed = [t for t in itertools.product(range(positions), repeat=count)
               if all(distance(a, b, positions, circular) >= offset for a, b in itertools.combinations(t, 2))]
    rng, draws = np.random.default_rng(0), 20 * len(allowed)
    seen = Counter(tuple(draw_starts(rng, positions, count, offset, circular).tolist()) for _ in range(draws))
    assert set(seen) <= set(allowed)
    chi = sum((seen[t] - 20) ** 2 / 20 for t in allowed)
    assert abs(chi - len(allowed)) < 6 * (2 * len(allowed)) ** .5


# --- datasets and samplers --------------------------------------------------------------------------------------------

class Numbers:
    "A source whose frame k of video i is filled with (i, k, 0)."

    def __init__(self, lengths):
        self.lengths, self.classes = lengths, ["a", "b"]
        self.labels, self.names = np.arange(len(lengths)) % 2, [f"v{i}" for i in range(len(lengths))]

    def __len__(self):
        return len(self.lengths)

    def num_frames(self, i):
        return self.lengths[i]

    def read(self, i, frames):
        frames = torch.as_tensor(frames)
        assert 0 <= int(frames.min()) and int(frames.max()) < self.lengths[i]
        clip = torch.zeros(len(frames), 3, 2, 2, dtype=torch.uint8)
        clip[:, 0], clip[:, 1] = i, frames.view(-1, 1, 1)
        return clip


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5), frames=st.integers(1, 8), stride=st.integers(1, 5),
       n=st.integers(1, 3), offset=st.integers(0, 10), short=st.sampled_from(["loop", "clamp", "drop"]),
       epoch=st.integers(0, 10**6))
def test_items(lengths, frames, stride, n, offset, short, epoch):
    source, span = Numbers(lengths), (frames - 1) * stride + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if short == "drop" and max(lengths) < span:
            with pytest.raises(ValueError, match="drop"):
                ClipDataset(source, frames, stride, n, offset, short)
            return
        ds = ClipDataset(source, frames, stride, n, offset, short)
    assert sorted(ds.dropped + [source.names[i] for i in ds.indices]) == sorted(source.names)
    for k in range(len(ds)):
        item = ds[epoch, k]
        i, starts = item["index"], item["starts"]
        assert item["clips"].shape == (n, frames, 3, 2, 2) and item["label"] == i % 2 and starts.dtype == torch.int64
        assert (item["clips"][:, :, 0] == i).all() and len(starts) == n
        for clip, start in zip(item["clips"], starts.tolist()):
            assert clip[:, 1, 0, 0].tolist() == window_frames(lengths[i], frames, stride, start, short).tolist()
        if short != "loop":
            assert starts.max() <= max(lengths[i] - span, 0)
        if n > 1 and lengths[i] >= span + (n - 1) * offset:  # the video allows it
            assert min(abs(a - b) for a, b in itertools.combinations(starts.tolist(), 2)) >= offset


def test_starts_are_drawn_anew_in_every_epoch_video_and_seed():
    sets = [ClipDataset(Numbers([200] * 30), seed=seed) for seed in (0, 1)]
    draws = [ds[epoch, i]["starts"].item() for ds in sets for epoch in range(30) for i in range(30)]
    table = np.array(draws).reshape(2, 30, 30)
    assert len(set(draws)) == 185 and np.abs(np.corrcoef(table.reshape(60, 30)) - np.eye(60)).max() < .8
    for axis in range(3):
        assert (np.diff(table, axis=axis) == 0).mean() < .05


def test_drop_says_what_it_drops_and_keeps_the_items_of_the_others():
    source = Numbers([5, 30, 15, 14])
    with pytest.warns(UserWarning, match="leaves out 2 of 4 videos"):
        strict = ClipDataset(source, 8, 2, short="drop")
    assert strict.dropped == ["v0", "v3"] and len(strict) == 2 and [strict[0, k]["index"] for k in range(2)] == [1, 2]
    assert torch.equal(strict[7, 0]["starts"], ClipDataset(source, 8, 2)[7, 1]["starts"])


@pytest.mark.parametrize("item,error", [(3, TypeError), ((0, 9), IndexError), ((0, -1), IndexError),
                                        ((1, 2, 3), TypeError)])
def test_item_must_be_epoch_and_index(item, error):
    with pytest.raises(error):
        ClipDataset(Numbers([30] * 4))[item]


@pytest.mark.parametrize("kwargs", [{"windows": 0}, {"min_offset": -1}, {"short": "pad"}, {"frames": 0}, {"seed": -1}])
def test_dataset_arguments(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        ClipDataset(Numbers([30]), **kwargs)


samplers = dict(length=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**40))


@settings(max_examples=100, deadline=None)
@given(**samplers, first=st.integers(0, 30), rest=st.integers(0, 30))
def test_a_resumed_sampler_continues_the_straight_run(length, batch, seed, first, rest):
    straight = list(EpochSampler(length, batch, seed, steps=first + rest))
    resumed = EpochSampler(length, batch, seed, start_step=first, steps=rest)
    assert list(EpochSampler(length, batch, seed, steps=first)) + list(resumed) == straight
    endless = EpochSampler(length, batch, seed, start_step=first)
    assert list(itertools.islice(endless, rest)) == list(resumed) and len(resumed) == rest
    assert all(len(b) == batch for b in straight)


@settings(max_examples=60, deadline=None)
@given(**samplers)
def test_every_epoch_is_a_permutation(length, batch, seed):
    flat = [item for b in EpochSampler(length, batch, seed, steps=-(-3 * length // batch)) for item in b]
    for epoch in range(3):
        part = flat[epoch * length:(epoch + 1) * length]
        assert {e for e, _ in part} == {epoch} and [i for _, i in part] == epoch_order(length, seed, epoch)
        assert sorted(i for _, i in part) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own_and_late_starts_are_direct():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    batch = next(iter(EpochSampler(1000, 64, start_step=10**12)))
    assert len(batch) == 64 and batch[0][0] == 64 * 10**12 // 1000
    with pytest.raises(TypeError):
        len(EpochSampler(5, 2))
    for bad in ((0, 1), (1, 0), (1, 1, -1), (1, 1, 0, -1)):
        with pytest.raises(ValueError, match="EpochSampler"):
            EpochSampler(*bad)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
def test_batches_are_the_same_for_any_number_of_workers(root):
    source = VideoFolder(root, "list.txt", frame_size=(24, 32))
    ds = ClipDataset(source, frames=4, stride=2, windows=2, min_offset=3, seed=5)

    def run(workers, start, steps):
        sampler = EpochSampler(len(ds), 3, seed=2, start_step=start, steps=steps)
        return list(DataLoader(ds, batch_sampler=sampler, num_workers=workers, collate_fn=collate))
    alone = run(0, 0, 5)
    assert alone[0]["clips"].shape == (3, 2, 4, 3, 24, 32)
    for other, expected in ((run(2, 0, 5), alone), (run(2, 2, 3), alone[2:])):
        assert len(other) == len(expected)
        for a, b in zip(expected, other):
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    items = [ds[0, 0], ds[0, 1]]
    assert all(torch.equal(a, b) for a, b in zip(collate(items).values(), default_collate(items).values()))


WRITE = """
import hashlib, sys
from pathlib import Path
from be_nb.data.scenebias import SceneBias
from be_nb.data.videos import write_folder
write_folder(sys.argv[1], {"all.txt": SceneBias("probe", size=40)})
print(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(sys.argv[1], "all").iterdir())))
"""


def test_a_clip_gives_the_same_file_in_any_process(tmp_path):
    "Small frames, of which an encoder left to itself makes other files each time."
    written = {subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / name)], capture_output=True, text=True,
                              check=True).stdout for name in "abc"}
    assert len(written) == 1 and len(written.pop().split()) == 40
