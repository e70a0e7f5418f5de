// SPDX-License-Identifier: Apache-2.0
// MPS asks an Objective-C object for weights. Its class is made here when the program runs, from C functions.
#include "data_source.hpp"

namespace {

float weights[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
float bias[1] = {0.5f};

MPS::DataType data_type(id, SEL) { return MPS::DataTypeFloat32; }
id descriptor(id, SEL) { return reinterpret_cast<id>(MPS::CNNConvolutionDescriptor::cnnConvolutionDescriptor(3, 3, 1, 1)); }
void* get_weights(id, SEL) { return weights; }
float* get_bias(id, SEL) { return bias; }
BOOL load(id, SEL) { return 1; }
void purge(id, SEL) {}
id label(id, SEL) { return reinterpret_cast<id>(NS::String::string("example", NS::UTF8StringEncoding)); }
// A copy is owned by who asked for it. This object has no state of its own, so it may be its own copy.
id copy(id self, SEL, void*) { return reinterpret_cast<id>(reinterpret_cast<NS::Object*>(self)->retain()); }

#if defined(__APPLE__) && defined(__arm64__)
constexpr const char* kBoolResult = "B@:";
#else
constexpr const char* kBoolResult = "c@:";
#endif

Class make_class() {
  const Class made = objc_allocateClassPair(objc_lookUpClass("NSObject"), "MpsCppExampleDataSource", 0);
  const auto add = [made](const char* selector, auto* function, const char* types) {
    class_addMethod(made, sel_registerName(selector), reinterpret_cast<IMP>(function), types);
  };
  add("dataType", data_type, "I@:");
  add("descriptor", descriptor, "@@:");
  add("weights", get_weights, "^v@:");
  add("biasTerms", get_bias, "^f@:");
  add("load", load, kBoolResult);
  add("purge", purge, "v@:");
  add("label", label, "@@:");
  add("copyWithZone:", copy, "@@:^v");
  // Null where no loaded image carries the protocol: MPS then has to do with the methods.
  if (Protocol* protocol = objc_getProtocol("MPSCNNConvolutionDataSource")) class_addProtocol(made, protocol);
  objc_registerClassPair(made);
  return made;
}

// NS::Object shows alloc and init to classes that derive from it.
struct DataSource : NS::Object {
  static DataSource* make() {
    static const Class made = make_class();
    return NS::Object::alloc<DataSource>(made)->NS::Object::init<DataSource>();
  }
};

}  // namespace

MPS::CNNConvolutionDataSource* make_data_source() { return reinterpret_cast<MPS::CNNConvolutionDataSource*>(DataSource::make()); }
