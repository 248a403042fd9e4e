#!/bin/sh
# The units of instruction sets that this machine lacks compile as well. Arguments: NAME FLAGS, again and again, flags separated by commas.
set -u
mkdir -p "$WORK"
bad=0
while [ $# -gt 1 ]; do
  printf '#include <lowbit/kernel/isa_unit.hpp>\nLOWBIT_ISA_UNIT(%s)\n' "$1" > "$WORK/$1.cpp"
  $CXX @"$FLAGS" $(echo "$2" | tr ',' ' ') -DLOWBIT_UNROLL= -Wall -Wextra -Wpedantic -Wshadow -Werror -fsyntax-only "$WORK/$1.cpp" || { echo "unit $1 does not compile"; bad=1; }
  shift 2
done
exit $bad
