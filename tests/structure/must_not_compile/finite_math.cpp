// expect: reciprocal-math or -ffinite-math-only
// flags: -ffinite-math-only
#include <lowbit/quantise/standard.hpp>
