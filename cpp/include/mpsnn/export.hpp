// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Marks what the shared library shows; everything else is hidden.
#if defined(_WIN32)
#if defined(MPSNN_BUILDING)
#define MPSNN_API __declspec(dllexport)
#else
#define MPSNN_API __declspec(dllimport)
#endif
#else
#define MPSNN_API __attribute__((visibility("default")))
#endif
