#!/bin/sh
# Every header compiles on its own, without exceptions and run-time types, without a warning.
set -u
mkdir -p "$WORK" && cd "$SOURCE/include" || exit 1
check() {
  unit="$WORK/$(echo "$1" | tr / _).cpp"
  echo "#include <$1>" > "$unit"
  $CXX @"$FLAGS" -fno-exceptions -fno-rtti -Wall -Wextra -Wpedantic -Wshadow -Werror -fsyntax-only "$unit" || echo "$1 does not compile alone"
}
export CXX FLAGS WORK
bad=$(find lowbit -name '*.hpp' | sort | { running=0; while read -r header; do
  check "$header" 2>&1 & running=$((running + 1))
  [ $((running % 2)) -ne 0 ] || wait
done; wait; })
[ -z "$bad" ] || { echo "$bad"; exit 1; }
