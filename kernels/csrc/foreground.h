#pragma once
// Op `foreground`: which pixels belong to the head.

#include <cstdint>

#include "bit_mask.h"
#include "buffer.h"
#include "image.h"

namespace gliofed {

inline constexpr int kForegroundLevel = 45;

// The blur's rounded level (sum + 8) >> 4 exceeds the threshold exactly when the sum reaches this.
inline constexpr int kSmallestForegroundSum = (kForegroundLevel + 1) * 16 - 8;

// Border reflect-101: the place inside [0, length) that stands for i, which lies at most one beyond either end.
inline std::ptrdiff_t reflect(std::ptrdiff_t i, std::ptrdiff_t length) {
    if (length == 1) return 0;
    if (i < 0) return -i;
    return i < length ? i : 2 * length - 2 - i;
}

struct ForegroundBuffers {
    AlignedBuffer<std::uint16_t> column_sums;
    AlignedBuffer<std::uint8_t> scratch;
    BitMask spare;
    AlignedBuffer<std::uint64_t> planes;
};

// 3x3 Gaussian blur (1 2 1, border reflect-101, rounded to 8 bits), level > 45, then an opening by 5x5
// (= erode twice, dilate twice by 3x3) in which pixels outside the image never win.
void foreground_scalar(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers);
void foreground_avx2(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers);
void foreground_avx512(const GrayView& image, BitMask& mask, ForegroundBuffers& buffers);

}  // namespace gliofed
