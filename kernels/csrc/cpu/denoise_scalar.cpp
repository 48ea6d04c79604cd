#include "denoise.h"

#include <bit>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "denoise_weights.h"

namespace gliofed {
namespace {

void weigh(const std::uint8_t* a, const std::uint8_t* b, float* weights, std::ptrdiff_t length) {
    for (std::ptrdiff_t i = 0; i < length; ++i) {
        weights[i] = kNeighbourWeights[static_cast<std::size_t>(std::abs(a[i] - b[i]))];
    }
}

// level * weight + sum, rounded once to float32. Every weight lies in [2^-19, 1], so the exact result fits
// a double's 53 bits and the conversion is the only rounding: a fused multiply-add on any CPU.
float fused(std::uint8_t level, float weight, float sum) {
    return static_cast<float>(double{weight} * level + double{sum});
}

// Nearest integer, ties to even, for 0 <= value <= 255: above 2^23 a float's last bit is one.
std::uint8_t round_level(float value) {
    return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(value + 8388608.0F) & 0xFFU);
}

struct Weights {
    const float* up;
    const float* left;
    const float* right;
    const float* down;
};

void filter_row(const std::uint8_t* up, const std::uint8_t* here, const std::uint8_t* down, Weights w,
                std::uint8_t* __restrict out, std::ptrdiff_t side) {
    for (std::ptrdiff_t x = 0; x < side; ++x) {
        const float total = (((w.up[x] + w.left[x]) + 1.0F) + w.right[x]) + w.down[x];
        float sum = w.up[x] * static_cast<float>(up[x]);
        sum = fused(here[x - 1], w.left[x], sum);
        sum += static_cast<float>(here[x]);
        sum = fused(here[x + 1], w.right[x], sum);
        sum = fused(down[x], w.down[x], sum);
        out[x] = round_level(sum / total);
    }
}

}  // namespace

void denoise_scalar(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t side, DenoiseBuffers& buffers) {
    const auto length = static_cast<std::size_t>(side);
    float* weight_up = buffers.weights.at_least(3 * length + 1);
    float* weight_down = weight_up + side;
    float* weight_across = weight_down + side;
    std::uint8_t* here = buffers.pixels.at_least(length + 2) + 1;
    for (std::ptrdiff_t y = 0; y < side; ++y) {
        const std::uint8_t* up = in + (y > 0 ? y - 1 : 1) * side;
        const std::uint8_t* down = in + (y + 1 < side ? y + 1 : side - 2) * side;
        std::memcpy(here, in + y * side, length);
        here[-1] = here[1];
        here[side] = here[side - 2];
        // Weights are symmetric: those to the row below are the next row's weights to the row above.
        if (y == 0) weigh(here, up, weight_up, side);
        weigh(here, down, weight_down, side);
        weigh(here - 1, here, weight_across, side + 1);
        filter_row(up, here, down, {weight_up, weight_across, weight_across + 1, weight_down}, out + y * side, side);
        std::swap(weight_up, weight_down);
    }
}

}  // namespace gliofed
