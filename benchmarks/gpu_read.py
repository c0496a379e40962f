"""The record of `benchmarks/gpu.py` as tables for the results page, and which of its targets were met.

    python benchmarks/gpu_read.py gpu.json
"""
import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from be_nb.studies.ladder import rung_table
from be_nb.studies.leaderboard import headline_table

SHARES = {"c3d": 0.25, "r3d18": 0.15, "i3d": 0.15}  # of the measured bf16 matrix rate that a step should reach


def table(head, rows):
    """Rows as a Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" + "---:|" * (len(head) - 1), *lines[1:]])


def verdict(what, value, met):
    return f"- {'met' if met else '**missed**'}: {what}: {value}"


def read_about(record):
    about, ceilings = record["about"], record["ceilings"]
    rows = [(amp, f"{c['matrix'] / 1e12:.1f}", f"{c['copy'] / 1e9:,.0f}", f"{c['link'] / 1e9:.1f}")
            for amp, c in ceilings.items()]
    return [f"{about['machine']}; " + ", ".join(f"{k} {v}" for k, v in about.items() if k != "machine"),
            table(("ceilings", "matrix TFLOP/s", "copy GB/s", "link GB/s"), rows)]


def read_tests(record):
    says = record["tests"]["says"]
    return [verdict("tests marked cuda", says[-1] if says else "nothing", record["tests"]["exit"] == 0)]


def read_speed(record):
    found = []
    for case, one in record["speed"].items():
        rows = [(r["step"], f"{r['wall_ms']:.1f}", f"{r['wall_ratio']:.2f}", f"{r['first_loss']:.4f}")
                for r in one["rows"]]
        found.append(table((case, "ms", "÷ ours", "first loss"), rows))
        plain = one["rows"][-1]["wall_ratio"]
        found.append(verdict(f"{case} against the plain fp32 step, ≥ 4×", f"{plain:.1f}×", plain >= 4))
        network, side = case.split(":")[0], int(case.split("x")[-1])
        if network in SHARES and (network != "i3d" or side == 224):
            share, least, rate = one["of_matrix"], SHARES[network], one["flop_per_second"] / 1e12
            found.append(verdict(f"{case} of the matrix rate, ≥ {least:.0%}", f"{share:.1%} ({rate:.1f} TFLOP/s)",
                                 share >= least))
    return found


def read_bench(record):
    found = []
    for case, report in record["bench"].items():
        total = sum(part["seconds"] for part in report["parts"])
        rows = [(p["name"], f"{1e3 * p['seconds']:.2f}", f"{p['seconds'] / total:.1%}", f"{p['share']:.1%}")
                for p in report["parts"]]
        found.append(table((f"parts of {case}", "ms", "of the step", "of its ceiling"), rows))
        views = [p for p in report["parts"] if p["name"] in ("augment", "distractor")]
        seconds, moved = sum(p["seconds"] for p in views), sum(p["bytes"] for p in views)
        share = moved / seconds / report["ceilings"]["copy"]
        found.append(verdict(f"{case}: augmentation and distractor, ≥ 60 % of copy", f"{share:.0%}", share >= 0.6))
        if case.startswith("i3d"):
            found.append(verdict(f"{case}: augmentation and distractor, < 5 % of the step", f"{seconds / total:.1%}",
                                 seconds / total < 0.05))
    return found


def read_losses(record):
    ways = {name: one for name, one in record["losses"].items() if isinstance(one, dict)}
    exact = ways["fp32"]["losses"]
    rows = [(name, f"{one['ms']:.1f}", f"{one['first']:.0f}", f"{one['losses'][0]:.5f}", f"{one['losses'][-1]:.4f}",
             f"{max(abs(a - b) / abs(b) for a, b in zip(one['losses'], exact)):.2%}") for name, one in ways.items()]
    head = record["losses"]["case"], "ms", "s to the first step", "first loss", "last loss", "largest gap"
    return [table(head, rows)]


def read_memory(record):
    gib = lambda row, key: f"{row[key] / 2**30:.2f}" if key in row else "–"
    rows = [(name, gib(row, "planned"), gib(row, "allocated"), gib(row, "reserved"), gib(row, "besides"),
             f"{row['planned'] / row['allocated']:.2f}" if "allocated" in row else "–")
            for name, row in record["memory"].items()]
    gaps = [abs(row["planned"] / row["allocated"] - 1) for row in record["memory"].values() if "allocated" in row]
    found = [table(("peak of a step, GiB", "planned", "allocated", "reserved", "besides", "planned ÷ allocated"), rows)]
    if gaps:
        found.append(verdict("peak memory as planned, within 15 %", f"at worst {max(gaps):.0%} off", max(gaps) <= 0.15))
    return found


def read_pack(record):
    one = record["pack"]
    whole = not one["problems"] and not one["other_lengths"]
    what = f"pack of {one['videos']} videos by {one['decoder']} in {one['seconds']:.0f} s, every frame there"
    return [verdict(what, f"{len(one['problems'])} problems, {len(one['other_lengths'])} other lengths", whole)]


def read_loader(record):
    rows = [(n, f"{one['waiting']:.1%}", f"{one['clips_per_second']:.0f}") for n, one in record["loader"].items()]
    least = min(one["waiting"] for one in record["loader"].values())
    return [table(("loader processes", "waiting", "videos/s"), rows),
            verdict("waiting for the loader, < 5 %", f"at best {least:.1%}", least < 0.05)]


def read_pretraining(record):
    one = record["pretraining"]
    rows = []
    for name in (one["rows"][0]["sets"] if one["rows"] else ()):
        for arm in dict.fromkeys(row["arm"] for row in one["rows"]):
            runs = [row["sets"][name] for row in one["rows"] if row["arm"] == arm]
            scores = [spread([run[key] for run in runs]) for key in ("linear probe", "knn", "R@1")]
            rows.append((f"{name}, {arm}", len(runs), *scores, f"{100 * runs[0]['chance R@1']:.1f}"))
    about = f"{one.get('steps', 0):,} steps, {one.get('epochs', 0):.0f} epochs of {one.get('videos', 0)} videos"
    return [table((f"after {about}", "seeds", "linear probe", "kNN", "R@1", "chance R@1"), rows)]


def read_ladder(record):
    one = record["ladder"]
    settings = ", ".join(f"{key} {value}" for key, value in one["settings"].items())
    return [f"settings: {settings}", rung_table(one["rows"]), *(f"- not done: {fault}" for fault in one["faults"])]


def read_leaderboard(record):
    one = record["leaderboard"]
    settings = ", ".join(f"{key} {value}" for key, value in one["settings"].items())
    tables = [headline_table(one["board"])] if "board" in one else []
    return [f"settings: {settings}", *tables, *(f"- not done: {fault}" for fault in one["faults"])]


def spread(values):
    """Mean in percent, and the standard deviation over the seeds where there are several."""
    text = f"{100 * mean(values):.1f}"
    return f"{text} ± {100 * stdev(values):.1f}" if len(values) > 1 else text


READERS = {"about": read_about, "tests": read_tests, "speed": read_speed, "bench": read_bench, "losses": read_losses,
           "memory": read_memory, "pack": read_pack, "loader": read_loader, "pretraining": read_pretraining,
           "ladder": read_ladder, "leaderboard": read_leaderboard}


def page(record):
    """The whole record as Markdown; parts that are not in it, or empty, are left out and named."""
    parts = [f"{record['seconds']:.0f} s of {60 * record['minutes']:.0f}"
             + (" (a rehearsal: these numbers mean nothing)" if record["rehearsal"] else "")]
    for name, reader in READERS.items():
        if record.get(name):
            parts += [f"### {name.capitalize()}", *reader(record)]
    parts += [f"- left out: {what}: {why}" for what, why in record["left_out"].items()]
    parts += [f"- **failed**: {what}: {lines[-1]}" for what, lines in record["failed"].items()]
    return "\n\n".join(parts) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", help="JSON file that gpu.py has written")
    print(page(json.loads(Path(parser.parse_args(arguments).record).read_text(encoding="utf8"))))


if __name__ == "__main__":
    sys.exit(main())
