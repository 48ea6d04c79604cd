#pragma once
// Op `foreground`: which pixels belong to the head.

#include <cstdint>
#include <vector>

#include "bit_mask.h"
#include "image.h"

namespace gliofed {

inline constexpr int kForegroundLevel = 45;

struct ForegroundBuffers {
    std::vector<std::uint16_t> column_sums;
    std::vector<std::uint8_t> above;
    BitMask spare;
};

// 3x3 Gaussian blur (1 2 1, border reflect-101, rounded to 8 bits), level > 45, then an opening by 5x5
// (= erode twice, dilate twice by 3x3) in which pixels outside the image never win.
void foreground_scalar(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers);

}  // namespace gliofed
