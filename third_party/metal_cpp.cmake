# SPDX-License-Identifier: Apache-2.0
# The target metal_cpp: Apple's C++ headers for Metal (metal-cpp, Apache 2.0), our headers for MPS, and the frameworks. No copy of
# metal-cpp is kept here: MPSNN_METAL_CPP_DIR names one, or it is fetched from Apple when the build is configured.
include_guard(GLOBAL)

set(MPSNN_METAL_CPP_DIR "" CACHE PATH "Folder with Foundation/ and Metal/ of metal-cpp; empty: fetched from Apple at configure time")
set(metal_cpp_url "https://developer.apple.com/metal/cpp/files/metal-cpp_26.zip")
set(metal_cpp_sha256 4df3c078b9aadcb516212e9cb03004cbc5ce9a3e9c068fa3144d021db585a3a4)
set(metal_cpp_help "Download metal-cpp from https://developer.apple.com/metal/cpp/, unpack it and configure with \
-DMPSNN_METAL_CPP_DIR=<the folder that holds Metal/Metal.hpp>; or build without the Metal engine: -DMPSNN_METAL=OFF.")

function(mpsnn_fetch_metal_cpp folder)
  set(archive "${PROJECT_BINARY_DIR}/metal-cpp.zip")
  message(STATUS "Fetching metal-cpp: ${metal_cpp_url}")
  file(DOWNLOAD "${metal_cpp_url}" "${archive}" STATUS status TLS_VERIFY ON INACTIVITY_TIMEOUT 60)
  list(POP_FRONT status code)
  if(code)
    file(REMOVE "${archive}")
    message(FATAL_ERROR "metal-cpp could not be fetched: ${status}. ${metal_cpp_help}")
  endif()
  file(SHA256 "${archive}" sha256)
  if(NOT sha256 STREQUAL metal_cpp_sha256)
    file(REMOVE "${archive}")
    message(FATAL_ERROR "${metal_cpp_url} is not the file that this project was checked with: its SHA-256 is ${sha256}, not "
                        "${metal_cpp_sha256}. ${metal_cpp_help}")
  endif()
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}")
endfunction()

set(metal_cpp_folder "${MPSNN_METAL_CPP_DIR}")
if(NOT metal_cpp_folder)
  set(metal_cpp_folder "${PROJECT_BINARY_DIR}/metal-cpp")
  if(NOT EXISTS "${metal_cpp_folder}/Metal/Metal.hpp")
    mpsnn_fetch_metal_cpp("${PROJECT_BINARY_DIR}")
  endif()
endif()
if(NOT EXISTS "${metal_cpp_folder}/Metal/Metal.hpp")
  message(FATAL_ERROR "${metal_cpp_folder} has no Metal/Metal.hpp. ${metal_cpp_help}")
endif()

add_library(metal_cpp INTERFACE)
target_include_directories(metal_cpp SYSTEM INTERFACE "${metal_cpp_folder}")
target_include_directories(metal_cpp INTERFACE "${CMAKE_CURRENT_LIST_DIR}/../cpp/mps-cpp")
if(APPLE)
  # Linked, not loaded later: metal-cpp looks classes up when the program starts.
  target_link_libraries(metal_cpp INTERFACE "-framework Foundation" "-framework Metal" "-framework MetalPerformanceShaders" objc)
else()
  # For the tests alone, with clang: stub headers in place of Apple's; the simulator has the classes.
  target_include_directories(metal_cpp SYSTEM INTERFACE "${CMAKE_CURRENT_LIST_DIR}/../tests/metal/linux_stubs")
  target_compile_options(metal_cpp INTERFACE -fblocks)
endif()
