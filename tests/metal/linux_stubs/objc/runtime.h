// SPDX-License-Identifier: Apache-2.0
// Only functions that Apple's and GCC's Objective-C runtimes both have: C++ sources may use no others.
#pragma once

#include <objc/objc.h>

typedef struct objc_ivar* Ivar;
typedef struct objc_method* Method;

extern "C" {
Class objc_lookUpClass(const char* name);
Class objc_getClass(const char* name);
Protocol* objc_getProtocol(const char* name);
Class objc_allocateClassPair(Class superclass, const char* name, size_t extra_bytes);
void objc_registerClassPair(Class made);

SEL sel_registerName(const char* name);
const char* sel_getName(SEL selector);

BOOL class_addMethod(Class made, SEL selector, IMP implementation, const char* types);
BOOL class_addIvar(Class made, const char* name, size_t size, uint8_t log2_alignment, const char* type);
BOOL class_addProtocol(Class made, Protocol* protocol);
BOOL class_conformsToProtocol(Class asked, Protocol* protocol);
BOOL class_respondsToSelector(Class asked, SEL selector);
Class class_getSuperclass(Class asked);
const char* class_getName(Class asked);
IMP class_getMethodImplementation(Class asked, SEL selector);
Method class_getInstanceMethod(Class asked, SEL selector);
Method class_getClassMethod(Class asked, SEL selector);
Ivar class_getInstanceVariable(Class asked, const char* name);

ptrdiff_t ivar_getOffset(Ivar variable);
IMP method_getImplementation(Method method);
const char* method_getTypeEncoding(Method method);
}

// A function on macOS, an inline of the header in GCC's runtime.
static inline Class object_getClass(id object) { return object ? object->isa : nullptr; }
