// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>

/// What Objective-C++ cannot do here: with GCC's runtime, clang's Objective-C++ has no handlers for C++ exceptions.
namespace sim {

/// Runs `work`; the sentence of the exception that it threw, or nothing.
std::string failure_of(const std::function<void()>& work);

}  // namespace sim
