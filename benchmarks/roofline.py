#!/usr/bin/env python3
"""Draws a run of lowbit_bench as a roofline: operations a second over operations a byte, under the limits that the same run measured.

    lowbit_bench --benchmark_filter='^matmul/.*/avx2/4096x4096/[0-9]+/1$' --benchmark_out=run.json --benchmark_out_format=json
    roofline.py run.json roofline.svg

Bytes are those that a product must move once: packed weights, float activations, float results. Needs matplotlib."""

import argparse
import json
import sys

try:
    import matplotlib
except ImportError:
    sys.exit("roofline.py: matplotlib is not installed (Debian: python3-matplotlib)")
matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lowbit"  # the same run, the same file
import matplotlib.pyplot as plt
from matplotlib import ticker


def points_of(run):
    """(format, instruction set, tokens) and its (operations per byte, operations per second), medians where a row was repeated."""
    points = {}
    for row in run["benchmarks"]:
        parts = row["name"].split("/")
        if parts[0] != "matmul" or "weights/s" not in row or row.get("aggregate_name", "median") != "median":
            continue
        format_name, unit, shape, tokens, threads = parts[1], parts[2], parts[3], int(parts[4]), parts[5]
        if threads != "1":
            continue
        rows, cols = map(int, shape.split("x"))
        operations = 2.0 * rows * cols * tokens
        moved = rows * cols * row["bytes/s"] / row["weights/s"] + 4.0 * tokens * (rows + cols)
        points[format_name, unit, tokens] = (operations / moved, operations * row["weights/s"] / (rows * cols))
    return points


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="what lowbit_bench wrote as JSON")
    parser.add_argument("picture", help="the SVG to write")
    options = parser.parse_args()
    with open(options.run) as file:
        run = json.load(file)
    points = points_of(run)
    if not points:
        sys.exit(f"roofline.py: {options.run} has no rows matmul/FORMAT/UNIT/MxK/TOKENS/1")

    bandwidth = float(run["context"]["read_roof"])
    figure, axes = plt.subplots(figsize=(9, 6))
    intensities = [i for i, _ in points.values()]
    low, high = min(intensities) / 2, max(intensities) * 2
    for unit in sorted({unit for _, unit, _ in points}):
        peak = float(run["context"].get(f"int8_roof_{unit}", 0))
        if peak == 0:
            continue
        xs = [low, peak / bandwidth, high]
        axes.plot(xs, [x * bandwidth / 1e9 if x * bandwidth < peak else peak / 1e9 for x in xs], color="black", linewidth=1)
        axes.annotate(f"{unit}: {peak / 1e9:.0f} GOP/s", (high, peak / 1e9), ha="right", va="bottom", fontsize=8)

    formats = sorted({name for name, _, _ in points})
    markers = "os^vD<>ph*Xd+x1234"
    for k, name in enumerate(formats):
        own = sorted(points[key] for key in points if key[0] == name)
        axes.plot([x for x, _ in own], [y / 1e9 for _, y in own], marker=markers[k % len(markers)], markersize=4, linewidth=0.5,
                  color=plt.cm.tab20(k % 20), label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        for formatter in (axis.set_major_formatter, axis.set_minor_formatter):
            formatter(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.set_xlim(low, high)
    axes.annotate(f"memory: {bandwidth / 1e9:.1f} GB/s", (low * 1.7, low * 1.5 * bandwidth / 1e9), va="bottom", fontsize=8)
    axes.set_xlabel("operations a byte (1, 4, 16, 64, 512 tokens from the left)")
    axes.set_ylabel("GOP/s")
    axes.legend(fontsize=7, ncol=2)
    axes.grid(True, which="both", linewidth=0.2)
    figure.tight_layout()
    figure.savefig(options.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
