// Stain statistics and normalisation; see stain.hpp.
#include "bindings/view.hpp"

#include "stain/stain.hpp"

namespace {

// (address, batch, pixels, batch stride, channel stride, pixel stride, address of inside or 0).
using Images = std::array<std::int64_t, 7>;
// (address, element type, batch stride, channel stride, pixel stride, rounding).
using Output = std::array<std::int64_t, 6>;

fastmtl::StainImages images(const Images& view) {
  return {pointer<const std::uint8_t>(view[0]), view[1], view[2], view[3], view[4], view[5],
          pointer<const std::uint8_t>(view[6])};
}

fastmtl::StainOutput output(const Output& view) {
  return {pointer<void>(view[0]),   static_cast<fastmtl::Element>(view[1]), view[2], view[3], view[4],
          static_cast<int>(view[5])};
}

}  // namespace

void bind_stain(pybind11::module_& m) {
  define(
      m, "stain_moments",
      [](const Images& view, Address table, int kind, int limit, Address tables, float threshold, std::int64_t chunk,
         Address partials, int threads) {
        FASTMTL_DISPATCH(stain_moments, images(view), table, {kind, limit, tables, threshold}, chunk, partials,
                         threads);
      },
      "partials [B, chunks, 10].");
  define(
      m, "stain_angles",
      [](const Images& view, Address table, int kind, int limit, Address tables, float threshold, Address basis,
         float least_square, Address counts, int slots, int threads) {
        FASTMTL_DISPATCH(stain_angles, images(view), table, {kind, limit, tables, threshold}, basis, least_square,
                         counts, slots, threads);
      },
      "counts [B, slots, bins + 1].");
  define(
      m, "stain_concentrations",
      [](const Images& view, Address table, Address matrix, Address lasso, Address scale, Address counts, int slots,
         int threads) {
        FASTMTL_DISPATCH(stain_concentrations, images(view), table, {matrix, lasso}, scale, counts, slots, threads);
      },
      "counts [B, slots, 2, bins + 1].");
  define(
      m, "stain_colours",
      [](const Images& view, int kind, int limit, Address tables, float threshold, Address index, Address entries,
         std::int64_t count) {
        return FASTMTL_DISPATCH(stain_colours, images(view), {kind, limit, tables, threshold}, index, entries, count);
      },
      "entries [capacity, 9]; returns how many are used.");
  define(
      m, "stain_apply",
      [](const Images& view, Address table, Address coefficients, bool lasso, const Output& out, int threads) {
        FASTMTL_DISPATCH(stain_apply, images(view), table, coefficients, lasso, output(out), threads);
      },
      "coefficients [B, 44].");
  define(
      m, "stain_lab_moments",
      [](const Images& view, int space, bool eight_bit, std::int64_t chunk, Address partials, int threads) {
        FASTMTL_DISPATCH(stain_lab_moments, images(view), space, eight_bit, chunk, partials, threads);
      },
      "partials [B, chunks, 7].");
  define(
      m, "stain_lab_apply",
      [](const Images& view, int space, bool eight_bit, Address coefficients, const Output& out, int threads) {
        FASTMTL_DISPATCH(stain_lab_apply, images(view), space, eight_bit, coefficients, output(out), threads);
      },
      "coefficients [B, 26].");
  define(
      m, "stain_dictionary",
      [](Address density, Address weight, std::int64_t count, double penalty, int iterations, double tolerance,
         Address atoms) {
        return FASTMTL_DISPATCH(stain_dictionary, density, weight, count, penalty, iterations, tolerance, atoms);
      },
      "density [3, count]; updates atoms [2, 3], returns the objective.");
}
