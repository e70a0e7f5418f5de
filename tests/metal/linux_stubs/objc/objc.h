// SPDX-License-Identifier: Apache-2.0
// For C++ sources of the Linux checks. Objective-C sources use the real runtime's headers: this folder is never on their path.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct objc_class* Class;
struct objc_object {  // complete, because metal-cpp derives from it
  Class isa;
};
typedef struct objc_object* id;
typedef const struct objc_selector* SEL;
typedef void (*IMP)(void);
typedef struct objc_object Protocol;
typedef unsigned char BOOL;  // as in GCC's runtime; Apple: bool on arm64, signed char on x86_64
