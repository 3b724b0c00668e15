// Gradients of several tasks: Gram matrix, combination, weights, the fused step.
#include "bindings/view.hpp"

#include <new>
#include <stdexcept>
#include <string>

#include "core/isa.hpp"
#include "gradients/combine.hpp"
#include "gradients/equilibrium.hpp"
#include "gradients/fused_step.hpp"
#include "gradients/gram.hpp"
#include "gradients/nonnegative_qp.hpp"
#include "gradients/pcgrad.hpp"
#if defined(FASTMTL_CUDA)
#include "gradients/fused_step_cuda.hpp"
#endif

namespace {

using Tensors = std::array<std::int64_t, 4>;  // segments, n, groups, wide
using Rows = std::array<std::int64_t, 5>;     // J, element type, K, row stride, w

// From what fastmtl/ops/gradients/fused_step.py makes.
fastmtl::Step step_of(const Tensors& tensors, const Rows& rows) {
  return {pointer<const fastmtl::Segment>(tensors[0]),
          tensors[1],
          pointer<const fastmtl::Group>(tensors[2]),
          tensors[3] != 0,
          pointer<const void>(rows[0]),
          static_cast<fastmtl::Element>(rows[1]),
          rows[2],
          rows[3],
          pointer<const void>(rows[4])};
}

void check_memory(bool enough) {
  if (!enough) throw std::bad_alloc();
}

#if defined(FASTMTL_CUDA)
void check_cuda(int error) {
  if (error != 0) throw std::runtime_error(std::string("CUDA: ") + fastmtl::cuda_message(error));
}
#endif

}  // namespace

void bind_gradients(pybind11::module_& m) {
  define(
      m, "gram",
      [](Address J, fastmtl::Element type, std::int64_t K, std::int64_t P, std::int64_t row_stride, bool norms_only,
         Address G, int num_threads) {
        check_memory(FASTMTL_DISPATCH(gram, J, type, K, P, row_stride, norms_only, G, num_threads));
      },
      "G [K, K] float64 = J J^T, or with norms_only its diagonal [K].");
  define(
      m, "combine",
      [](Address J, fastmtl::Element type, std::int64_t K, std::int64_t P, std::int64_t row_stride, Address w,
         Address out, int num_threads) { FASTMTL_DISPATCH(combine, J, type, K, P, row_stride, w, out, num_threads); },
      "out [P] = sum over k of w_k J_k, in float32 (float64 for float64).");
  define(
      m, "pcgrad",
      [](Address G, Address order, std::int64_t K, std::int64_t M, bool mean, Address w) {
        return FASTMTL_DISPATCH(pcgrad, G, order, K, M, mean, w);
      },
      "w [K] float64; False where `order` names a task that does not exist.");
  define(
      m, "nonnegative_qp",
      [](Address H, Address q, std::int64_t B, std::int64_t K, Address x) { fastmtl::nonnegative_qp(H, q, B, K, x); },
      "x [B, K] float64, the minima of x^T H x / 2 + q^T x over x >= 0.");
  define(
      m, "equilibrium",
      [](Address C, Address r, double p, std::int64_t K, Address y) { fastmtl::equilibrium(C, r, p, K, y); },
      "y [K] float64 > 0 with C y = r / y^p.");
  define(
      m, "sum_of_squares",
      [](Address segments, std::int64_t n, bool wide, Address sum, int num_threads) {
        check_memory(FASTMTL_DISPATCH(sum_of_squares, segments, n, wide, sum, num_threads));
      },
      "sum += the squares of the segments' gradients.");
  define(
      m, "fused_step",
      [](const Tensors& tensors, const Rows& rows, double factor, int num_threads) {
        FASTMTL_DISPATCH(fused_step, step_of(tensors, rows), factor, num_threads);
      },
      "Combine, scale by `factor` and step; see fused_step.hpp.");
#if defined(FASTMTL_CUDA)
  m.attr("cuda") = true;
  define(
      m, "sum_of_squares_cuda",
      [](Address segments, std::int64_t n, bool wide, Address partials, Address sum, Address stream) {
        check_cuda(fastmtl::sum_of_squares_cuda(segments, n, wide, partials, sum, stream));
      },
      "sum = the squares of the segments' gradients; see fused_step_cuda.hpp.");
  define(
      m, "fused_step_cuda",
      [](const Tensors& tensors, const Rows& rows, Address rates, Address factor, Address skip, Address stream) {
        check_cuda(fastmtl::fused_step_cuda(step_of(tensors, rows), rates, factor, skip, stream));
      },
      "As fused_step; see fused_step_cuda.hpp.");
#else
  m.attr("cuda") = false;
#endif
}
