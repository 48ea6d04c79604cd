#pragma once
// Op `denoise`: the bilateral filter of diameter 2 (a five-tap cross), sigma 50 in level and in space.

#include <cstdint>
#include <vector>

namespace gliofed {

struct DenoiseBuffers {
    std::vector<float> weight_up;
    std::vector<float> weight_down;
    std::vector<float> weight_across;
    std::vector<std::uint8_t> padded;
};

// side x side contiguous pixels, side >= 2, border reflect-101. `out` must not overlap `in`.
// Same order of float32 sums as cv::bilateralFilter with fused multiply-add (any x86-64 CPU since 2013).
void denoise_scalar(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side, DenoiseBuffers& buffers);

}  // namespace gliofed
