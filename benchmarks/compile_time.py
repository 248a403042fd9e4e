#!/usr/bin/env python3
"""Seconds and memory that the compiler takes: to include each header, and to compile the kernels of one format, and of one more, for every
instruction set. `cmake --build build/test --target compile_time` runs it with the preset's compiler; the least of three runs counts."""
import argparse
import os
import subprocess
import sys
import tempfile

FORMATS = [
    "struct one { static constexpr lowbit::format_spec spec = lowbit::uniform({.bits = 3, .group = 40}); };",
    "struct more { static constexpr lowbit::format_spec spec = lowbit::uniform({.bits = 5, .group = 40}); };",
]


def measure(command, source, folder, runs):
    """(seconds of processor time, peak megabytes) of the quickest of some runs."""
    path = os.path.join(folder, "probe.cpp")
    with open(path, "w") as f:
        f.write(source)
    best = None
    for _ in range(runs):
        # A process of its own: ru_maxrss of children is the largest of all so far.
        pid = os.fork()
        if pid == 0:
            code = subprocess.run(command + [path]).returncode
            os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        if status != 0:
            sys.exit(f"does not compile: {source}")
        seconds, megabytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        best = min(best or (seconds, megabytes), (seconds, megabytes))
    return best


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--compiler", required=True)
    p.add_argument("--flags", required=True, help="a file of flags, as @FILE")
    p.add_argument("--include", required=True, help="the folder that holds lowbit/")
    p.add_argument("--isa", action="append", default=[], metavar="NAME=FLAG,FLAG")
    p.add_argument("--runs", type=int, default=3)
    o = p.parse_args()
    compiler = [o.compiler, "@" + o.flags]
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'including':44}{'s':>8}{'MB':>8}")
        for root, _, files in sorted(os.walk(os.path.join(o.include, "lowbit"))):
            for name in sorted(files):
                header = os.path.relpath(os.path.join(root, name), o.include)
                seconds, megabytes = measure(compiler + ["-fsyntax-only"], f"#include <{header}>\n", folder, o.runs)
                print(f"{header:44}{seconds:8.2f}{megabytes:8.0f}", flush=True)
        print(f"\n{'compiling kernels, -O3':44}{'s':>8}{'MB':>8}{'one more format, s':>22}")
        total = 0.0
        for isa in o.isa:
            name, _, flags = isa.partition("=")
            command = compiler + flags.split(",") + ["-O3", "-c", "-o", os.path.join(folder, "probe.o")]
            times = []
            for formats in (["one"], ["one", "more"]):
                source = "#include <lowbit/kernel/isa_unit.hpp>\n" + "\n".join(FORMATS) + f"\nLOWBIT_ISA_UNIT({name}, {', '.join(formats)})\n"
                times.append(measure(command, source, folder, o.runs))
            total += times[1][0] - times[0][0]
            print(f"{name:44}{times[0][0]:8.2f}{times[0][1]:8.0f}{times[1][0] - times[0][0]:22.2f}", flush=True)
        print(f"{'one more format, all of them':44}{'':16}{total:22.2f}")


main()
