# SPDX-License-Identifier: Apache-2.0
# Read at the end of project(): headers that nearly every source includes are compiled once for each target, which halves the time of
# the check. The project itself does not need it.
function(precompile_headers)
  get_directory_property(targets BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(sources ${target} SOURCES)
    list(LENGTH sources count)
    if(count LESS 4)
      continue()
    endif()
    target_precompile_headers(${target} PRIVATE <algorithm> <cmath> <functional> <map> <memory> <string> <vector>
                               "${CMAKE_SOURCE_DIR}/cpp/include/mpsnn/mpsnn.hpp")
    if(target STREQUAL "_mpsnn")
      target_precompile_headers(${target} PRIVATE <pybind11/functional.h> <pybind11/numpy.h> <pybind11/stl.h>)
    endif()
  endforeach()
  # Its own floating-point flags do not fit the others'.
  set_source_files_properties(cpp/src/core/optimizer.cpp PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL precompile_headers)
