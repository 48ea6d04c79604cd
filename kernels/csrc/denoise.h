#pragma once
// Op `denoise`: the bilateral filter of diameter 2 (a five-tap cross), sigma 50 in level and in space.

#include <cstdint>

#include "buffer.h"

namespace gliofed {

struct DenoiseBuffers {
    AlignedBuffer<float> weights;
    AlignedBuffer<float> levels;
    AlignedBuffer<std::uint8_t> pixels;
};

// side x side contiguous pixels, side >= 2, border reflect-101. `out` must not overlap `in`.
// Same order of float32 sums as cv::bilateralFilter with fused multiply-add (any x86-64 CPU since 2013).
void denoise_scalar(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side, DenoiseBuffers& buffers);
void denoise_avx2(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side, DenoiseBuffers& buffers);
void denoise_avx512(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side, DenoiseBuffers& buffers);

}  // namespace gliofed
