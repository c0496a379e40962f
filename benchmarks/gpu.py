"""One call on a machine with a GPU: everything that this project wants to know from one, in so many minutes.

    python benchmarks/gpu_footage.py --sets VIDEOS/ucf101-6 VIDEOS/mlr511 VIDEOS/jhmdb-21 --out .gpu/footage  # before
    PYTHONPATH=. python benchmarks/gpu.py --minutes 9 --footage .gpu/footage --out gpu.json                   # there
    python benchmarks/gpu_read.py gpu.json                                                                    # after

What it needs there: this repository; the folder of footage (at most 60 MB, gathered beforehand, not in the repository;
without it the last parts are left out); Python with torch and torchvision for CUDA, numpy, einops, tqdm, safetensors,
scikit-learn, tensorboard, pytest, and PyAV or OpenCV to decode the footage, once. tyro may be missing. Nothing is
fetched.

The parts come in the order of `PARTS`. One that does not fit into the time is left out and named in `left_out`; one
that fails is named in `failed`, and the next one begins. After every measurement the whole record is written under a
temporary name and renamed, so that a machine that is taken away leaves what was measured so far.

`--rehearse` runs the same with tiny sizes on any machine (the tests do it on the CPU); its numbers mean nothing.
"""
import argparse
import importlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import types
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def stand_in_for_av():
    """Where PyAV is missing, packs can be read all the same: modules with the names that ours want at import."""
    if importlib.util.find_spec("av"):
        return
    nothing: Any = type("Nothing", (Exception,), {})
    names = {"av": dict(__version__="0", formats_available=set(), FFmpegError=nothing, VideoFrame=nothing),
             "av.sidedata": {}, "av.sidedata.sidedata": dict(Type=nothing), "av.video": {},
             "av.video.reformatter": dict(VideoReformatter=nothing)}
    for name, content in names.items():
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(module).update(content)


stand_in_for_av()

import torch  # noqa: E402

import step as steps  # noqa: E402
from be_nb.config import override  # noqa: E402
from be_nb.data.decode import frame_to_bytes, VideoError  # noqa: E402
from be_nb.data.pack import write  # noqa: E402
from be_nb.data.sources import build_loader, build_source, open_source  # noqa: E402
from be_nb.evaluate import extract_features, knn, linear_probe, retrieval  # noqa: E402
from be_nb.machine.device import machine, pick_device  # noqa: E402
from be_nb.machine.files import write_atomically  # noqa: E402
from be_nb.machine.speed import prefetch  # noqa: E402
from be_nb.saving.weights import load  # noqa: E402
from be_nb.settings import PretrainConfig  # noqa: E402
from be_nb.studies.bench import BenchReport, ceilings, measure, RandomVideos  # noqa: E402
from be_nb.studies.plan import trace  # noqa: E402
from be_nb.train import pretrain  # noqa: E402
from be_nb.training.run import restore  # noqa: E402
from be_nb.training.step import train_step  # noqa: E402

FULL = dict(cases=["r3d18:64x16x112", "i3d:32x16x112", "i3d:8x16x224", "c3d:16x16x112"], repeats=5, losses=20,
            losses_case="r3d18:32x16x112", memory=["r3d18:32x16x112", "i3d:8x16x224", "c3d:16x16x112"],
            workers=[1, 2, 4, 8, 16], loader=dict(backbone="i3d", batch_size=32), batches=12,
            train=dict(backbone="r3d18", frames=16, size=112, batch_size=64, warmup_steps=100, queue_size=512),
            seeds=3, least_seconds=45, readers=14, most_steps=6000, later=120,
            ladder=dict(seeds=[0, 1, 2], arms=["random", "moco", "be", "triplet", "supervised"], at_once=8, steps=1000,
                        videos=0, change=["frames=16", "size=48", "frame_size=[56, 75]"]),
            leaderboard=dict(seeds=[0, 1, 2], arms=["plain", "both"], steps=400, at_once=8))
TINY = dict(cases=["tiny:4x4x16"], repeats=1, losses=2, losses_case="tiny:4x4x16", memory=["tiny:4x4x16"],
            workers=[0, 1], loader=dict(backbone="tiny", batch_size=2, frames=2, size=16), batches=2,
            train=dict(backbone="tiny", frames=2, size=16, batch_size=2, warmup_steps=1, queue_size=8),
            seeds=1, least_seconds=1, readers=0, most_steps=2, later=0,
            ladder=dict(seeds=[0], arms=["random", "be"], at_once=2, steps=1, videos=12,
                        change=["frames=2", "size=16", "batch_size=2", "queue_size=8", "warmup_steps=0"]),
            leaderboard=dict(rows=["untrained", "moco"], seeds=[0], arms=["plain"], steps=1, videos=24, at_once=1))
FRAME = 112, 149  # of the pack; what comes from it is cut to 112² or less
ARMS = {"moco": dict(distractor="none", negative="other_video"), "be": {}}
SLOW = ("with compile",)  # contestants of step.py that take minutes; the part `losses` compiles once


class Session:
    """Device, sizes, clock and record of a call."""

    def __init__(self, options):
        self.start, self.limit = time.monotonic(), 60 * options.minutes
        self.device = pick_device("cpu" if options.rehearse and not torch.cuda.is_available() else "auto")
        self.sizes, self.out = TINY if options.rehearse else FULL, Path(options.out)
        self.footage = os.path.abspath(options.footage) if options.footage else ""
        self.rehearse, self.scratch = options.rehearse, tempfile.TemporaryDirectory()
        self.pack = Path(self.scratch.name, "pack")
        self.record: dict = {"rehearsal": options.rehearse, "minutes": options.minutes, "done": [], "left_out": {},
                             "failed": {}}

    def left(self):
        return self.limit - (time.monotonic() - self.start)

    def allows(self, what, seconds):
        """Whether that many seconds are left; if not, `what` is noted as left out."""
        if not self.rehearse and self.left() < seconds:
            self.record["left_out"][what] = f"wants {seconds:.0f} s, {self.left():.0f} s are left"
            return False
        return True

    def save(self):
        self.record["seconds"] = round(time.monotonic() - self.start, 1)
        text = json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.out, lambda temporary: temporary.write_text(text, encoding="utf8"))

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self):
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def elsewhere(code, timeout, *arguments):
    """Run a line of Python in a process of its own, in which this file is the module `gpu`."""
    start = "import sys; sys.path[:0] = [sys.argv[1]]; import gpu; "
    return subprocess.run([sys.executable, "-c", start + code, str(ROOT / "benchmarks"), *arguments],
                          capture_output=True, text=True, cwd=ROOT, timeout=timeout)


def about(session):
    """Versions, the card, and the best that it does: a matrix product, copies."""
    gpu, record = session.device.type == "cuda", session.record
    commit = "unknown"
    with suppress(OSError):
        commit = steps.commit()
    record["about"] = {"machine": machine(session.device), "commit": commit, "python": platform.python_version(),
                       "torch": torch.__version__, "cpu cores": os.cpu_count()}
    if gpu:
        card: Any = torch.cuda.get_device_properties(session.device)
        record["about"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gpu": card.name,
                            "gib": round(card.total_memory / 2**30, 1), "multiprocessors": card.multi_processor_count,
                            "capability": f"{card.major}.{card.minor}"}
    record["ceilings"] = {amp: ceilings(session.device, amp)._asdict() for amp in ("fp32", "bf16")
                          if gpu or amp == "fp32"}
    yield


def gpu_tests(session):
    """The tests marked `cuda`; a rehearsal only collects them."""
    if not session.allows("tests", 60):
        return
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py"))
             if "pytest.mark.cuda" in path.read_text(encoding="utf8")]
    done = elsewhere("import pytest; sys.exit(pytest.main(sys.argv[2:]))", max(60, min(180, session.left() / 3)), "-q",
                     "-m", "cuda", "-p", "no:cacheprovider", *files, *["--collect-only"] * session.rehearse)
    session.record["tests"] = {"exit": done.returncode, "says": done.stdout.strip().splitlines()[-8:]}
    yield


def speed(session):
    """Our step, each switch off, and the plain float32 step, on the same batches; then the parts of our step."""
    found, reports = (session.record.setdefault(key, {}) for key in ("speed", "bench"))
    for case in session.sizes["cases"]:
        if not session.allows(f"speed {case}", 45):
            continue
        config = steps.parse_case(case)
        skip = list(SLOW)
        if session.rehearse:
            skip += ["without batched augmentation", "without batched distractor", "channels-last", "default order",
                     "with joint", "with recompute"]
        rows = steps.compare(config, session.device, session.sizes["repeats"], skip)
        session.free()
        work = trace(config).work(config.batch_size)
        ours: Any = rows[0]
        rate = 1e3 * work / ours["wall_ms"]
        best = session.record["ceilings"].get("bf16", session.record["ceilings"]["fp32"])
        found[case] = {"rows": rows, "flop": work, "flop_per_second": rate, "of_matrix": rate / best["matrix"]}
        yield
        source = RandomVideos(64, 3 * config.frames + 8, *config.frame_size)
        parts, whole, best = measure(config, session.sizes["repeats"], source)
        report = BenchReport({"machine": machine(session.device), "backbone": config.backbone, "frames": config.frames,
                              "size": config.size, "batch_size": config.batch_size,
                              "numbers": "bf16" if session.device.type == "cuda" else "fp32"}, parts, whole, best)
        reports[case] = report.as_dict()
        session.free()
        yield


def losses(session):
    """The same steps in float32, in bfloat16, and compiled: losses, milliseconds of a step, seconds until the first."""
    case, count = session.sizes["losses_case"], session.sizes["losses"]
    config = override(steps.parse_case(case), steps=10 * count, warmup_steps=0)
    ways = {"fp32": dict(amp="fp32"), "bf16": dict(amp="bf16"), "bf16, compile": dict(amp="bf16", compile=True)}
    found = session.record.setdefault("losses", {"case": case})
    for name, changes in ways.items():
        compiled = bool(changes.get("compile"))
        if (session.rehearse and name != "fp32") or not session.allows(f"losses {name}", 180 if compiled else 20):
            continue
        begin = time.monotonic()
        runner = steps.OurStep(override(config, **changes), session.device)
        source = RandomVideos(2 * config.batch_size, 3 * config.frames + 8, *config.frame_size)
        loader = build_loader(config, runner.method.windows(config), source)
        values, seconds, first = [], [], 0.0
        for step, batch in zip(range(count), loader):
            session.wait()
            start = time.perf_counter()
            values.append(runner(batch["clips"].to(session.device), step))
            session.wait()
            seconds.append(time.perf_counter() - start)
            first = first or time.monotonic() - begin
        found[name] = {"losses": values, "ms": 1e3 * sorted(seconds)[len(seconds) // 2], "first": round(first, 1)}
        session.free()
        yield


def memory(session):
    """Peak memory of a step as the plan has it and as the allocator has it, and what the card says is used besides."""
    found = session.record.setdefault("memory", {})
    for case in session.sizes["memory"]:
        for name, changes in {"bf16": {}, "fp32": dict(amp="fp32"),
                              "bf16, recompute": dict(activations="recompute")}.items():
            if not session.allows(f"memory {case} {name}", 15) or (session.rehearse and changes):
                continue
            gpu = session.device.type == "cuda"
            config = override(steps.parse_case(case), **{"amp": "bf16" if gpu else "fp32"} | changes)
            row = found[f"{case} {name}"] = {"planned": trace(config).peak(config.batch_size)}
            if gpu:
                session.free()
                row |= measured_memory(config, session.device)
                session.free()
            yield


def measured_memory(config, device):
    run = restore(config, Path(), device, None)
    asked = run.method.windows(config)
    clips = torch.zeros(config.batch_size, asked.count, config.frames, 3, *config.frame_size, dtype=torch.uint8,
                        device=device)
    for step in range(3):
        if step == 2:
            torch.cuda.reset_peak_memory_stats(device)
        train_step(run.method, {"clips": clips}, run.optimizer, step, config)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.max_memory_reserved(device)
    return {"allocated": torch.cuda.max_memory_allocated(device), "reserved": reserved,
            "besides": total - free - torch.cuda.memory_reserved(device)}


def encode_with_opencv(path, settings):
    """`encode_video` of a pack, where there is no PyAV: the bytes of every frame in order, their height and width."""
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    capture, stored, size = cv2.VideoCapture(str(path)), [], (0, 0)
    while True:
        there, image = capture.read()
        if not there:
            break
        size = settings.size(*image.shape[:2])
        image = cv2.cvtColor(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        stored.append(frame_to_bytes(image, settings.codec, settings.quality))
    if not stored:
        raise VideoError(f"{path}: OpenCV gives no frame")
    return stored, size


def make_pack(footage, out, workers):
    """Frames 112 pixels high, JPEG of quality 90."""
    if sys.modules["av"].__version__ == "0":
        write.encode_video = encode_with_opencv
    lists = [path.name for path in sorted(Path(footage).glob("*.txt"))]
    report = write.pack(footage, lists, out, short_side=112, workers=workers, shard_videos=32, progress=False)
    print(json.dumps({"videos": report.videos, "problems": report.problems, "lists": lists,
                      "decoder": "OpenCV" if write.encode_video is encode_with_opencv else "PyAV"}))


def pack(session):
    """Pack the footage, in a process that has not used the GPU. Every video must have as many frames as at home."""
    if not session.allows("pack", 120):
        return
    start, workers = time.monotonic(), str(max(1, session.sizes["readers"]))
    done = elsewhere("gpu.make_pack(*sys.argv[2:4], int(sys.argv[4]))", max(120, session.left() / 2), session.footage,
                     str(session.pack), workers)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    known, wrong = json.loads(Path(session.footage, "frames.json").read_text(encoding="utf8")), {}
    for name in found["lists"]:
        source = open_source(str(session.pack), name, frame_size=FRAME)
        wrong |= {video: [source.num_frames(i), known[video]] for i, video in enumerate(source.names)
                  if source.num_frames(i) != known[video]}
    session.record["pack"] = found | {"other_lengths": wrong, "seconds": time.monotonic() - start}
    yield


def on_pack(session, **changes):
    """A run on the pack."""
    shared: dict = dict(data=str(session.pack), split="pretrain.txt", frame_size=FRAME, frames=16, size=112,
                        stride=2, negative_offset=16, steps=10**6, device=str(session.device))
    return PretrainConfig(**shared | changes)


def loader(session):
    """What share of a step is spent waiting for clips of the pack, with so many loader processes."""
    found = session.record.setdefault("loader", {})
    for workers in session.sizes["workers"]:
        if not session.allows(f"loader {workers}", 30):
            continue
        config = on_pack(session, workers=workers, **session.sizes["loader"])
        run = restore(config, Path(), session.device, None)
        batches = prefetch(build_loader(config, run.method.windows(config), build_source(config),
                                        pin=session.device.type == "cuda"), session.device)
        waited, took, warm = 0.0, 0.0, 3 if not session.rehearse else 1
        for step in range(warm + session.sizes["batches"]):
            start = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            train_step(run.method, batch, run.optimizer, step, config)
            session.wait()
            if step >= warm:
                waited, took = waited + got - start, took + time.perf_counter() - start
        batches.close()
        found[str(workers)] = {"waiting": waited / took, "clips_per_second": config.batch_size
                               * session.sizes["batches"] / took}
        session.free()
        yield


def judge(session, checkpoint, config):
    """Retrieval, linear probe and kNN of a checkpoint on the lists of every set in the pack."""
    backbone, found = load(checkpoint).to(session.device), {}
    sets = [name.removesuffix("-val.txt") for name in session.record["pack"]["lists"] if name.endswith("-val.txt")]
    for name in sets:
        sources = [open_source(str(session.pack), f"{name}-{part}.txt", labelled=True, frame_size=config.frame_size)
                   for part in ("train", "val")]
        features = [extract_features(backbone, source, 2, config.frames, config.stride, config.size,
                                     workers=session.sizes["readers"], progress=False) for source in sources]
        (train, train_y), (test, test_y) = ((f.features, f.labels) for f in features)
        recall = retrieval(train, train_y, test, test_y, (1, 5) if len(train) >= 5 else (1,))
        found[name] = {"queries": len(test), "gallery": len(train), **{f"R@{k}": v for k, v in recall.recall.items()},
                       "chance R@1": recall.chance[1],
                       "linear probe": linear_probe(train, train_y, test, test_y).accuracy,
                       "knn": knn(train, train_y, test, test_y, k=min(20, len(train))).accuracy}
    return found


def pretraining(session):
    """MoCo and MoCo + BE on the training lists, as many steps and seeds as the time allows, judged on all val lists."""
    found = session.record.setdefault("pretraining", {"rows": []})
    if not session.allows("pretraining", 150):
        return
    sizes, rows = session.sizes, found["rows"]
    config = on_pack(session, out=session.scratch.name, log_every=10, checkpoint_every=10**6, checks=False,
                     workers=sizes["readers"], **sizes["train"])

    def run(arm, seed, count):
        start = time.monotonic()
        done = pretrain(override(config, name=f"{arm}{seed}", seed=max(0, seed), steps=count, **ARMS.get(arm, {})),
                        progress=False)
        trained = time.monotonic()
        row = {"arm": arm, "seed": seed, "steps": count, "train_seconds": trained - start,
               **{key: done.history[-1][key] for key in ("loss", "clips_per_second") if done.history}}
        return done, row

    done, row = run("random", 0, 0)
    start = time.monotonic()
    rows.append(row | {"sets": judge(session, done.checkpoint, config)})
    judging = time.monotonic() - start
    yield
    probe = run("be", -1, 20 if not session.rehearse else 1)[1]
    start_up = probe["train_seconds"] / 2
    budget = session.left() - 20 - sizes["later"]
    seeds = max(1, min(sizes["seeds"], int(budget / 2 / (sizes["least_seconds"] + judging + start_up))))
    each = budget / (2 * seeds) - judging - start_up
    count = max(1, min(sizes["most_steps"], int(0.9 * each * probe["clips_per_second"] / config.batch_size)))
    videos = len(build_source(config))
    found |= {"steps": count, "seeds": seeds, "videos": videos, "epochs": count * config.batch_size / videos,
              "judging_seconds": judging, "settings": sizes["train"] | {"data": "the pretrain.txt of the pack"}}
    for seed in range(seeds):
        for arm in ARMS:
            expected = count * config.batch_size / probe["clips_per_second"] + judging
            if not session.allows(f"pretraining {arm} {seed}", expected):
                continue
            done, row = run(arm, seed, count)
            rows.append(row | {"sets": judge(session, done.checkpoint, config)})
            session.free()
            yield


def make_small_packs(footage, out):
    """A pack of each set in a folder of its name, frames of the size that the ladder looks at."""
    if sys.modules["av"].__version__ == "0":
        write.encode_video = encode_with_opencv
    for folder in sorted(Path(footage, "videos").iterdir()):
        write.pack(str(folder), ("train.txt", "val.txt"), str(Path(out, folder.name)), short_side=56, progress=False)


CALLS = {"ladder": "from be_nb.studies.ladder import ladder as fill, LadderConfig as Config",
         "leaderboard": "from be_nb.studies.leaderboard import leaderboard as fill, LeaderboardConfig as Config"}


def fill_cells(session, study, jobs, read):
    """Cells of a study, many small runs at once on one GPU; `read` gives those that are done, every few seconds.

    A job is the settings of one process. What a process did not finish is said in `faults`.
    """
    sizes = session.sizes[study]
    found = session.record[study] = {"settings": sizes, "faults": []}

    def run(job):
        job |= dict(device=str(session.device), out=str(Path(session.scratch.name, study)))
        try:
            done = elsewhere(f"{CALLS[study]}; fill(Config(**gpu.json.loads(sys.argv[2])))",
                             max(1, session.left() - 5), json.dumps(job))
        except subprocess.TimeoutExpired:
            return "the time was over"
        return done.stderr.strip().splitlines()[-1] if done.returncode else ""

    with ThreadPoolExecutor(sizes["at_once"]) as pool:
        waiting = {pool.submit(run, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, timeout=15)
            found["faults"] += sorted({one.result() for one in done} - {"", *found["faults"]})
            found |= read(Path(session.scratch.name, study))
            yield


def ladder(session):
    """Cells of the ladder: SceneBias, and every set of the footage as it is."""
    if not session.allows("ladder", 60):
        return
    sizes, sets, rungs = session.sizes["ladder"], Path(session.scratch.name, "sets"), ["scenebias"]
    if session.footage:
        packed = elsewhere("gpu.make_small_packs(*sys.argv[2:4])", session.left(), session.footage, str(sets))
        if packed.returncode:
            raise RuntimeError(packed.stderr.strip().splitlines()[-1])
        rungs += sorted(folder.name for folder in sets.iterdir())
    shared = {key: sizes[key] for key in ("steps", "videos", "change")}
    shared |= dict(footage=str(sets) if session.footage else "", rungs=rungs)
    jobs = [shared | dict(seeds=[seed], arms=[arm]) for seed, arm in product(sizes["seeds"], sizes["arms"])]
    yield from fill_cells(session, "ladder", jobs, lambda out: {
        "rows": [json.loads(file.read_text(encoding="utf8")) for file in sorted(out.glob("*/cell.json"))]})


def leaderboard(session):
    """Cells of the leaderboard; its record, as `be-nb leaderboard` leaves it, is what `gpu_read.py` draws."""
    if not session.allows("leaderboard", 60):
        return
    sizes = dict(session.sizes["leaderboard"])
    at_once = sizes.pop("at_once")

    def read(out):
        file = out / "leaderboard.json"
        return {"board": json.loads(file.read_text(encoding="utf8"))} if file.is_file() else {}

    yield from fill_cells(session, "leaderboard", [dict(sizes) for _ in range(at_once)], read)


PARTS = {"about": about, "tests": gpu_tests, "speed": speed, "losses": losses, "memory": memory, "pack": pack,
         "loader": loader, "pretraining": pretraining, "ladder": ladder,
         "leaderboard": leaderboard}


def run_parts(session, names):
    for name in names:
        missing = name in ("pack", "loader", "pretraining") and not session.footage
        if missing or (name in ("loader", "pretraining") and "pack" not in session.record):
            session.record["left_out"][name] = "no --footage was given" if missing else "there is no pack"
            session.save()
            continue
        print(f"{name}, {session.left():.0f} s left", flush=True)
        try:
            for _ in PARTS[name](session):
                session.save()
            session.record["done"].append(name)
        except Exception as error:  # whatever it is, the next part may work
            session.record["failed"][name] = traceback.format_exc().splitlines()[-6:]
            print(f"{name} failed: {error}", flush=True)
        session.save()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="for everything, the start not counted")
    parser.add_argument("--footage", help="folder made by gpu_footage.py")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="only these; about first")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes; on the CPU where there is no GPU")
    parser.add_argument("--out", required=True, help="JSON file of the record")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. --rehearse runs the same with tiny sizes on the CPU.")
    session = Session(options)
    run_parts(session, ["about", *(name for name in options.parts if name != "about")])
    print(re.sub(r"[{}'\"]", "", f"done: {', '.join(session.record['done'])}; left out: {session.record['left_out']}; "
                                 f"failed: {list(session.record['failed'])}"))
    return 1 if session.record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
