// Gradients of several tasks: Gram, combination, weights, the fused step.
#include "bindings/view.hpp"

#include <new>
#include <stdexcept>
#include <string>

#include "gradients/combine.hpp"
#include "gradients/equilibrium.hpp"
#include "gradients/fused_step.hpp"
#include "gradients/gram.hpp"
#include "core/isa.hpp"
#include "gradients/nonnegative_qp.hpp"
#include "gradients/pcgrad.hpp"
#if defined(FASTMTL_CUDA)
#include "gradients/fused_step_cuda.hpp"
#endif

namespace py = pybind11;

namespace {

// (segments, n, groups, wide) and (J, element type, K, row stride, w), as `_fused_step.py` in fastmtl/ops makes them.
fastmtl::Step fused_problem(const std::array<std::int64_t, 4>& table, const std::array<std::int64_t, 5>& rows) {
  return {pointer<const fastmtl::Segment>(static_cast<std::uintptr_t>(table[0])),
          table[1],
          pointer<const fastmtl::Group>(static_cast<std::uintptr_t>(table[2])),
          table[3] != 0,
          pointer<const void>(static_cast<std::uintptr_t>(rows[0])),
          static_cast<fastmtl::Element>(rows[1]),
          rows[2],
          rows[3],
          pointer<const void>(static_cast<std::uintptr_t>(rows[4]))};
}

#if defined(FASTMTL_CUDA)
void check_cuda(int error) {
  if (error != 0) throw std::runtime_error(std::string("CUDA: ") + fastmtl::cuda_message(error));
}
#endif

}  // namespace

void bind_balance(py::module_& m) {
  m.def(
      "gram",
      [](std::uintptr_t J, int type, std::int64_t K, std::int64_t P, std::int64_t row_stride, bool norms_only,
         std::uintptr_t G, int num_threads) {
        const auto element = static_cast<fastmtl::Element>(type);
        const bool done = FASTMTL_DISPATCH(gram)(pointer<const void>(J), element, K, P, row_stride, norms_only,
                                                 pointer<double>(G), num_threads);
        if (!done) throw std::bad_alloc();
      },
      py::call_guard<py::gil_scoped_release>(), "G [K, K] float64 = J J^T, or with norms_only its diagonal [K].");
  m.def(
      "combine",
      [](std::uintptr_t J, int type, std::int64_t K, std::int64_t P, std::int64_t row_stride, std::uintptr_t w,
         std::uintptr_t out, int num_threads) {
        FASTMTL_DISPATCH(combine)(pointer<const void>(J), static_cast<fastmtl::Element>(type), K, P, row_stride,
                                  pointer<const void>(w), pointer<void>(out), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "out [P] = sum over k of w_k J_k, in float32 (float64 for float64).");
  m.def(
      "pcgrad",
      [](std::uintptr_t G, std::uintptr_t order, std::int64_t K, std::int64_t M, bool mean, std::uintptr_t w) {
        return FASTMTL_DISPATCH(pcgrad)(pointer<const double>(G), pointer<const std::int64_t>(order), K, M, mean,
                                        pointer<double>(w));
      },
      py::call_guard<py::gil_scoped_release>(), "w [K] float64; False where `order` names a task that is not there.");
  m.def(
      "nonnegative_qp",
      [](std::uintptr_t H, std::uintptr_t q, std::int64_t B, std::int64_t K, std::uintptr_t x) {
        fastmtl::nonnegative_qp(pointer<const double>(H), pointer<const double>(q), B, K, pointer<double>(x));
      },
      py::call_guard<py::gil_scoped_release>(), "x [B, K] float64, the minima of x^T H x / 2 + q^T x over x >= 0.");
  m.def(
      "equilibrium",
      [](std::uintptr_t C, std::uintptr_t r, double p, std::int64_t K, std::uintptr_t y) {
        fastmtl::equilibrium(pointer<const double>(C), pointer<const double>(r), p, K, pointer<double>(y));
      },
      py::call_guard<py::gil_scoped_release>(), "y [K] float64 > 0 with C y = r / y^p.");
  m.def(
      "sum_of_squares",
      [](std::uintptr_t segments, std::int64_t n, bool wide, std::uintptr_t sum, int num_threads) {
        const bool done = FASTMTL_DISPATCH(sum_of_squares)(pointer<const fastmtl::Segment>(segments), n, wide,
                                                           pointer<double>(sum), num_threads);
        if (!done) throw std::bad_alloc();
      },
      py::call_guard<py::gil_scoped_release>(), "sum += the squares of the segments' gradients.");
  m.def(
      "fused_step",
      [](const std::array<std::int64_t, 4>& table, const std::array<std::int64_t, 5>& rows, double factor,
         int num_threads) { FASTMTL_DISPATCH(fused_step)(fused_problem(table, rows), factor, num_threads); },
      py::call_guard<py::gil_scoped_release>(), "Combine, scale by `factor` and step; see fused_step.hpp.");
#if defined(FASTMTL_CUDA)
  m.attr("cuda") = true;
  m.def(
      "sum_of_squares_cuda",
      [](std::uintptr_t segments, std::int64_t n, bool wide, std::uintptr_t partials, std::uintptr_t sum,
         std::uintptr_t stream) {
        check_cuda(fastmtl::sum_of_squares_cuda(pointer<const fastmtl::Segment>(segments), n, wide,
                                                pointer<double>(partials), pointer<double>(sum),
                                                pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), "sum = the squares of the segments' gradients; see fused_step_cuda.hpp.");
  m.def(
      "fused_step_cuda",
      [](const std::array<std::int64_t, 4>& table, const std::array<std::int64_t, 5>& rows, std::uintptr_t rates,
         std::uintptr_t factor, std::uintptr_t skip, std::uintptr_t stream) {
        check_cuda(fastmtl::fused_step_cuda(fused_problem(table, rows), pointer<const float* const>(rates),
                                            pointer<const double>(factor), pointer<const float>(skip),
                                            pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), "As fused_step; see fused_step_cuda.hpp.");
#else
  m.attr("cuda") = false;
#endif
}
