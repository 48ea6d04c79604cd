#include "resize.h"

#include <algorithm>
#include <array>
#include <bit>

namespace gliofed {
namespace {

constexpr float kWeightOne = 2048.0F;

// Nearest integer, ties to even: above 2^23 a float's last bit is one. Inline, unlike lrintf.
std::int16_t fixed_point(float weight) {
    return static_cast<std::int16_t>(std::bit_cast<std::int32_t>(weight * kWeightOne + 8388608.0F) & 0xFFFF);
}

// Largest integer not above a value; inline, unlike floor.
std::int32_t round_down(float value) {
    const auto truncated = static_cast<std::int32_t>(value);
    return truncated - (static_cast<float>(truncated) > value ? 1 : 0);
}

// All weights are a half: bilinear comes to the 2x2 mean, rounded once, at a fraction of the cost.
void halve(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width) {
    for (std::ptrdiff_t y = 0; y < height; ++y) {
        const std::uint8_t* a = image.row(2 * y);
        const std::uint8_t* b = image.row(2 * y + 1);
        for (std::ptrdiff_t x = 0; x < width; ++x) {
            out[y * width + x] =
                static_cast<std::uint8_t>((a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1] + 2) >> 2);
        }
    }
}

struct AxisMemory {
    std::int32_t* index_lower;
    std::int32_t* index_upper;
    std::int16_t* weight_lower;
    std::int16_t* weight_upper;
};

__attribute__((always_inline)) inline void fill_axis(std::ptrdiff_t source_length, std::ptrdiff_t length, EdgeRule edge,
                                                     AxisMemory axis) {
    // In OpenCV's order of operations, so that the last bit is its own too.
    const double scale = 1.0 / (static_cast<double>(length) / static_cast<double>(source_length));
    const auto last = static_cast<std::int32_t>(source_length - 1);
    const bool clamp_weight = edge == EdgeRule::kClampWeight;
    const auto count = static_cast<std::int32_t>(length);
    std::int32_t* __restrict index_lower = axis.index_lower;
    std::int32_t* __restrict index_upper = axis.index_upper;
    std::int16_t* __restrict weight_lower = axis.weight_lower;
    std::int16_t* __restrict weight_upper = axis.weight_upper;
    for (std::int32_t i = 0; i < count; ++i) {
        const auto position = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
        const std::int32_t index = round_down(position);
        const bool outside = clamp_weight & ((index < 0) | (index >= last));
        const float exact = position - static_cast<float>(index);
        const float fraction = outside ? 0.0F : exact;
        const std::int32_t lower = index < 0 ? 0 : (index > last ? last : index);
        // From a clamped weight's index on the next one counts, which is the clamped one's neighbour.
        const std::int32_t upper_of = (clamp_weight ? lower : index) + 1;
        index_lower[i] = lower;
        index_upper[i] = upper_of < 0 ? 0 : (upper_of > last ? last : upper_of);
        weight_lower[i] = fixed_point(1.0F - fraction);
        weight_upper[i] = fixed_point(fraction);
    }
}

// Twice an image, so its doubles show: compiled for vectors too, where each still goes through the same operations.
__attribute__((target("avx2"))) void fill_axis_by_vectors(std::ptrdiff_t source_length, std::ptrdiff_t length,
                                                          EdgeRule edge, AxisMemory axis) {
    fill_axis(source_length, length, edge, axis);
}

}  // namespace

bool LinearAxis::fit(std::ptrdiff_t source_length, std::ptrdiff_t length, EdgeRule edge) {
    const auto count = static_cast<std::size_t>(length);
    if (source_length == source_length_ && edge == edge_ && count == index_lower.size()) return false;
    source_length_ = source_length;
    edge_ = edge;
    for (auto* indices : {&index_lower, &index_upper}) indices->resize(count);
    for (auto* weights : {&weight_lower, &weight_upper}) weights->resize(count);
    const AxisMemory memory{index_lower.data(), index_upper.data(), weight_lower.data(), weight_upper.data()};
    if (__builtin_cpu_supports("avx2")) {
        fill_axis_by_vectors(source_length, length, edge, memory);
    } else {
        fill_axis(source_length, length, edge, memory);
    }
    return true;
}

void resize_row_scalar(const std::uint8_t* source, const LinearAxis& x_axis, std::int16_t* row) {
    const std::size_t width = x_axis.index_lower.size();
    const std::int32_t* lower = x_axis.index_lower.data();
    const std::int32_t* upper = x_axis.index_upper.data();
    const std::int16_t* weight_lower = x_axis.weight_lower.data();
    const std::int16_t* weight_upper = x_axis.weight_upper.data();
    for (std::size_t x = 0; x < width; ++x) {
        const int sum = source[lower[x]] * weight_lower[x] + source[upper[x]] * weight_upper[x];
        row[x] = static_cast<std::int16_t>(sum >> 4);
    }
}

void resize_scalar(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width,
                   ResizeBuffers& buffers) {
    if (image.height == 2 * height && image.width == 2 * width) {
        halve(image, out, height, width);
        return;
    }
    buffers.x_axis.fit(image.width, width, EdgeRule::kClampWeight);
    buffers.y_axis.fit(image.height, height, EdgeRule::kClampIndex);
    std::int16_t* rows = buffers.rows.at_least(static_cast<std::size_t>(2 * width));
    // Source row y lives in slot y % 2; two neighbouring rows never collide.
    std::array<std::int32_t, 2> held{-1, -1};
    const auto row_of = [&](std::int32_t y) {
        const auto slot = static_cast<std::size_t>(y % 2);
        std::int16_t* row = rows + static_cast<std::ptrdiff_t>(slot) * width;
        if (held[slot] != y) resize_row_scalar(image.row(y), buffers.x_axis, row);
        held[slot] = y;
        return row;
    };
    for (std::ptrdiff_t y = 0; y < height; ++y) {
        const auto k = static_cast<std::size_t>(y);
        const std::int16_t* lower = row_of(buffers.y_axis.index_lower[k]);
        const std::int16_t* upper = row_of(buffers.y_axis.index_upper[k]);
        const int weight_lower = buffers.y_axis.weight_lower[k];
        const int weight_upper = buffers.y_axis.weight_upper[k];
        std::uint8_t* out_row = out + y * width;
        for (std::ptrdiff_t x = 0; x < width; ++x) {
            out_row[x] = blend_rows(lower[x], upper[x], weight_lower, weight_upper);
        }
    }
}

}  // namespace gliofed
