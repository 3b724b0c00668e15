// The stain kernels for Python; see stain.hpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "stain/stain.hpp"

namespace py = pybind11;

namespace {

// (address, batch, pixels, batch stride, channel stride, pixel stride, address of inside or 0).
using Images = std::array<std::int64_t, 7>;
// (address, element type, batch stride, channel stride, pixel stride, rounding).
using Output = std::array<std::int64_t, 6>;

template <typename T>
T* at(std::int64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

fastmtl::StainImages images(const Images& view) {
  return {at<const std::uint8_t>(view[0]), view[1], view[2], view[3], view[4], view[5],
          at<const std::uint8_t>(view[6])};
}

fastmtl::StainOutput output(const Output& view) {
  return {at<void>(view[0]), static_cast<fastmtl::Element>(view[1]), view[2], view[3], view[4],
          static_cast<int>(view[5])};
}

fastmtl::StainMask mask(int kind, int limit, std::int64_t tables, float threshold) {
  return {kind, limit, at<const float>(tables), threshold};
}

}  // namespace

void bind_stain(py::module_& m) {
  using Free = py::call_guard<py::gil_scoped_release>;
  m.def(
      "stain_moments",
      [](const Images& view, std::int64_t table, int kind, int limit, std::int64_t tables, float threshold,
         std::int64_t chunk, std::int64_t partials, int threads) {
        FASTMTL_DISPATCH(stain_moments)
        (images(view), at<const float>(table), mask(kind, limit, tables, threshold), chunk, at<double>(partials),
         threads);
      },
      Free(), "partials [B, chunks, 10].");
  m.def(
      "stain_angles",
      [](const Images& view, std::int64_t table, int kind, int limit, std::int64_t tables, float threshold,
         std::int64_t basis, float least_square, std::int64_t counts, int slots, int threads) {
        FASTMTL_DISPATCH(stain_angles)
        (images(view), at<const float>(table), mask(kind, limit, tables, threshold), at<const float>(basis),
         least_square, at<std::int32_t>(counts), slots, threads);
      },
      Free(), "counts [B, slots, bins + 1].");
  m.def(
      "stain_concentrations",
      [](const Images& view, std::int64_t table, std::int64_t matrix, std::int64_t lasso, std::int64_t scale,
         std::int64_t counts, int slots, int threads) {
        FASTMTL_DISPATCH(stain_concentrations)
        (images(view), at<const float>(table), {at<const float>(matrix), at<const float>(lasso)},
         at<const float>(scale), at<std::int32_t>(counts), slots, threads);
      },
      Free(), "counts [B, slots, 2, bins + 1].");
  m.def(
      "stain_colours",
      [](const Images& view, int kind, int limit, std::int64_t tables, float threshold, std::int64_t index,
         std::int64_t entries, std::int64_t count) {
        return FASTMTL_DISPATCH(stain_colours)(images(view), mask(kind, limit, tables, threshold),
                                               at<std::int32_t>(index), at<std::int64_t>(entries), count);
      },
      Free(), "entries [capacity, 9]; returns how many are used.");
  m.def(
      "stain_apply",
      [](const Images& view, std::int64_t table, std::int64_t recipes, bool lasso, const Output& out, int threads) {
        FASTMTL_DISPATCH(stain_apply)
        (images(view), at<const float>(table), at<const float>(recipes), lasso, output(out), threads);
      },
      Free(), "recipes [B, 44].");
  m.def(
      "stain_lab_moments",
      [](const Images& view, int space, bool eight_bit, std::int64_t chunk, std::int64_t partials, int threads) {
        FASTMTL_DISPATCH(stain_lab_moments)(images(view), space, eight_bit, chunk, at<double>(partials), threads);
      },
      Free(), "partials [B, chunks, 7].");
  m.def(
      "stain_lab_apply",
      [](const Images& view, int space, bool eight_bit, std::int64_t recipes, const Output& out, int threads) {
        FASTMTL_DISPATCH(stain_lab_apply)
        (images(view), space, eight_bit, at<const float>(recipes), output(out), threads);
      },
      Free(), "recipes [B, 26].");
  m.def(
      "stain_dictionary",
      [](std::int64_t density, std::int64_t weight, std::int64_t count, double penalty, int iterations,
         double tolerance, std::int64_t atoms) {
        return FASTMTL_DISPATCH(stain_dictionary)(at<const double>(density), at<const double>(weight), count, penalty,
                                                  iterations, tolerance, at<double>(atoms));
      },
      Free(), "density [3, count]; updates atoms [2, 3], returns the objective.");
}
