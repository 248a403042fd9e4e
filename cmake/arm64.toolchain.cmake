# Cross-compiles for 64-bit Arm under Debian's g++-aarch64-linux-gnu and runs the tests under qemu-user, whose default processor has
# every extension that lowbit has kernels for. Dependencies are headers, found or unpacked as for the machine itself.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CXX_FLAGS_INIT -Wno-psabi)  # notes that GCC 10.1 changed how a pair is passed
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
