// What losses on mask queries need: matching queries with targets, sampling maps at points.
#include "bindings/view.hpp"

#include "core/isa.hpp"
#include "matching/assignment.hpp"
#include "matching/points.hpp"

namespace {

using PointSizes = std::array<std::int64_t, 5>;  // batch, channels, height, width, points

fastmtl::PointsProblem points_problem(const PointSizes& s, Address coordinates, bool is_double, int num_threads) {
  return {s[0], s[1], s[2], s[3], s[4], coordinates, is_double, num_threads};
}

}  // namespace

void bind_matching(pybind11::module_& m) {
  define(
      m, "linear_assignment",
      [](const Sizes& shape, Address cost, bool is_double, const Sizes& strides, Address num_targets, Address matches) {
        return fastmtl::linear_assignment({shape[0], shape[1], shape[2], cost, is_double, strides, num_targets},
                                          matches);
      },
      "shape: batch, queries, targets; see assignment.hpp.");
  define(
      m, "sample_points",
      [](const PointSizes& shape, Address coordinates, bool is_double, int num_threads, Address maps,
         fastmtl::Element type, std::int64_t batch_stride, std::int64_t channel_stride, Address out) {
        FASTMTL_DISPATCH(sample_points, points_problem(shape, coordinates, is_double, num_threads), maps, type,
                         batch_stride, channel_stride, out);
      },
      "See points.hpp.");
  define(
      m, "scatter_points",
      [](const PointSizes& shape, Address coordinates, bool is_double, int num_threads, Address grad,
         Address gradient) {
        FASTMTL_DISPATCH(scatter_points, points_problem(shape, coordinates, is_double, num_threads), grad, gradient);
      },
      "gradient = the transpose of sample_points at grad.");
}
