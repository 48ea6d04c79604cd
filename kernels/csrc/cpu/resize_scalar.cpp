#include "resize.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace gliofed {
namespace {

constexpr float kWeightOne = 2048.0F;

std::int16_t fixed_point(float weight) { return static_cast<std::int16_t>(std::lrintf(weight * kWeightOne)); }

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

}  // namespace

void LinearAxis::fit(std::ptrdiff_t source_length, std::ptrdiff_t length, EdgeRule edge) {
    for (auto* indices : {&index_lower, &index_upper}) indices->resize(static_cast<std::size_t>(length));
    for (auto* weights : {&weight_lower, &weight_upper}) weights->resize(static_cast<std::size_t>(length));
    // In OpenCV's order of operations, so that the last bit is its own too.
    const double scale = 1.0 / (static_cast<double>(length) / static_cast<double>(source_length));
    const auto last = static_cast<std::int32_t>(source_length - 1);
    for (std::ptrdiff_t i = 0; i < length; ++i) {
        const auto position = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
        auto index = static_cast<std::int32_t>(std::floor(position));
        float fraction = position - static_cast<float>(index);
        if (edge == EdgeRule::kClampWeight && (index < 0 || index >= last)) {
            index = std::clamp(index, 0, last);
            fraction = 0.0F;
        }
        const auto k = static_cast<std::size_t>(i);
        index_lower[k] = std::clamp(index, 0, last);
        index_upper[k] = std::clamp(index + 1, 0, last);
        weight_lower[k] = fixed_point(1.0F - fraction);
        weight_upper[k] = fixed_point(fraction);
    }
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
    buffers.rows.resize(static_cast<std::size_t>(2 * width));
    // Source row y lives in slot y % 2; two neighbouring rows never collide.
    std::array<std::int32_t, 2> held{-1, -1};
    const auto row_of = [&](std::int32_t y) {
        const auto slot = static_cast<std::size_t>(y % 2);
        std::int16_t* row = buffers.rows.data() + static_cast<std::ptrdiff_t>(slot) * width;
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
