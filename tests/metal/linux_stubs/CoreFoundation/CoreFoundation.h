// SPDX-License-Identifier: Apache-2.0
// What metal-cpp takes from Apple's umbrella header: CFTimeInterval, INFINITY and the dispatch types.
#pragma once

#include <dispatch/dispatch.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef double CFTimeInterval;
