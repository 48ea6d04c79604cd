#include "resize.h"

#include "avx2.h"

namespace gliofed {
namespace avx2 {
namespace {

// Eight outputs: the bytes of their pixels in their windows as 32-bit elements, left pixel lowest.
struct PlannedEight {
    __m256i bytes;
    __m256i windows;  // first source column, the same in all elements that share a window
    bool fits;
};

template <std::ptrdiff_t kWindows>
GLIOFED_AVX2_INLINE PlannedEight plan_eight(const LinearAxis& axis, std::ptrdiff_t i, std::ptrdiff_t source_length) {
    const auto k = static_cast<std::size_t>(i);
    const __m256i left = load256(&axis.index_lower[k]);
    const __m256i right = load256(&axis.index_upper[k]);
    // One window for all eight, or one for each four.
    const __m256i first = kWindows == 2 ? _mm256_set1_epi32(axis.index_lower[k]) : _mm256_shuffle_epi32(left, 0);
    const __m256i last_window = _mm256_set1_epi32(static_cast<std::int32_t>(source_length - kWindow));
    const __m256i windows = _mm256_min_epi32(first, last_window);
    const __m256i left_byte = _mm256_sub_epi32(left, windows);
    const __m256i right_byte = _mm256_sub_epi32(right, windows);
    const __m256i beyond = _mm256_cmpgt_epi32(right_byte, _mm256_set1_epi32(kWindow - 1));
    return {_mm256_or_si256(left_byte, _mm256_slli_epi32(right_byte, 8)), windows,
            _mm256_testz_si256(beyond, beyond) != 0};
}

// The weight of the right pixel in the form that `interpolate` wants. Weights are rounded one by one, so pairs that do
// not come to 2048 are conceivable, and for 2048 itself 16 bits do not suffice: false where there is such a one.
GLIOFED_AVX2_INLINE bool plan_weights(const LinearAxis& axis, std::ptrdiff_t i, std::int16_t* weights) {
    const auto k = static_cast<std::size_t>(i);
    const __m256i left = load256(&axis.weight_lower[k]);
    const __m256i right = load256(&axis.weight_upper[k]);
    const __m256i one = _mm256_set1_epi16(2048);
    const __m256i all_right = _mm256_cmpeq_epi16(right, one);
    const __m256i usable = _mm256_andnot_si256(all_right, _mm256_cmpeq_epi16(_mm256_add_epi16(left, right), one));
    store256(weights, _mm256_slli_epi16(_mm256_sub_epi16(right, _mm256_set1_epi16(1024)), 5));
    return _mm256_movemask_epi8(usable) == -1;
}

// The bytes of sixteen outputs in their order, as one shuffle, or as two that leave zero where the other one acts.
template <std::ptrdiff_t kWindows>
GLIOFED_AVX2_INLINE void store_shuffles(std::uint8_t* shuffles, const PlannedEight& low, const PlannedEight& high) {
    const __m256i packed = _mm256_packus_epi32(low.bytes, high.bytes);
    const __m256i bytes = _mm256_permute4x64_epi64(packed, 0xD8);
    if constexpr (kWindows == 2) {
        store256(shuffles, bytes);
    } else {
        const __m256i none = _mm256_set1_epi8(static_cast<char>(0x80));
        store256(shuffles, _mm256_blend_epi32(bytes, none, 0xCC));
        store256(shuffles + 32, _mm256_blend_epi32(bytes, none, 0x33));
    }
}

template <std::ptrdiff_t kWindows>
GLIOFED_AVX2 bool plan_steps(const LinearAxis& axis, std::ptrdiff_t source_length, RowPlan& plan) {
    const auto steps = static_cast<std::size_t>(plan.num_groups);
    const auto width = static_cast<std::ptrdiff_t>(axis.index_lower.size());
    std::int32_t* windows = plan.bases.at_least(steps * kWindows);
    std::uint8_t* shuffles = plan.indices.at_least(steps * kWindows * kWindow);
    std::int16_t* weights = plan.weights.at_least(steps * kRowStep);
    for (std::ptrdiff_t i = 0; i < plan.num_groups; ++i) {
        const std::ptrdiff_t x = step_start(i, width, kRowStep);
        const PlannedEight low = plan_eight<kWindows>(axis, x, source_length);
        const PlannedEight high = plan_eight<kWindows>(axis, x + 8, source_length);
        if (!low.fits || !high.fits || !plan_weights(axis, x, weights + i * kRowStep)) return false;
        store_shuffles<kWindows>(shuffles + i * kWindows * kWindow, low, high);
        for (const __m256i& eight : {low.windows, high.windows}) {
            *windows++ = _mm256_extract_epi32(eight, 0);
            if constexpr (kWindows == 4) *windows++ = _mm256_extract_epi32(eight, 4);
        }
    }
    return true;
}

GLIOFED_AVX2_INLINE void store_levels(std::uint8_t* out, __m256i levels) {
    store128(out, _mm_packus_epi16(_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1)));
}

// All weights are a half, see resize_scalar.
GLIOFED_AVX2 void halve(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width) {
    const __m256i ones = _mm256_set1_epi8(1);
    const std::ptrdiff_t steps = num_steps(width, kRowStep);
    for (std::ptrdiff_t y = 0; y < height; ++y) {
        for (std::ptrdiff_t i = 0; i < steps; ++i) {
            const std::ptrdiff_t x = step_start(i, width, kRowStep);
            const __m256i upper = _mm256_maddubs_epi16(load256(image.row(2 * y) + 2 * x), ones);
            const __m256i lower = _mm256_maddubs_epi16(load256(image.row(2 * y + 1) + 2 * x), ones);
            const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(upper, lower), _mm256_set1_epi16(2));
            store_levels(out + y * width + x, _mm256_srli_epi16(sum, 2));
        }
    }
}

// Both source rows of an output row are interpolated in registers and joined at once: anew for each output row, which
// costs less than to keep them in memory.
template <std::ptrdiff_t kWindows>
GLIOFED_AVX2 void resize_rows(const GrayView& image, const ResizeBuffers& buffers, std::uint8_t* out,
                              std::ptrdiff_t height, std::ptrdiff_t width) {
    const LinearAxis& y_axis = buffers.y_axis;
    const PlanTables plan = tables_of(buffers.plan);
    const std::ptrdiff_t steps = num_steps(width, kRowStep);
    for (std::ptrdiff_t y = 0; y < height; ++y, out += width) {
        const auto k = static_cast<std::size_t>(y);
        const std::uint8_t* lower = image.row(y_axis.index_lower[k]);
        const std::uint8_t* upper = image.row(y_axis.index_upper[k]);
        const __m256i weight_lower = _mm256_set1_epi16(y_axis.weight_lower[k]);
        const __m256i weight_upper = _mm256_set1_epi16(y_axis.weight_upper[k]);
        for (std::ptrdiff_t i = 0; i < steps; ++i) {
            const PlanStep<kWindows> step = PlanStep<kWindows>::load(plan, i);
            const __m256i levels =
                blend(interpolate(lower, step), interpolate(upper, step), weight_lower, weight_upper);
            store_levels(out + step_start(i, width, kRowStep), levels);
        }
    }
}

}  // namespace

void plan_row(const LinearAxis& axis, std::ptrdiff_t source_length, RowPlan& plan) {
    const auto width = static_cast<std::ptrdiff_t>(axis.index_lower.size());
    plan.window = 0;
    plan.num_groups = num_steps(width, kRowStep);
    if (width < kRowStep || source_length < kWindow) return;
    if (plan_steps<2>(axis, source_length, plan)) {
        plan.window = 2 * kWindow;
    } else if (plan_steps<4>(axis, source_length, plan)) {
        plan.window = 4 * kWindow;
    }
}

}  // namespace avx2

void resize_avx2(const GrayView& image, std::uint8_t* out, std::ptrdiff_t height, std::ptrdiff_t width,
                 ResizeBuffers& buffers) {
    if (image.height == 2 * height && image.width == 2 * width && width >= avx2::kRowStep) {
        avx2::halve(image, out, height, width);
        return;
    }
    if (buffers.x_axis.fit(image.width, width, EdgeRule::kClampWeight)) {
        avx2::plan_row(buffers.x_axis, image.width, buffers.plan);
    }
    if (buffers.plan.window == 0) {
        resize_scalar(image, out, height, width, buffers);
        return;
    }
    buffers.y_axis.fit(image.height, height, EdgeRule::kClampIndex);
    const auto resize = buffers.plan.window == 2 * avx2::kWindow ? &avx2::resize_rows<2> : &avx2::resize_rows<4>;
    resize(image, buffers, out, height, width);
}

}  // namespace gliofed
