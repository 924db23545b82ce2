"""How rare may the useful warmup be? Bases that write the chain in less and less of their samples, every objective.

    python recipes/logiqa/relay/make_base.py --reader runs/reader     # once: half an hour on one core
    python recipes/logiqa/relay/curve.py --reader runs/reader --output_dir runs/curve
    python recipes/logiqa/relay/curve.py --output_dir runs/curve --draw   # only the table and the picture again

For each share it makes a base, in two minutes, and compares the arms on it with `warmup-peft compare`; what is
finished is not repeated. Then it prints a table of accuracies and writes `curve.png`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ARMS = "sft,jensen,log_mean_exp,latro,verifree,posterior,rlpr,anchored"
SHARES, NUM_WARMUPS = "0.05,0.1,0.2,0.3,0.6", "16"
REACHED = 0.9  # accuracy from which a warmup counts as found
OPTIONS = {
    "max_steps": 200,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-3,
    "hindsight_steps": 100,
    "max_train_samples": 3200,
    "max_samples": 256,
    "sampled_warmups": 2,
    "curve_points": 0,
    "eval_batch_size": 128,
}

Curves = dict[tuple[str, int], dict[float, list[float]]]  # (arm, K) -> share -> accuracies of the seeds


def run(*command: object) -> None:
    print("$", *command, flush=True)
    subprocess.run(list(map(str, command)), check=True)


def compare(options: argparse.Namespace, share: str, num_warmups: str) -> None:
    base = Path(options.output_dir, f"base-{share}")
    if not (base / "config.json").is_file():
        run(sys.executable, HERE / "make_base.py", "--reader", options.reader, "--chain_share", share,
            "--folder", base)  # fmt: skip
    settings = {
        "config": HERE.parent / "relay.yaml", "task": HERE / "task.py", "model_name_or_path": base,
        "output_dir": Path(options.output_dir, f"{share}-{num_warmups}"), "arms": options.arms,
        "seeds": options.seeds, "num_warmups": num_warmups, "warmup_pool_size": num_warmups, **OPTIONS,
    }  # fmt: skip
    run("warmup-peft", "compare", *(part for name, value in settings.items() for part in (f"--{name}", value)))


def read(folder: Path) -> Curves:
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*-*/runs/*/seed-*/run.json")):
        share, num_warmups = path.relative_to(folder).parts[0].split("-")
        accuracy = json.loads(path.read_text(encoding="utf-8"))["metrics"]["accuracy"]
        curves[path.parts[-3], int(num_warmups)][float(share)].append(accuracy)
    return curves


def draw(curves: Curves, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    arms = sorted({arm for arm, _ in curves})
    most = max(num_warmups for _, num_warmups in curves)
    for (arm, num_warmups), by_share in sorted(curves.items(), key=lambda item: (-item[0][1], item[0][0])):
        if arm == "sft" and num_warmups != most:  # it has no warmups, so it is the same
            continue
        style = {"color": f"C{arms.index(arm)}", "linestyle": "-" if num_warmups == most else ":"}
        shares = sorted(by_share)
        means = [statistics.mean(by_share[share]) for share in shares]
        axes.plot(shares, means, marker="o", label=arm if arm == "sft" else f"{arm}, K {num_warmups}", **style)
    axes.axhline(REACHED, color="grey", linewidth=0.5, linestyle="--")
    axes.set(xscale="log", xlabel="share of the base's samples that are right", ylabel="accuracy", ylim=(0, 1.05))
    axes.set_xticks(ticks := sorted({share for by_share in curves.values() for share in by_share}))
    axes.set_xticklabels([f"{share:.0%}" for share in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small", bbox_to_anchor=(1.01, 1), loc="upper left")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", help="folder that `make_base.py --reader` wrote")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--shares", default=SHARES)
    parser.add_argument("--num_warmups", default=NUM_WARMUPS, help="values of K, separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--draw", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.draw:
        if options.reader is None:
            parser.error("--reader is not given. Make it with make_base.py --reader <folder>.")
        for num_warmups in options.num_warmups.split(","):
            for share in options.shares.split(","):
                compare(options, share, num_warmups)
    curves = read(Path(options.output_dir))
    if not curves:
        parser.error(f"{options.output_dir} holds no finished run.")
    for (arm, num_warmups), by_share in sorted(curves.items()):
        accuracies = (f"{share:.0%}: {' '.join(f'{x:.3f}' for x in xs)}" for share, xs in sorted(by_share.items()))
        print(f"{arm:14} K {num_warmups:<3}", "; ".join(accuracies))
    draw(curves, Path(options.output_dir, "curve.png"))


if __name__ == "__main__":
    main()
