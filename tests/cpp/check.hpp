// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <exception>
#include <ranges>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

/// A test program in one header:
///
///   TEST(a_window_covers_its_image) {
///     CHECK(axis.is_inside());
///     CHECK_EQ(axis.output, 3);
///   }
///
/// main() runs every test, or those whose name contains its first argument, prints "N passed, M failed", and returns nonzero
/// when a test failed or none ran. A failed check does not end its test. A test that checks nothing fails. When several files
/// make one program, all but one define MPSNN_CHECK_NO_MAIN before they include this.
namespace mpsnn::check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline bool add(const char* name, void (*run)()) {
  tests().push_back({name, run});
  return true;
}

// Counters of the running test; atomic, so that checks may stand in threads.
inline std::atomic<long> checks{0}, failures{0};

template <class T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(17);
  if constexpr (requires { text << value; }) text << value;
  else if constexpr (std::ranges::range<T>) {
    text << "{ ";
    for (const auto& element : value) text << show(element) << ' ';
    text << '}';
  } else text << "(a value that cannot be printed)";
  return text.str();
}

inline void report(bool passed, const char* file, int line, const std::string& what) {
  ++checks;
  if (passed) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

template <class A, class B>
void equal(const A& a, const B& b, const char* what, const char* file, int line) {
  const bool passed = a == b;
  report(passed, file, line, passed ? "" : std::string(what) + ": " + show(a) + " is not " + show(b));
}

inline void near(double a, double b, double tolerance, const char* what, const char* file, int line) {
  const bool passed = a == b || (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= tolerance;
  report(passed, file, line,
         passed ? "" : std::string(what) + ": " + show(a) + " is not within " + show(tolerance) + " of " + show(b));
}

/// True when `body` throws an E whose text contains `words`.
template <class E, class Body>
void throws(Body body, std::string_view words, const char* what, const char* file, int line) {
  std::string problem = std::string(what) + ": nothing was thrown";
  try {
    body();
  } catch (const E& error) {
    problem = std::string(error.what()).find(words) != std::string::npos
                  ? "" : std::string(what) + ": the text lacks \"" + std::string(words) + "\":\n" + error.what();
  } catch (const std::exception& error) {
    problem = std::string(what) + ": another exception was thrown: " + error.what();
  }
  report(problem.empty(), file, line, problem);
}

inline bool passes(const Test& test) {
  checks = failures = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    report(false, test.name, 0, std::string("ended by an exception: ") + error.what());
  } catch (...) {
    report(false, test.name, 0, "ended by something that is not a std::exception");
  }
  if (checks == 0) report(false, test.name, 0, "checks nothing");
  if (failures > 0) std::fprintf(stderr, "FAILED %s (%ld of %ld checks)\n", test.name, failures.load(), checks.load());
  return failures == 0;
}

inline int run_all(int argument_count, char** arguments) {
  const std::string_view filter = argument_count > 1 ? arguments[1] : "";
  int passed = 0, failed = 0;
  for (const Test& test : tests())
    if (std::string_view(test.name).find(filter) != std::string_view::npos) ++(passes(test) ? passed : failed);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0 ? 1 : 0;
}

}  // namespace mpsnn::check

#define TEST(name)                                                                  \
  static void name();                                                               \
  [[maybe_unused]] static const bool name##_added = mpsnn::check::add(#name, name); \
  static void name()

#define CHECK(...) mpsnn::check::report(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, "not true: " #__VA_ARGS__)
#define CHECK_EQ(a, b) mpsnn::check::equal((a), (b), #a, __FILE__, __LINE__)
/// Equal within `tolerance`, or both infinite alike, or both NaN.
#define CHECK_NEAR(a, b, tolerance) mpsnn::check::near((a), (b), (tolerance), #a, __FILE__, __LINE__)
/// `expression` throws `Type` with `words` in its text.
#define CHECK_THROWS(expression, Type, words) \
  mpsnn::check::throws<Type>([&] { (void)(expression); }, (words), #expression, __FILE__, __LINE__)

#ifndef MPSNN_CHECK_NO_MAIN
int main(int argument_count, char** arguments) { return mpsnn::check::run_all(argument_count, arguments); }
#endif
