// The limits of the machine, measured in the process whose figures they judge: read and write bandwidth of memory, int8 dots from registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit::bench {

/// Bytes per second when so many threads, each on a processor of its own, read memory that no cache holds: now.
double read_bandwidth(std::size_t threads = 1);
/// The most that was ever measured in this process, in five tries at least.
double read_roof(std::size_t threads = 1);
/// Bytes per second when one thread writes it.
double write_roof();
/// Multiply-adds counted twice, per second, of the widest integer dot that the unit `arch` uses; 0 where it is not known how.
double int8_roof(const char* arch);
/// The same of float32 multiply-adds.
double float_roof(const char* arch);
/// The same of products of bfloat16; 0 where the unit has none.
double bf16_roof(const char* arch);

}  // namespace lowbit::bench
