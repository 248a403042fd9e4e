#!/bin/sh
# Every function that a per-architecture unit defines for others to see names its architecture. Any other could replace, for the whole
# program, a function of the same name that was compiled for the baseline. (Constants, such as a format's spec, hold no instructions, and
# units that are compiled for the baseline have nothing to leak.)
set -u
mkdir -p "$WORK" && cd "$WORK" && rm -f ./*.o && ar x "$1" || exit 1
bad=0
count=0
for unit in *.o; do
  isa=${unit%%.*}
  count=$((count + 1))
  case $isa in emulated|neon64) continue;; esac
  leaked=$("${NM:-nm}" "$unit" | awk 'NF == 3 && $2 ~ /^[TWi]$/ { print $3 }' | grep -v "$isa" | grep -v '^DW\.ref\.__gxx_personality_v0$')
  [ -z "$leaked" ] || { echo "$unit defines, without naming $isa:"; echo "$leaked" | c++filt | head; bad=1; }
done
[ "$count" -ge 2 ] || { echo "only $count units in $1"; bad=1; }
exit $bad
