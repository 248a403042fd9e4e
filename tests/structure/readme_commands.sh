#!/bin/sh
# The README's lines of `lowbit …` run as they stand, one after the other, in an empty folder that has the examples.
# Usage: readme_commands.sh EXECUTABLE
set -eu
executable=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
ln -s "$SOURCE/examples" examples
mkdir bin
ln -s "$executable" bin/lowbit
PATH=$folder/bin:$PATH
# The ```sh block that has them.
awk '/^```sh$/ { block = ""; inside = 1; next } /^```$/ { if (inside && block ~ /lowbit quantise/) printf "%s", block; inside = 0 } inside { block = block $0 "\n" }' \
  "$SOURCE/README.md" > commands
[ "$(grep -c '^lowbit ' commands)" -ge 8 ] || { echo "the README has no block of lowbit's commands"; exit 1; }
sh -eux commands
