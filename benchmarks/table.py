#!/usr/bin/env python3
"""Prints runs of lowbit_bench as Markdown: a row for each format, what one instruction set reached of the limits that the same run measured.

    lowbit_bench --benchmark_filter='/avx2/(4096x4096|1024x4096)/' --benchmark_out=run.json --benchmark_out_format=json
    table.py run.json --unit avx2 [--shape 4096x4096]

A cell is the share of a limit in percent: of reading memory (one token, by the bytes of packed weights; rounding to nearest, by those of the
floats), of writing it (de-quantising), of integer dots (4 tokens and more) or of float multiply-adds (exact products). Panels are in
GB/s of packed bytes, unpacking and packing in 10^9 weights/s, two cores in times the speed of one. Of several runs of a row, the faster of
the two in the middle, or, where others disturb most runs, the fastest. A unit with matrix registers is compared with their peak, or with --dots."""

import argparse
import json
import sys


def share(row):
    return f"{100 * row['of_roof']:.0f}" if "of_roof" in row else ""


def per_second(counter):
    return lambda row: f"{row[counter] / 1e9:.1f}"


# Heading, and a cell's operation, tokens and threads, and what is said of it.
COLUMNS = [
    ("1 token", "matmul", 1, 1, share), ("4", "matmul", 4, 1, share), ("16", "matmul", 16, 1, share), ("512", "matmul", 512, 1, share),
    ("512 int16", "matmul_int16", 512, 1, share), ("512 bf16", "matmul_bf16", 512, 1, share), ("512 exact", "matmul_exact", 512, 1, share),
    ("de-quantise", "dequantise", 0, 1, share), ("round", "quantise", 0, 1, share), ("panels", "build", 0, 1, per_second("bytes/s")),
    ("unpack", "unpack", 0, 1, per_second("weights/s")), ("pack", "pack", 0, 1, per_second("weights/s")),
]


def rows_of(runs, unit, fastest):
    """The middle one of each row's runs, or the fastest: (operation, format, shape, tokens, threads) and its counters."""
    repeated = {}
    for row in (row for run in runs for row in run["benchmarks"]):
        parts = row["name"].split("/")
        if len(parts) < 6 or parts[2] != unit or row.get("run_type") == "aggregate" or row.get("error_occurred"):
            continue
        repeated.setdefault((parts[0], parts[1], parts[3], int(parts[4]), int(parts[5])), []).append(row)
    return {key: sorted(rows, key=lambda row: row["real_time"])[0 if fastest else (len(rows) - 1) // 2] for key, rows in repeated.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="run.json", help="what lowbit_bench wrote")
    parser.add_argument("--unit", required=True, help="the instruction set, as rows name it")
    parser.add_argument("--shape", default="4096x4096", help="of the products' weights (default %(default)s)")
    parser.add_argument("--fastest", action="store_true", help="of several runs of a row the fastest")
    parser.add_argument("--dots", type=float, metavar="GOP/s", help="the peak that int8 products of several tokens are compared with")
    options = parser.parse_args()
    runs = []
    for name in options.runs:
        with open(name) as file:
            runs.append(json.load(file))
    rows = rows_of(runs, options.unit, options.fastest)
    for (operation, *_, tokens, _), row in rows.items():
        if options.dots and operation == "matmul" and tokens > 1:
            row["of_roof"] = 2 * tokens * row["weights/s"] / (options.dots * 1e9)
    formats = list(dict.fromkeys(key[1] for key in rows if key[0] == "matmul" or key[0] == "matmul_exact"))
    if not formats:
        sys.exit(f"table.py: no products of {options.unit} in {', '.join(options.runs)}")

    def cell(operation, name, tokens, threads):
        shape = next((s for o, f, s, _, _ in rows if o == operation and f == name and (s == options.shape or operation == "quantise")), None)
        return rows.get((operation, name, shape, tokens, threads))

    print("| | " + " | ".join(heading for heading, *_ in COLUMNS) + " | 2 cores, 512 |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name in formats:
        cells = []
        for _, operation, tokens, threads, say in COLUMNS:
            row = cell(operation, name, tokens, threads)
            cells.append(say(row) if row else "")
        operation = "matmul" if cell("matmul", name, 512, 1) else "matmul_exact"
        one, two = cell(operation, name, 512, 1), cell(operation, name, 512, 2)
        cells.append(f"{one['real_time'] / two['real_time']:.2f}" if one and two else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
