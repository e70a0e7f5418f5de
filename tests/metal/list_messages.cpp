// SPDX-License-Identifier: Apache-2.0
// Prints what mps-cpp sends, as C++ compiled it: one tab-separated line for each message, constant and struct.
// tests/python/mps_judge.py compares them with the API facts.
#define MPS_CPP_LIST_MESSAGES
#include <MetalPerformanceShaders/MetalPerformanceShaders.hpp>

#include <cstdio>

#ifdef MPS_CPP_SEEDED_MISTAKES
#include "seeded_mistakes.hpp"
#endif

namespace {

// An object passes where the protocol that its class adopts is asked for.
static_assert(std::is_base_of_v<MPS::NNPadding, MPS::NNDefaultPadding>);
static_assert(std::is_base_of_v<MTL::CommandBuffer, MPS::CommandBuffer>);

template <class T>
void print_constant(const char* type, const char* constant, T value) {
  std::printf("constant\tMPS%s\tMPS%s\t%s\t%lld\n", type, constant, MPS::Private::Code<T>::text().c_str(), static_cast<long long>(value));
}

}  // namespace

int main() {
  for (const auto& message : MPS::Private::messages()) {
    std::printf("message\t%s\t%c\t%s", message.owner, message.kind, message.selector);
    for (const auto& type : message.types) std::printf("\t%s", type.c_str());
    std::printf("\n");
  }
#define ENUM_VALUE(TYPE, CONSTANT) print_constant(#TYPE, #CONSTANT, static_cast<MPS::TYPE>(MPS::CONSTANT));
#define STRUCT_SIZE(TYPE) std::printf("struct\tMPS%s\t%s\t%zu\n", #TYPE, MPS::Private::Code<MPS::TYPE>::text().c_str(), sizeof(MPS::TYPE));
#include "constants.inc"
}
