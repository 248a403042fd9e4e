// expect: ggml's reference quantisers cannot keep their bytes under -ffast-math
// flags: -ffast-math
#include <lowbit/quantise/standard.hpp>
