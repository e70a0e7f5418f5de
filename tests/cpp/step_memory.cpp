// SPDX-License-Identifier: Apache-2.0
// Runs steps of a saved graph and prints what the last of them took from the system:
//   step_memory GRAPH STEPS  N H W C  N H W C
// The shapes are those of the source image and of the labels. Counts calls of the malloc family from anywhere in the process, all
// threads, by taking its place (glibc), and the page faults of all threads and of the calling one.
#include <sys/resource.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "mpsnn/mpsnn.hpp"

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
}

namespace {

std::atomic<long> allocations{0};

}  // namespace

// operator new ends here too.
extern "C" {
void* malloc(std::size_t bytes) { return ++allocations, __libc_malloc(bytes); }
void* calloc(std::size_t count, std::size_t bytes) { return ++allocations, __libc_calloc(count, bytes); }
void* realloc(void* memory, std::size_t bytes) { return ++allocations, __libc_realloc(memory, bytes); }
void* memalign(std::size_t alignment, std::size_t bytes) { return ++allocations, __libc_memalign(alignment, bytes); }
void* aligned_alloc(std::size_t alignment, std::size_t bytes) { return ++allocations, __libc_memalign(alignment, bytes); }
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) {
  ++allocations;
  *memory = __libc_memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
}

namespace {

struct Taken {
  long allocations, faults, own_faults, major_faults;

  static Taken now() {
    rusage process, thread;
    getrusage(RUSAGE_SELF, &process);
    getrusage(RUSAGE_THREAD, &thread);
    return {::allocations.load(), process.ru_minflt + process.ru_majflt, thread.ru_minflt + thread.ru_majflt, process.ru_majflt};
  }
};

mpsnn::Shape shape_of(char** words) { return {std::atoi(words[0]), std::atoi(words[1]), std::atoi(words[2]), std::atoi(words[3])}; }

int run(char** arguments) {
  const auto graph = mpsnn::load_graph(arguments[1], mpsnn::device("cpu"));
  const auto images = std::make_shared<mpsnn::Image>(shape_of(arguments + 3));
  for (std::size_t i = 0; i < images->buffer().count(); ++i) images->floats()[i] = float(i % 97) / 97 - 0.5f;
  const auto labels = std::make_shared<mpsnn::Image>(shape_of(arguments + 7));
  const std::size_t classes = labels->shape().channels;
  for (std::size_t pixel = 0; pixel < labels->shape().pixels(); ++pixel) labels->floats()[pixel * classes + pixel % classes] = 1;
  const auto state = std::make_shared<mpsnn::CNNLossLabels>(labels);
  const std::vector<mpsnn::ImagePtr> sources{images};
  const std::vector<mpsnn::StatePtr> states{state};
  mpsnn::EncodedResults results;
  const int steps = std::atoi(arguments[2]);
  Taken before{}, after{};
  for (int step = 1; step <= steps; ++step) {
    before = Taken::now();
    graph->run(sources, states, results);
    after = Taken::now();
  }
  std::printf("step %d: %ld allocations, %ld page faults (%ld on the calling thread, %ld major); first loss %g\n", steps,
              after.allocations - before.allocations, after.faults - before.faults, after.own_faults - before.own_faults,
              after.major_faults - before.major_faults, state->loss_image()->floats()[0]);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return count == 11 ? run(arguments) : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
