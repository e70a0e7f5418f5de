// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

namespace mpsnn::reference {

/// Logarithm of soft-max over the `count` channels of a pixel. The maximum is taken out first, so nothing overflows; and it
/// stays apart from the logarithm of the sum, which it would swallow where it is large: 1e30 + ln 2 is 1e30.
class LogSoftMax {
 public:
  LogSoftMax(const double* x, int count) : largest_(*std::max_element(x, x + count)) {
    double sum = 0;
    for (int c = 0; c < count; ++c) sum += std::exp(x[c] - largest_);
    log_of_sum_ = std::log(sum);
  }
  double operator()(double x) const { return (x - largest_) - log_of_sum_; }

 private:
  double largest_, log_of_sum_;
};

}  // namespace mpsnn::reference
