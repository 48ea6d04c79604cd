#include "resize.h"

#include "cpu/avx512.h"
#include "cpu/avx512_rows.h"

namespace gliofed {
namespace {

using avx512::first_lanes;
using avx512::kGroup;

GLIOFED_AVX512_INLINE void store_bytes(std::uint8_t* out, std::ptrdiff_t count, __m512i words) {
    const auto valid = static_cast<__mmask32>(first_lanes(count));
    _mm256_mask_storeu_epi8(out, valid, _mm512_cvtepi16_epi8(words));
}

// All weights are a half, see resize_scalar.
GLIOFED_AVX512 void halve(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (std::ptrdiff_t y = 0; y < height; ++y) {
        const std::uint8_t* upper = image.row(2 * y);
        const std::uint8_t* lower = image.row(2 * y + 1);
        for (std::ptrdiff_t x = 0; x < width; x += kGroup) {
            const std::uint64_t valid = first_lanes(2 * (width - x));
            const __m512i a = _mm512_maddubs_epi16(_mm512_maskz_loadu_epi8(valid, upper + 2 * x), ones);
            const __m512i b = _mm512_maddubs_epi16(_mm512_maskz_loadu_epi8(valid, lower + 2 * x), ones);
            const __m512i sum = _mm512_add_epi16(_mm512_add_epi16(a, b), _mm512_set1_epi16(2));
            store_bytes(out + y * width + x, width - x, _mm512_srli_epi16(sum, 2));
        }
    }
}

template <std::ptrdiff_t kWindow>
GLIOFED_AVX512 void resize_rows(const GrayView& image, const LinearAxis& y_axis, const RowPlan& plan, std::uint8_t* out,
                                std::ptrdiff_t height, std::ptrdiff_t width) {
    for (std::ptrdiff_t y = 0; y < height; ++y) {
        const auto k = static_cast<std::size_t>(y);
        const avx512::RowBlend rows{image.row(y_axis.index_lower[k]), image.row(y_axis.index_upper[k]),
                                    y_axis.weight_lower[k], y_axis.weight_upper[k]};
        avx512::resize_row<kWindow>(rows, image.width, plan, out + y * width, width);
    }
}

}  // namespace

void resize_avx512(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width,
                   ResizeBuffers& buffers) {
    if (image.height == 2 * height && image.width == 2 * width) {
        halve(image, out, height, width);
        return;
    }
    if (buffers.x_axis.fit(image.width, width, EdgeRule::kClampWeight)) {
        avx512::plan_row(buffers.x_axis, buffers.plan);
    }
    if (buffers.plan.window == 0) {
        resize_scalar(image, out, height, width, buffers);
        return;
    }
    buffers.y_axis.fit(image.height, height, EdgeRule::kClampIndex);
    const auto resize = buffers.plan.window == 64 ? &resize_rows<64> : &resize_rows<128>;
    resize(image, buffers.y_axis, buffers.plan, out, height, width);
}

}  // namespace gliofed
