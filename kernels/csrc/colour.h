#pragma once
// Op `colour`: BONE colour map, bilinear resize in 8 bits, normalisation to float32 planes.

#include <array>
#include <cstdint>
#include <vector>

#include "resize.h"

namespace gliofed {

// Plane c of the output is (level * scale - mean[c]) / stddev[c], with level from BONE channel channel[c]
// (0 blue, 1 green, 2 red).
struct Normalisation {
    std::array<int, 3> channel;
    float scale;
    std::array<float, 3> mean;
    std::array<float, 3> stddev;
};

struct ColourBuffers {
    ResizeBuffers resize;
    std::vector<std::uint8_t> mapped;
    std::vector<std::uint8_t> levels;
};

// `gray` is source_side x source_side, `out` 3 x side x side; both contiguous.
void colour_scalar(const std::uint8_t* gray, std::ptrdiff_t source_side, const Normalisation& normalisation,
                   float* out, std::ptrdiff_t side, ColourBuffers& buffers);

}  // namespace gliofed
