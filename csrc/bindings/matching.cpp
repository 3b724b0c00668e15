// What losses on mask queries need: matching queries with targets, sampling maps at points.
#include "bindings/view.hpp"

#include "matching/assignment.hpp"
#include "core/isa.hpp"
#include "matching/points.hpp"

namespace py = pybind11;

void bind_queries(py::module_& m) {
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
}
