#!/bin/sh
# Every ```cpp block of the README and of docs/ compiles. A block that has a #include is a file; another is the body of a function after
# <lowbit/lowbit.hpp>. A line "<!-- snippet: skip -->" before a block leaves it out.
set -u
mkdir -p "$WORK" && rm -f "$WORK"/*.cpp
for page in "$SOURCE"/README.md "$SOURCE"/docs/*.md; do
  [ -f "$page" ] || continue
  awk -v prefix="$WORK/$(basename "$page" .md)" '
    /<!-- snippet: skip -->/ { skip = 1; next }
    /^```cpp/ { if (skip) { skip = 0; next } inside = 1; text = ""; next }
    /^```/ && inside {
      inside = 0
      file = prefix "_" ++n ".cpp"
      if (text ~ /#include/) printf "%s", text > file
      else printf "#include <lowbit/lowbit.hpp>\nusing namespace lowbit;\nvoid snippet();\nvoid snippet() {\n%s}\n", text > file
      close(file)
    }
    inside { text = text $0 "\n" }' "$page"
done
bad=0
count=0
for file in "$WORK"/*.cpp; do
  [ -f "$file" ] || continue
  count=$((count + 1))
  $CXX @"$FLAGS" -Wall -Wextra -Wno-unused -fsyntax-only "$file" || { echo "$file does not compile"; bad=1; }
done
[ "$count" -ge 3 ] || { echo "only $count snippets found"; bad=1; }
exit $bad
