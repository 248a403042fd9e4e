#!/bin/sh
# A program that uses the whole library needs no symbol that prints, aborts, throws or logs; built without exceptions and run-time types.
# std::__throw_* stay: libstdc++'s containers call them where memory or a size is impossible. With files, abort stays too: without
# exceptions nlohmann-json and std::variant have it where they would throw, in states that the readers rule out.
set -u
mkdir -p "$WORK"
check() {
  $CXX @"$FLAGS" -O1 -DNDEBUG -DLOWBIT_UNROLL= -fno-exceptions -fno-rtti -Wall -Wextra -Wpedantic -Wshadow $2 \
    -c "$SOURCE/tests/structure/uses_everything.cpp" -o "$WORK/all.o" || exit 1
  loud=$(nm -C -u "$WORK/all.o" | grep -E '\b(v?f?printf|puts|fputs|fwrite|perror|syslog|_?exit|_Exit|quick_exit|__cxa_throw|std::terminate|__assert_fail'"$1"')\b|std::(cout|cerr|clog)|ostream')
  [ -z "$loud" ] || { echo "the library reaches for:"; echo "$loud"; exit 1; }
}
check '|abort' -DWITHOUT_FILES
check '' ''
