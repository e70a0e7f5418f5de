// SPDX-License-Identifier: Apache-2.0
// Two classes for the test of live_table itself: -fillValue of MPSNNPadNode returns a double here, which Apple's does not.
#include <objc/runtime.h>

namespace {

float get(id, SEL) { return 0; }
void set(id, SEL, float) {}

[[maybe_unused]] const bool made = [] {
  const Class node = objc_allocateClassPair(nullptr, "MPSNNPadNode", 0);
  class_addMethod(node, sel_registerName("fillValue"), reinterpret_cast<IMP>(get), "d16@0:8");
  class_addMethod(node, sel_registerName("setFillValue:"), reinterpret_cast<IMP>(set), "v20@0:8f16");
  objc_registerClassPair(node);
  const Class kernel = objc_allocateClassPair(nullptr, "MPSCNNKernel", 0);
  class_addMethod(kernel, sel_registerName("setOffset:"), reinterpret_cast<IMP>(set), "v40@0:8{?=qqq}16");
  class_addMethod(kernel, sel_registerName("isBackwards"), reinterpret_cast<IMP>(get), "c16@0:8");
  objc_registerClassPair(kernel);
  return true;
}();

}  // namespace
