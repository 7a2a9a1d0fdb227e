# Cross-compiles for 64-bit Arm under Linux: cmake -DCMAKE_TOOLCHAIN_FILE=aarch64.cmake. Debian: g++-aarch64-linux-gnu.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# edgeq runs here, and not there.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
