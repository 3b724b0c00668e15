// Joins the decoded tiles of a region of a slide to one image.
#pragma once

#include <cstdint>

namespace fastmtl {

// tiles [count, 6]: address, bytes from line to line, left and top edge in the image (may be negative), valid width and
// height. out [height, width, channels]: `outside` where no tile is; later tiles lie over earlier ones.
void stitch_tiles(const std::int64_t* tiles, std::int64_t count, std::int64_t channels, std::uint8_t outside,
                  std::int64_t height, std::int64_t width, std::uint8_t* out);

}  // namespace fastmtl
