// The loader's transform of decoded pixels; see loading/mosaic.hpp and loading/transform.hpp.
#include "bindings/view.hpp"

#include "core/isa.hpp"
#include "loading/mosaic.hpp"
#include "loading/transform.hpp"

namespace {

using Share = std::array<std::int64_t, 3>;    // size of the output, first and last row of the batch
using Sources = std::array<std::int64_t, 4>;  // addresses of table, matrix, field; side of the field
using Colours = std::array<std::int64_t, 5>;  // addresses of colour, noise, keys, scale, shift

fastmtl::TransformSources sources(const Sources& s, const Share& share) {
  return {pointer<const std::int64_t>(s[0]),
          pointer<const float>(s[1]),
          pointer<const float>(s[2]),
          s[3],
          share[0],
          share[1],
          share[2]};
}

fastmtl::TransformColour colours(const Colours& c) {
  return {pointer<const float>(c[0]), pointer<const float>(c[1]), pointer<const std::uint32_t>(c[2]),
          pointer<const float>(c[3]), pointer<const float>(c[4])};
}

}  // namespace

void bind_loading(pybind11::module_& m) {
  define(
      m, "stitch_tiles",
      [](Address tiles, std::int64_t count, std::int64_t channels, std::uint8_t outside, std::int64_t height,
         std::int64_t width,
         Address out) { fastmtl::stitch_tiles(tiles, count, channels, outside, height, width, out); },
      "tiles int64 [count, 6], out uint8 [height, width, channels].");
  define(
      m, "transform_images",
      [](const Sources& from, const Share& share, const Colours& colour, int outside, Address out) {
        FASTMTL_DISPATCH(transform_images, sources(from, share), colours(colour), outside, out);
      },
      "out float32 [B, 3, size, size].");
  define(
      m, "warp_images",
      [](const Sources& from, const Share& share, int outside, Address out, Address inside) {
        FASTMTL_DISPATCH(warp_images, sources(from, share), outside, out, inside);
      },
      "out uint8 [B, 3, size, size], inside uint8 [B, size, size].");
  define(
      m, "transform_maps",
      [](const Sources& from, const Share& share, float threshold, bool nearest, std::int64_t channels, Address out) {
        FASTMTL_DISPATCH(transform_maps, sources(from, share), threshold, nearest, channels, out);
      },
      "out uint8 [B, channels, size, size].");
  define(
      m, "add_noise",
      [](const Share& share, const Colours& colour, Address images) {
        FASTMTL_DISPATCH(add_noise, colours(colour), share[0], share[1], share[2], images);
      },
      "images float32 [B, 3, size, size].");
  define(
      m, "is_constant",
      [](Address pixels, std::int64_t count, std::int64_t channels) {
        return FASTMTL_DISPATCH(is_constant, pixels, count, channels);
      },
      "pixels uint8 [count, channels].");
}
