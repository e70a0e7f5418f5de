// SPDX-License-Identifier: Apache-2.0
// The table of mps-cpp against the Objective-C runtime of this process: the first thing to run on a Mac.
//   live_table            every class and message must exist, with these types
//   live_table --partial  the same for those that exist: a simulator has only some
// Protocols are left out: an image that carries their metadata need not be loaded.
#define MPS_CPP_LIST_MESSAGES
#include <MetalPerformanceShaders/MetalPerformanceShaders.hpp>

#include <cctype>
#include <cstdio>
#include <cstring>

namespace {

using MPS::Private::ListedMessage;

// One type of an encoding without qualifiers and names: @"X" and @ are @, {X=QQ} is {QQ}, ^anything is ^. BOOL is B, c or C.
std::string plain_type(const char*& text) {
  while (std::strchr("rnNoORV", *text) && *text) ++text;
  const char first = *text++;
  if (first == '@') {
    if (*text == '?') ++text;
    if (*text == '"') text = std::strchr(text + 1, '"') + 1;
    return "@";
  }
  if (first == '^') {
    plain_type(text);
    return "^";
  }
  if (first != '{') return std::string(1, first);
  std::string members = "{";
  const char* name_end = text + std::strcspn(text, "={}");
  if (*name_end == '=') text = name_end + 1;
  while (*text != '}') members += plain_type(text);
  ++text;
  return members + "}";
}

std::string plain(const std::string& code) {
  const char* text = code.c_str();
  return plain_type(text);
}

// The result and the arguments after self and _cmd.
std::vector<std::string> encoded_types(const char* encoding) {
  std::vector<std::string> types;
  while (*encoding) {
    types.push_back(plain_type(encoding));
    while (std::isdigit(static_cast<unsigned char>(*encoding)) || *encoding == '-' || *encoding == '+') ++encoding;
  }
  types.erase(types.begin() + 1, types.begin() + std::min<std::size_t>(3, types.size()));
  return types;
}

bool same_type(const std::string& runtime, const std::string& listed, bool partial) {
  if (partial && listed == "@?" && runtime == "^") return true;  // where blocks are no objects: GCC's runtime
  if (listed == "B") return runtime == "B" || runtime == "c" || runtime == "C";
  return runtime == plain(listed);
}

bool same_types(const std::vector<std::string>& runtime, const std::vector<std::string>& listed, bool partial) {
  if (runtime.size() != listed.size()) return false;
  for (std::size_t i = 0; i < listed.size(); ++i) {
    if (!same_type(runtime[i], listed[i], partial)) return false;
  }
  return true;
}

enum class Found { kSame, kDifferent, kNoMethod, kNoClass };

Found look_up(const ListedMessage& message, std::string& encoding, bool partial) {
  const Class owner = objc_lookUpClass(message.owner);
  if (!owner) return Found::kNoClass;
  const SEL selector = sel_registerName(message.selector);
  const Method method = message.kind == '+' ? class_getClassMethod(owner, selector) : class_getInstanceMethod(owner, selector);
  if (!method) return Found::kNoMethod;
  encoding = method_getTypeEncoding(method);
  return same_types(encoded_types(encoding.c_str()), message.types, partial) ? Found::kSame : Found::kDifferent;
}

}  // namespace

int main(int argc, char** argv) {
  const bool partial = argc > 1 && std::strcmp(argv[1], "--partial") == 0;
  int counts[4] = {};
  int protocols = 0;
  for (const ListedMessage& message : MPS::Private::messages()) {
    if (message.owner[0] == '<') {
      ++protocols;
      continue;
    }
    std::string encoding;
    const Found found = look_up(message, encoding, partial);
    ++counts[static_cast<int>(found)];
    if (found == Found::kSame || (partial && found != Found::kDifferent)) continue;
    std::printf("%s %c%s: ", message.owner, message.kind, message.selector);
    if (found == Found::kNoClass) std::printf("no such class\n");
    else if (found == Found::kNoMethod) std::printf("no such method\n");
    else {
      std::printf("the runtime has %s, mps-cpp sends", encoding.c_str());
      for (const auto& type : message.types) std::printf(" %s", type.c_str());
      std::printf("\n");
    }
  }
  const int failures = counts[1] + (partial ? 0 : counts[2] + counts[3]);
  std::printf("%d messages as declared, %d different, %d without method, %d without class, %d of protocols not asked\n", counts[0],
              counts[1], counts[2], counts[3], protocols);
  return failures == 0 && counts[0] > 0 ? 0 : 1;
}
