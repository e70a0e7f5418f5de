// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

namespace mpsnn::reference {

/// ln of the sum of e^x over the `count` channels of a pixel. The maximum is taken out first, so nothing overflows.
inline double log_sum_exp(const double* x, int count) {
  const double largest = *std::max_element(x, x + count);
  double sum = 0;
  for (int c = 0; c < count; ++c) sum += std::exp(x[c] - largest);
  return largest + std::log(sum);
}

}  // namespace mpsnn::reference
