#!/bin/sh
# Each file of must_not_compile/ fails to compile, with the message that its first line expects, and the flags that a second may give.
set -u
bad=0
found=0
for file in "$SOURCE"/tests/structure/must_not_compile/*.cpp; do
  found=$((found + 1))
  expected=$(sed -n '1s|^// expect: ||p' "$file")
  [ -n "$expected" ] || { echo "$file: no '// expect:' in its first line"; bad=1; continue; }
  more=$(sed -n '2s|^// flags: ||p' "$file")
  if output=$($CXX @"$FLAGS" $more -fsyntax-only "$file" 2>&1); then
    echo "$file compiles"
    bad=1
  elif ! echo "$output" | grep -qF "$expected"; then
    echo "$file fails without '$expected':"
    echo "$output" | head -20
    bad=1
  fi
done
[ "$found" -ge 5 ] || { echo "only $found cases"; bad=1; }
exit $bad
