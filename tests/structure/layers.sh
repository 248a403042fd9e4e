#!/bin/sh
# Includes point only downward; core is the standard library alone; intrinsics stay in simd/, Eigen in calibration/ and above; headers are short.
set -u
cd "$SOURCE/include/lowbit" || exit 1
order="core format simd kernel matrix calibration quantise adapt io glue"
bad=0
complain() { echo "$1"; bad=1; }
rank() { n=0; for layer in $order; do n=$((n + 1)); [ "$layer" = "$1" ] && { echo $n; return; }; done; echo 0; }

for header in $(find . -name '*.hpp' | sed 's|^\./||'); do
  case $header in */*) layer=${header%%/*}; own=$(rank "$layer");; *) continue;; esac
  [ "$own" -ne 0 ] || complain "$header: '$layer' is not a layer"
  for included in $(sed -n 's|^ *# *include *[<"]lowbit/\([^>"]*\)[>"].*|\1|p' "$header"); do
    other=$(rank "${included%%/*}")
    [ "$other" -ne 0 ] || complain "$header includes $included, which is in no layer"
    [ "$other" -le "$own" ] || complain "$header includes $included, which is above it"
    [ -f "$included" ] || complain "$header includes $included, which does not exist"
  done
  others=$(sed -n 's|^ *# *include *[<"]\([^>"]*\)[>"].*|\1|p' "$header" | grep -v '^lowbit/')
  for included in $others; do
    case $included in
      Eigen/*|unsupported/*) [ "$own" -ge "$(rank calibration)" ] || complain "$header includes $included below calibration/";;
      xsimd/*) [ "$layer" = simd ] || complain "$header includes $included outside simd/";;
      nlohmann/*) [ "$layer" = io ] || complain "$header includes $included outside io/";;
      */*.hpp) complain "$header includes $included, which is nobody's";;
    esac
  done
  if [ "$layer" != simd ] && grep -nE '_mm(256|512)?_[a-z]|__m(128|256|512)|[a-z]+intrin\.h|arm_neon\.h|__builtin_ia32' "$header"; then
    complain "$header uses intrinsics outside simd/"
  fi
  lines=$(wc -l < "$header")
  [ "$lines" -le 400 ] || complain "$header has $lines lines"
done
exit $bad
