// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/runtime_class.hpp"

namespace mpsnn::metal {
namespace {

using Holder = std::shared_ptr<void>;
constexpr const char* kVariable = "mpsnn_object";

Holder*& slot(id self) {
  // The variable may sit at another offset in each class; a copy or a subclass has the class that is asked here.
  const Ivar variable = class_getInstanceVariable(object_getClass(self), kVariable);
  return *reinterpret_cast<Holder**>(reinterpret_cast<char*>(self) + ivar_getOffset(variable));
}

id make_instance(Class made, const Holder& held) {
  static const SEL alloc = sel_registerName("alloc"), init = sel_registerName("init");
  id object = MPS::Private::Sender::send<id>(made, alloc);
  object = MPS::Private::Sender::send<id>(object, init);
  slot(object) = new Holder(held);
  return object;
}

// Copies are +1 by their name. One object for all devices: the C++ side knows which device it works for.
id copy_with_zone(id self, SEL, void*) { return make_instance(object_getClass(self), *slot(self)); }
id copy_with_zone_device(id self, SEL, void*, id) { return make_instance(object_getClass(self), *slot(self)); }

void dealloc(id self, SEL selector) {
  delete slot(self);  // may run user code: a Python object takes the GIL by itself
  slot(self) = nullptr;
  // [super dealloc]: GCC's runtime has no objc_msgSendSuper.
  const IMP super = class_getMethodImplementation(objc_lookUpClass("NSObject"), selector);
  reinterpret_cast<void (*)(id, SEL)>(super)(self, selector);
}

// Graphs made here are never archived, but MPSHandle and its kin ask for NSSecureCoding.
BOOL supports_secure_coding(id, SEL) { return 0; }
void encode_with_coder(id, SEL, id) {}
id init_with_coder(id self, SEL, id) {
  reinterpret_cast<NS::Object*>(self)->release();
  return nullptr;
}

}  // namespace

RuntimeClass::RuntimeClass(const char* name, const char* protocol, std::initializer_list<ClassMethod> methods)
    : class_(objc_allocateClassPair(objc_lookUpClass("NSObject"), name, 0)) {
  // Alignment is given as a power of two in both runtimes.
  class_addIvar(class_, kVariable, sizeof(Holder*), 3, "^v");
  auto add = [](Class made, const ClassMethod& m) { class_addMethod(made, sel_registerName(m.selector), m.implementation, m.types); };
  for (const ClassMethod& m : methods) add(class_, m);
  for (const ClassMethod& m : {method("copyWithZone:", copy_with_zone, "@@:^v"), method("copyWithZone:device:", copy_with_zone_device, "@@:^v@"),
                               method("dealloc", dealloc, "v@:"), method("encodeWithCoder:", encode_with_coder, "v@:@"),
                               method("initWithCoder:", init_with_coder, "@@:@")})
    add(class_, m);
  // MAC-UNVERIFIED: protocol-lookup: objc_getProtocol can be NULL where no loaded image carries the protocol; MPS is then
  // believed to ask respondsToSelector: only.
  if (Protocol* conforms = objc_getProtocol(protocol)) class_addProtocol(class_, conforms);
  objc_registerClassPair(class_);
  const Class meta = object_getClass(reinterpret_cast<id>(class_));
  add(meta, method("supportsSecureCoding", supports_secure_coding, MPSNN_BOOL "@:"));
}

id RuntimeClass::make(std::shared_ptr<void> object) const { return make_instance(class_, object); }

const std::shared_ptr<void>& RuntimeClass::held(id self) { return *slot(self); }

}  // namespace mpsnn::metal
