// SPDX-License-Identifier: Apache-2.0
// What metal-cpp takes from Apple's umbrella header; zig has the others.
#pragma once

#include <TargetConditionals.h>
#include <dispatch/dispatch.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef double CFTimeInterval;
