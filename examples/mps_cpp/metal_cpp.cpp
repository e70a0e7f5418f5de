// SPDX-License-Identifier: Apache-2.0
// metal-cpp keeps its selectors in exactly one source of a program.
#define NS_PRIVATE_IMPLEMENTATION
#define MTL_PRIVATE_IMPLEMENTATION
#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
