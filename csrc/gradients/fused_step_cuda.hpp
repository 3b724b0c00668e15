// The interface of fused_step.cu, without CUDA headers.
#pragma once

#include "gradients/fused_step.hpp"

namespace fastmtl {

// The message of an error code that a function below returned.
const char* cuda_message(int error);

// `sum` and `partials` (one for each 16,384 elements of a segment, or part of them) are on the device.
int sum_of_squares_cuda(const Segment* segments, std::int64_t n, bool wide, double* partials, double* sum,
                        void* stream);

// `rates`: one for each group, null or a float32 on the device; `factor` and `skip` on the device: no step is made
// where `skip` is not 0.
int fused_step_cuda(const Step& step, const float* const* rates, const double* factor, const float* skip, void* stream);

}  // namespace fastmtl
