#pragma once
// What the host decides before a launch: which part of the workspace belongs to what, and how work is cut up.
// Plain C++, so that it is tested without a device.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "image.h"

namespace gliofed::cuda {

// One block of the foreground kernel finds this much of a mask.
inline constexpr int kTileWords = 8;
inline constexpr int kTileWidth = 32 * kTileWords;
inline constexpr int kTileRows = 32;

// One block of the finish kernel keeps this many rows of the denoised crop, and gives at most that many rows.
inline constexpr int kSourceRows = 24;
inline constexpr int kMaxBandRows = 16;

// A connected part of a mask whose holes are filled; bounds are inclusive. `start` is y * width + x of its first
// pixel in reading order. Twice the area stays below 2 * kMaxPixels.
struct Component {
    std::uint32_t twice_area;
    std::int32_t start;
    std::int32_t min_x;
    std::int32_t max_x;
    std::int32_t max_y;
};

// One image and its share of the workspace, as the kernels read it.
struct ImageTask {
    const std::uint8_t* pixels;
    std::int64_t row_stride;
    std::int32_t height;
    std::int32_t width;
    std::int32_t channels;
    ChannelOrder order;
    std::int32_t words_per_row;
    std::int32_t first_tile;   // among the tiles of the whole batch
    std::uint32_t* mask;       // bit x % 32 of word x / 32 is pixel x; bits at and beyond `width` are zero
    std::int32_t* nodes;       // max_nodes(height, width)
    std::int32_t* row_starts;  // height + 1
    Component* components;     // max_components(height, width)
};

struct Plan {
    std::vector<ImageTask> tasks;
    std::int32_t num_tiles;
    ImageTask* device_tasks;
    std::uint8_t* crops;
    std::size_t bytes;
};

// Throws std::invalid_argument for images outside the limits. `workspace` may be null to learn `bytes` alone.
Plan make_plan(std::span<const ImageView> images, void* workspace);

// An opened mask is a union of 5x5 squares around pixels of the image. Give every square one more row and column:
// squares of parts that do not touch are then disjoint, each fills 6x6 pixels, and all lie within the image grown
// by five. The same in one dimension bounds the runs of a row; background has one run more only where both ends of
// the row are background, and then there is room for one more.
constexpr std::int64_t max_runs(std::int64_t width) { return (width + 5) / 6; }
constexpr std::int64_t max_nodes(std::int64_t height, std::int64_t width) {
    return height * max_runs(width) + 1;  // and one for what lies outside the image
}
constexpr std::int64_t max_components(std::int64_t height, std::int64_t width) {
    return (height + 5) * (width + 5) / 36;
}

// Throws std::invalid_argument for an output side outside 1..kMaxOutputSide.
void check_output_side(std::ptrdiff_t side);

// How many output rows one block of the finish kernel makes, so that their source rows fit kSourceRows.
int band_rows(std::ptrdiff_t side);

}  // namespace gliofed::cuda
