#!/bin/sh
# Writes the model that ships here in every GGUF type, whole and in parts, and has the `gguf` package read all of it (gguf_reader.py).
# LOWBIT: the executable; SOURCE: this repository; WORK: a folder to write to.
set -eu
rm -rf "$WORK" && mkdir -p "$WORK"
for format in f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs tq1_0 tq2_0 mxfp4 nvfp4; do
  "$LOWBIT" quantise "$SOURCE/examples/models/shakespeare" "$WORK/$format.gguf" --format $format > /dev/null
  "$LOWBIT" quantise "$WORK/$format.gguf" "$WORK/$format.f32.gguf" --format f32 > /dev/null
done
"$LOWBIT" quantise "$SOURCE/examples/models/shakespeare" "$WORK/parts.gguf" --format q4_k --split 200K > /dev/null
first=$(echo "$WORK"/parts-00001-of-*.gguf)
"$LOWBIT" quantise "$first" "$WORK/parts.f32.gguf" --format f32 > /dev/null
exec "${PYTHON:-python3}" "$SOURCE/tests/interoperability/gguf_reader.py" "$WORK"
