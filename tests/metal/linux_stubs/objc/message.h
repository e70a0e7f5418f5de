// SPDX-License-Identifier: Apache-2.0
// Defined in tests/metal/simulator/msgsend.S: GCC's runtime only looks methods up.
#pragma once

#include <objc/runtime.h>

extern "C" {
void objc_msgSend(void);
void objc_msgSend_stret(void);
void objc_msgSend_fpret(void);
}
