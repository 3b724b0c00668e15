#include "loading/mosaic.hpp"

#include <algorithm>
#include <cstring>

namespace fastmtl {

void stitch_tiles(const std::int64_t* tiles, std::int64_t count, std::int64_t channels, std::uint8_t outside,
                  std::int64_t height, std::int64_t width, std::uint8_t* out) {
  std::memset(out, outside, static_cast<std::size_t>(height * width * channels));
  for (const std::int64_t* tile = tiles; tile != tiles + 6 * count; tile += 6) {
    const auto* pixels = reinterpret_cast<const std::uint8_t*>(static_cast<std::uintptr_t>(tile[0]));
    const std::int64_t pitch = tile[1], x = tile[2], y = tile[3];
    const std::int64_t left = std::max<std::int64_t>(x, 0), top = std::max<std::int64_t>(y, 0);
    const std::int64_t right = std::min(x + tile[4], width), bottom = std::min(y + tile[5], height);
    if (right <= left) continue;
    const auto bytes = static_cast<std::size_t>((right - left) * channels);
    for (std::int64_t line = top; line < bottom; ++line)
      std::memcpy(out + (line * width + left) * channels, pixels + (line - y) * pitch + (left - x) * channels, bytes);
  }
}

}  // namespace fastmtl
