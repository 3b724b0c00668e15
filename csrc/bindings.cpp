// With stain_bindings.cpp the only file that includes pybind11. Every kernel takes raw addresses, sizes and a thread count and releases the GIL;
// shapes, dtypes and contiguity were checked in Python (fastmtl/ops).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "assignment.hpp"
#include "combine.hpp"
#include "deep_supervision.hpp"
#include "dice_bce.hpp"
#include "dice_ce.hpp"
#include "equilibrium.hpp"
#include "focal.hpp"
#include "fused_step.hpp"
#include "gram.hpp"
#include "isa.hpp"
#include "nonnegative_qp.hpp"
#include "nt_xent.hpp"
#include "pcgrad.hpp"
#include "points.hpp"
#include "regression.hpp"
#if defined(FASTMTL_CUDA)
#include "fused_step_cuda.hpp"
#endif

namespace py = pybind11;

void bind_stain(py::module_& m);  // stain_bindings.cpp

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (address, element type, batch stride, channel stride, pixel stride), as `_planes.describe` in fastmtl/ops makes it.
using View = std::array<std::int64_t, 5>;

fastmtl::Planes planes(const View& view) {
  return {pointer<void>(static_cast<std::uintptr_t>(view[0])), static_cast<fastmtl::Element>(view[1]), view[2], view[3],
          view[4]};
}

fastmtl::DiceBceProblem dice_bce_problem(const std::array<std::int64_t, 4>& shape, const View& logits,
                                         const View& target, const View& mask, std::uintptr_t pos_weight, bool squared) {
  return {{shape[1], shape[2], shape[3], planes(logits), planes(target), planes(mask)},
          pointer<const float>(pos_weight), shape[1] / shape[0], squared};
}

// shape: batch, channels, pixels.
fastmtl::LossInputs loss_inputs(const std::array<std::int64_t, 3>& shape, const View& logits, const View& target,
                                const View& mask) {
  return {shape[0], shape[1], shape[2], planes(logits), planes(target), planes(mask)};
}

fastmtl::SigmoidFocalProblem sigmoid_focal_problem(const std::array<std::int64_t, 3>& shape, const View& logits,
                                                   const View& target, const View& mask, std::uintptr_t factors,
                                                   const std::array<double, 3>& options) {
  return {loss_inputs(shape, logits, target, mask), pointer<const float>(factors), static_cast<float>(options[0]),
          static_cast<float>(options[1]), static_cast<float>(options[2])};
}

fastmtl::SoftmaxFocalProblem softmax_focal_problem(const std::array<std::int64_t, 3>& shape, const View& logits,
                                                   const View& target, const View& mask, std::uintptr_t factors,
                                                   const std::array<double, 2>& options) {
  return {loss_inputs(shape, logits, target, mask), pointer<const float>(factors), static_cast<float>(options[0]),
          static_cast<float>(options[1])};
}

// shape: batch, channels, pixels; wanted: soft targets, squared, I and P, label smoothing's sums, counts.
fastmtl::SoftmaxProblem softmax_problem(const std::array<std::int64_t, 3>& shape, const View& logits,
                                        const View& target, const View& mask, std::int64_t ignore_index,
                                        const std::array<bool, 5>& wanted) {
  return {{shape[0], shape[1], shape[2], planes(logits), planes(target), planes(mask)},
          wanted[0], ignore_index, wanted[1], wanted[2], wanted[3], wanted[4]};
}

fastmtl::RegressionProblem regression_problem(const std::array<std::int64_t, 3>& shape, const View& input,
                                              const View& target, const View& mask, int error, double beta) {
  return {loss_inputs(shape, input, target, mask), static_cast<fastmtl::Error>(error), static_cast<float>(beta)};
}

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

// (address, element type, batch and channel stride, three pixel strides), as `deep_supervision` in fastmtl/ops makes it.
using VolumeView = std::array<std::int64_t, 7>;

fastmtl::Volume volume(const VolumeView& view) {
  return {pointer<void>(static_cast<std::uintptr_t>(view[0])), static_cast<fastmtl::Element>(view[1]), view[2], view[3],
          {view[4], view[5], view[6]}};
}

// Logits, their gradient, size and scale of one head.
using HeadView = std::tuple<View, View, std::array<std::int64_t, 3>, std::array<std::int64_t, 3>>;

// What all heads of one call share.
struct Supervision {
  std::vector<fastmtl::DeepHead> heads;
  fastmtl::DeepSupervision problem;

  Supervision(std::int64_t batch, std::int64_t channels, const std::vector<HeadView>& views,
              const std::vector<double>& weights, const std::array<View, 2>& flat,
              const std::array<VolumeView, 2>& full, std::uintptr_t pos_weight, bool squared, int downsample) {
    for (std::size_t l = 0; l < views.size(); ++l) {
      const auto& [logits, gradient, size, scale] = views[l];
      const bool windowed = flat[0][0] == 0 || scale[0] * scale[1] * scale[2] != 1;
      fastmtl::DeepHead head{};
      head.problem = {{batch, channels, size[0] * size[1] * size[2], planes(logits),
                       windowed ? fastmtl::Planes{} : planes(flat[0]), windowed ? fastmtl::Planes{} : planes(flat[1])},
                      pointer<const float>(pos_weight), batch, squared};
      for (int axis = 0; axis < 3; ++axis) head.size[axis] = size[axis], head.scale[axis] = scale[axis];
      head.windowed = windowed;
      head.gradient = planes(gradient);
      head.weight = weights[l];
      heads.push_back(head);
    }
    problem = {heads.data(), static_cast<std::int64_t>(heads.size()), channels, volume(full[0]), volume(full[1]),
               static_cast<fastmtl::Downsample>(downsample)};
  }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastmtl's compiled CPU kernels: raw pointers in, nothing of torch inside.";
  m.def("isa", [] { return fastmtl::isa_name(fastmtl::active_isa()); }, "The instruction set chosen at load.");
  m.def(
      "linear_assignment",
      [](const std::array<std::int64_t, 3>& shape, std::uintptr_t cost, bool is_double,
         const std::array<std::int64_t, 3>& strides, std::uintptr_t num_targets, std::uintptr_t matches) {
        return fastmtl::linear_assignment({shape[0], shape[1], shape[2], pointer<const void>(cost), is_double, strides,
                                           pointer<const std::int64_t>(num_targets)},
                                          pointer<std::int64_t>(matches));
      },
      py::call_guard<py::gil_scoped_release>(), "shape: batch, queries, targets; see assignment.hpp.");
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
  m.def(
      "dice_bce_forward",
      [](const std::array<std::int64_t, 4>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t pos_weight, std::uintptr_t weight, double bce_weight, double dice_weight, bool batch,
         bool squared, bool jaccard, double smooth_nr, double smooth_dr, int empty, int reduction, std::uintptr_t loss,
         std::uintptr_t coefficients, std::uintptr_t counts, int num_threads) {
        return fastmtl::dice_bce_forward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared),
                                         {pointer<const float>(weight), bce_weight, dice_weight,
                                          {smooth_nr, smooth_dr, jaccard, squared, static_cast<fastmtl::Empty>(empty)},
                                          batch, reduction},
                                         pointer<float>(loss), pointer<float>(coefficients),
                                         pointer<std::int64_t>(counts), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "shape: groups, batch, channels, pixels; see dice_bce.hpp.");
  m.def(
      "sigmoid_overlap_forward",
      [](const std::array<std::int64_t, 4>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t pos_weight, bool squared, std::uintptr_t sums, int num_threads) {
        return fastmtl::sigmoid_overlap_forward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared),
                                                pointer<float>(sums), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "sums [5, B, C]; see dice_bce.hpp.");
  m.def(
      "dice_bce_backward",
      [](const std::array<std::int64_t, 4>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t pos_weight, bool squared, const View& grad, std::uintptr_t coefficients, const View& gradient,
         int num_threads) {
        fastmtl::dice_bce_backward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared), planes(grad),
                                   pointer<const float>(coefficients), planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see dice_bce.hpp.");
  m.def(
      "sample_points",
      [](const std::array<std::int64_t, 5>& s, std::uintptr_t coordinates, bool is_double, int num_threads,
         std::uintptr_t maps, int type, std::int64_t batch_stride, std::int64_t channel_stride, std::uintptr_t out) {
        FASTMTL_DISPATCH(sample_points)
        ({s[0], s[1], s[2], s[3], s[4], pointer<const void>(coordinates), is_double, num_threads},
         pointer<const void>(maps), static_cast<fastmtl::Element>(type), batch_stride, channel_stride,
         pointer<void>(out));
      },
      py::call_guard<py::gil_scoped_release>(), "shape: batch, channels, height, width, points; see points.hpp.");
  m.def(
      "scatter_points",
      [](const std::array<std::int64_t, 5>& s, std::uintptr_t coordinates, bool is_double, int num_threads,
         std::uintptr_t grad, std::uintptr_t gradient) {
        FASTMTL_DISPATCH(scatter_points)
        ({s[0], s[1], s[2], s[3], s[4], pointer<const void>(coordinates), is_double, num_threads},
         pointer<const void>(grad), pointer<void>(gradient));
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = the transpose of sample_points at grad.");
  m.def(
      "sigmoid_focal_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t factors, const std::array<double, 3>& options, int reduction, std::uintptr_t loss,
         std::uintptr_t coefficients, int num_threads) {
        return fastmtl::sigmoid_focal_forward(sigmoid_focal_problem(shape, logits, target, mask, factors, options),
                                              static_cast<fastmtl::Reduction>(reduction), pointer<float>(loss),
                                              pointer<float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "options: positive, negative, gamma; see focal.hpp.");
  m.def(
      "sigmoid_focal_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t factors, const std::array<double, 3>& options, const View& grad, std::uintptr_t coefficients,
         const View& gradient, int num_threads) {
        fastmtl::sigmoid_focal_backward(sigmoid_focal_problem(shape, logits, target, mask, factors, options),
                                        planes(grad), pointer<const float>(coefficients), planes(gradient),
                                        num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see focal.hpp.");
  m.def(
      "softmax_focal_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t factors, const std::array<double, 2>& options, int reduction, std::uintptr_t loss,
         std::uintptr_t coefficients, int num_threads) {
        return fastmtl::softmax_focal_forward(softmax_focal_problem(shape, logits, target, mask, factors, options),
                                              static_cast<fastmtl::Reduction>(reduction), pointer<float>(loss),
                                              pointer<float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "options: gamma, ignore_index; see focal.hpp.");
  m.def(
      "softmax_focal_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t factors, const std::array<double, 2>& options, const View& grad, std::uintptr_t coefficients,
         const View& gradient, int num_threads) {
        fastmtl::softmax_focal_backward(softmax_focal_problem(shape, logits, target, mask, factors, options),
                                        planes(grad), pointer<const float>(coefficients), planes(gradient),
                                        num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see focal.hpp.");
  m.def(
      "dice_ce_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, const std::array<bool, 5>& wanted, std::uintptr_t weight, double ce_weight,
         double dice_weight, double smoothing, bool background, bool batch, bool jaccard, double smooth_nr,
         double smooth_dr, int empty, int reduction, std::uintptr_t loss, std::uintptr_t coefficients,
         std::uintptr_t counts, int num_threads) {
        return fastmtl::dice_ce_forward(
            softmax_problem(shape, logits, target, mask, ignore_index, wanted),
            {pointer<const float>(weight), ce_weight, dice_weight, smoothing, background, batch,
             {smooth_nr, smooth_dr, jaccard, wanted[1], static_cast<fastmtl::Empty>(empty)}, reduction},
            pointer<float>(loss), pointer<float>(coefficients), pointer<std::int64_t>(counts), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Pixels whose class number does not exist; see dice_ce.hpp.");
  m.def(
      "softmax_overlap_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, const std::array<bool, 5>& wanted, std::uintptr_t sums, int num_threads) {
        return fastmtl::softmax_overlap_forward(softmax_problem(shape, logits, target, mask, ignore_index, wanted),
                                                pointer<float>(sums), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Pixels whose class number does not exist; see dice_ce.hpp.");
  m.def(
      "dice_ce_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, const std::array<bool, 5>& wanted, const View& grad, std::uintptr_t coefficients,
         double smoothing, const View& gradient, int num_threads) {
        fastmtl::dice_ce_backward(softmax_problem(shape, logits, target, mask, ignore_index, wanted), planes(grad),
                                  pointer<const float>(coefficients), smoothing, planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see dice_ce.hpp.");
  m.def("nt_xent_scratch", &fastmtl::nt_xent_scratch, "How many floats of scratch memory; see nt_xent.hpp.");
  m.def(
      "nt_xent_forward",
      [](std::uintptr_t data, int type, std::int64_t rows, std::int64_t dim, std::uintptr_t mask, double temperature,
         std::uintptr_t loss, std::uintptr_t coefficients, std::uintptr_t scratch, int num_threads) {
        fastmtl::nt_xent_forward({pointer<const void>(data), static_cast<fastmtl::Element>(type), rows, dim,
                                  pointer<const std::uint8_t>(mask), temperature},
                                 pointer<float>(loss), pointer<float>(coefficients), pointer<float>(scratch),
                                 num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "loss and coefficients [2 rows + 1]; see nt_xent.hpp.");
  m.def(
      "nt_xent_backward",
      [](std::uintptr_t data, int type, std::int64_t rows, std::int64_t dim, std::uintptr_t mask, double temperature,
         std::uintptr_t grad, std::uintptr_t coefficients, std::uintptr_t gradient, std::uintptr_t scratch,
         int num_threads) {
        fastmtl::nt_xent_backward({pointer<const void>(data), static_cast<fastmtl::Element>(type), rows, dim,
                                   pointer<const std::uint8_t>(mask), temperature},
                                  pointer<const float>(grad), pointer<const float>(coefficients),
                                  pointer<void>(gradient), pointer<float>(scratch), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d data; see nt_xent.hpp.");
  m.def(
      "regression_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& input, const View& target, const View& mask, int error,
         double beta, int reduction, std::uintptr_t loss, std::uintptr_t slopes, int num_threads) {
        fastmtl::regression_forward(regression_problem(shape, input, target, mask, error, beta), reduction,
                                    pointer<float>(loss), pointer<float>(slopes), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "shape: batch, channels, pixels; see regression.hpp.");
  m.def(
      "regression_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& input, const View& target, const View& mask, int error,
         double beta, std::uintptr_t grad, std::int64_t grad_stride, std::uintptr_t slopes, const View& gradient,
         int num_threads) {
        fastmtl::regression_backward(regression_problem(shape, input, target, mask, error, beta),
                                     pointer<const float>(grad), grad_stride, pointer<const float>(slopes),
                                     planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d input; see regression.hpp.");
  m.def(
      "deep_supervision_forward",
      [](std::int64_t batch, std::int64_t channels, const std::vector<HeadView>& heads,
         const std::vector<double>& weights, const std::array<View, 2>& flat, const std::array<VolumeView, 2>& full,
         std::uintptr_t pos_weight, int downsample, double bce_weight, double dice_weight, bool over_batch,
         bool squared, bool jaccard, double smooth_nr, double smooth_dr, int empty, std::uintptr_t losses,
         std::uintptr_t total, std::uintptr_t coefficients, int num_threads) {
        Supervision all(batch, channels, heads, weights, flat, full, pos_weight, squared, downsample);
        const fastmtl::DiceOptions dice{smooth_nr, smooth_dr, jaccard, squared, static_cast<fastmtl::Empty>(empty)};
        return fastmtl::deep_supervision_forward(all.problem, {nullptr, bce_weight, dice_weight, dice, over_batch, 1},
                                                 pointer<float>(losses), pointer<float>(total),
                                                 pointer<float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "flat, full: target and mask; see deep_supervision.hpp.");
  m.def(
      "deep_supervision_backward",
      [](std::int64_t batch, std::int64_t channels, const std::vector<HeadView>& heads,
         const std::vector<double>& weights, const std::array<View, 2>& flat, const std::array<VolumeView, 2>& full,
         std::uintptr_t pos_weight, int downsample, bool squared, std::uintptr_t grad, std::int64_t grad_stride,
         std::uintptr_t coefficients, int num_threads) {
        Supervision all(batch, channels, heads, weights, flat, full, pos_weight, squared, downsample);
        fastmtl::deep_supervision_backward(all.problem, pointer<const float>(grad), grad_stride,
                                           pointer<const float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Every head's gradient; see deep_supervision.hpp.");
  bind_stain(m);
}
