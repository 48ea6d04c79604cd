#pragma once
// Grey levels of an image on the device, straight from grey or interleaved colour pixels.

#include <cuda_runtime.h>

#include <cstdint>

#include "gray.h"
#include "plan.h"

namespace gliofed::cuda {

__device__ inline const std::uint8_t* row_of(const ImageTask& image, int y) {
    return image.pixels + y * image.row_stride;
}

__device__ inline int gray_of(const ImageTask& image, int first, int second, int third) {
    const int blue = image.order == ChannelOrder::kBgr ? first : third;
    const int red = image.order == ChannelOrder::kBgr ? third : first;
    const int sum = blue * kGrayWeightBlue + second * kGrayWeightGreen + red * kGrayWeightRed;
    return (sum + (1 << (kGrayShift - 1))) >> kGrayShift;
}

__device__ inline int level_at(const ImageTask& image, const std::uint8_t* row, int x) {
    if (image.channels == 1) return row[x];
    const std::uint8_t* pixel = row + 3 * static_cast<std::int64_t>(x);
    return gray_of(image, pixel[0], pixel[1], pixel[2]);
}

// Reflect-101 for one pixel beyond either end; farther out any pixel will do, as nobody looks at it.
__device__ inline int mirrored(int i, int length) {
    if (i < 0) i = -i;
    if (i >= length) i = 2 * length - 2 - i;
    return min(max(i, 0), length - 1);
}

// Levels x to x + 3, the first in the lowest byte; x is a multiple of four.
__device__ inline std::uint32_t four_levels(const ImageTask& image, const std::uint8_t* row, int x) {
    const bool whole = x >= 0 && x + 4 <= image.width && reinterpret_cast<std::uintptr_t>(row) % 4 == 0;
    if (!whole) {
        std::uint32_t levels = 0;
        for (int k = 0; k < 4; ++k) {
            levels |= static_cast<std::uint32_t>(level_at(image, row, mirrored(x + k, image.width))) << (8 * k);
        }
        return levels;
    }
    if (image.channels == 1) return *reinterpret_cast<const std::uint32_t*>(row + x);
    const auto* words = reinterpret_cast<const std::uint32_t*>(row + 3 * static_cast<std::int64_t>(x));
    const std::uint32_t a = words[0];
    const std::uint32_t b = words[1];
    const std::uint32_t c = words[2];
    const auto byte = [](std::uint32_t word, int k) { return static_cast<int>((word >> (8 * k)) & 255U); };
    const int levels[4] = {gray_of(image, byte(a, 0), byte(a, 1), byte(a, 2)),
                           gray_of(image, byte(a, 3), byte(b, 0), byte(b, 1)),
                           gray_of(image, byte(b, 2), byte(b, 3), byte(c, 0)),
                           gray_of(image, byte(c, 1), byte(c, 2), byte(c, 3))};
    return static_cast<std::uint32_t>(levels[0] | levels[1] << 8 | levels[2] << 16) |
           static_cast<std::uint32_t>(levels[3]) << 24;
}

}  // namespace gliofed::cuda
