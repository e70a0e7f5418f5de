# SPDX-License-Identifier: Apache-2.0
# macOS from Linux with zig. build.py writes the compiler scripts into ZIG_SCRIPTS and names the CPU type in ZIG_MACOS_ARCH.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR $ENV{ZIG_MACOS_ARCH})
foreach(language C CXX)
  string(TOLOWER "zig-${language}" script)
  set(CMAKE_${language}_COMPILER "$ENV{ZIG_SCRIPTS}/${script}")
endforeach()
set(CMAKE_AR "$ENV{ZIG_SCRIPTS}/zig-ar")
set(CMAKE_RANLIB "$ENV{ZIG_SCRIPTS}/zig-ranlib")
find_program(CMAKE_INSTALL_NAME_TOOL NAMES llvm-install-name-tool llvm-install-name-tool-14 REQUIRED)
find_program(CMAKE_OTOOL NAMES llvm-otool llvm-otool-14 REQUIRED)
set(CMAKE_OSX_SYSROOT "" CACHE STRING "" FORCE)        # no SDK: nothing to look for
set(CMAKE_OSX_ARCHITECTURES "" CACHE STRING "" FORCE)  # the target of the scripts decides
set(CMAKE_OSX_DEPLOYMENT_TARGET "" CACHE STRING "" FORCE)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
