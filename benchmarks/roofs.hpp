// The limits of the machine, measured in the process whose figures they judge: read and write bandwidth of memory, int8 dots from registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit::bench {

/// Bytes per second when one thread reads memory that no cache holds. Measured once.
double read_roof();
/// Bytes per second when one thread writes it.
double write_roof();
/// Multiply-adds counted twice, per second, of the widest integer dot that the unit `arch` uses; 0 where it is not known how.
double int8_roof(const char* arch);
/// The same of float32 multiply-adds.
double float_roof(const char* arch);

}  // namespace lowbit::bench
