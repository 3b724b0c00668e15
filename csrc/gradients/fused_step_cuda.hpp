// fused_step.cu's face, which needs no CUDA header.
#pragma once

#include "gradients/fused_step.hpp"

namespace fastmtl {

// In words, what a function here returned that is not 0.
const char* cuda_message(int error);

// `sum` and `partials` (one for each 16,384 elements of a segment, or part of them) lie on the device.
int sum_of_squares_cuda(const Segment* segments, std::int64_t n, bool wide, double* partials, double* sum,
                        void* stream);

// `rates`: one for each group, null or a float32 on the device; `factor` and `skip` on the device: nothing is moved
// where `skip` is not 0.
int fused_step_cuda(const Step& step, const float* const* rates, const double* factor, const float* skip, void* stream);

}  // namespace fastmtl
