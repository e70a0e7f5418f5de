// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

std::string compose(const std::string& sentence, const ErrorFacts& facts) {
  std::string text = sentence;
  auto line = [&](const char* name, const std::string& value) {
    if (!value.empty()) text += std::string("\n    ") + name + value;
  };
  if (!facts.node.empty()) line("node      ", facts.node + (facts.label.empty() ? "" : " \"" + facts.label + "\""));
  line("expected  ", facts.expected);
  line("actual    ", facts.actual);
  line("try       ", facts.hint);
  return text;
}

}  // namespace

Error::Error(const std::string& sentence, ErrorFacts facts) : std::runtime_error(compose(sentence, facts)), facts_(std::move(facts)) {}

}  // namespace mpsnn
