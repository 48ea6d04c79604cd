#pragma once
// Op `resize`: bilinear, 8 bits, the arithmetic of cv::resize INTER_LINEAR.

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "image.h"

namespace gliofed {

// OpenCV clamps the interpolation weight at the left and right edges and only the row index at top and bottom.
enum class EdgeRule { kClampWeight, kClampIndex };

// Output i is lower[i] * source[index_lower[i]] + upper[i] * source[index_upper[i]], weights in 1/2048.
struct LinearAxis {
    std::vector<std::int32_t> index_lower;
    std::vector<std::int32_t> index_upper;
    std::vector<std::int16_t> weight_lower;
    std::vector<std::int16_t> weight_upper;

    // False, and nothing done, when the axis is fitted to the same lengths already.
    bool fit(std::ptrdiff_t source_length, std::ptrdiff_t length, EdgeRule edge);

  private:
    std::ptrdiff_t source_length_ = 0;
    EdgeRule edge_ = EdgeRule::kClampWeight;
};

// One row interpolated along x, 1/128 of a level in each unit: at most 255 * 128, so 15 bits.
void resize_row_scalar(const std::uint8_t* source, const LinearAxis& x_axis, std::int16_t* row);

// Joins two such rows with weights in 1/2048 and rounds to 8 bits, as OpenCV's vectorised pass does.
inline std::uint8_t blend_rows(std::int16_t lower, std::int16_t upper, int weight_lower, int weight_upper) {
    return static_cast<std::uint8_t>((((lower * weight_lower) >> 16) + ((upper * weight_upper) >> 16) + 2) >> 2);
}

// An axis in the form that a twin's registers want; how a twin fills it is its own affair.
struct RowPlan {
    AlignedBuffer<std::int32_t> bases;
    AlignedBuffer<std::uint8_t> indices;
    AlignedBuffer<std::int16_t> weights;
    std::ptrdiff_t num_groups = 0;
    std::ptrdiff_t window = 0;  // bytes of the source that one group reads; 0: more than registers hold
};

struct ResizeBuffers {
    LinearAxis x_axis;
    LinearAxis y_axis;
    RowPlan plan;
    AlignedBuffer<std::int16_t> rows;
};

// `out` is height x width, contiguous; sides of `image` and `out` are at least 1.
void resize_scalar(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width,
                   ResizeBuffers& buffers);
void resize_avx2(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width,
                 ResizeBuffers& buffers);
void resize_avx512(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width,
                   ResizeBuffers& buffers);

}  // namespace gliofed
