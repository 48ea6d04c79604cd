#pragma once
// Bilinear interpolation along a row, 32 outputs at a time: shared by the ops `resize` and `colour`, and inlined into
// them, for a call a row would cost a tenth of the work.

#include <cstddef>
#include <cstdint>

#include "cpu/avx512.h"
#include "resize.h"

namespace gliofed::avx512 {

inline constexpr std::ptrdiff_t kGroup = 32;

// Prepares an axis: plan.window says how many bytes (64 or 128) a group's outputs are gathered from, and is 0 for axes
// that this way cannot interpolate.
void plan_row(const LinearAxis& axis, RowPlan& plan);

// The arithmetic of resize_row_scalar, see exact_in_16_bits() in rows_avx512.cpp.
GLIOFED_AVX512_INLINE __m512i interpolate(__m512i pairs, __m512i weights) {
    const __m512i sum = _mm512_maddubs_epi16(pairs, _mm512_set1_epi16(0x4040));                            // 64 64
    const __m512i half = _mm512_maddubs_epi16(pairs, _mm512_set1_epi16(0x40C0));                           // -64 64
    return _mm512_add_epi16(sum, _mm512_mulhi_epi16(_mm512_add_epi16(half, half), weights));
}

struct Group {
    const std::uint8_t* from;
    std::ptrdiff_t left;  // bytes of the source from there on
    __m512i index;
    __m512i weights;
};

GLIOFED_AVX512_INLINE Group group_at(const std::uint8_t* source, std::ptrdiff_t source_length, const RowPlan& plan,
                                     std::ptrdiff_t group) {
    const std::int32_t base = plan.bases.data()[group];
    return {source + base, source_length - base, _mm512_load_si512(plan.indices.data() + 2 * kGroup * group),
            _mm512_load_si512(plan.weights.data() + kGroup * group)};
}

template <std::ptrdiff_t kWindow>
GLIOFED_AVX512_INLINE __m512i interpolate_whole(const std::uint8_t* from, __m512i index, __m512i weights) {
    const __m512i near = _mm512_loadu_si512(from);
    if constexpr (kWindow == 64) return interpolate(_mm512_permutexvar_epi8(index, near), weights);
    return interpolate(_mm512_permutex2var_epi8(near, index, _mm512_loadu_si512(from + 64)), weights);
}

template <std::ptrdiff_t kWindow>
GLIOFED_AVX512_INLINE __m512i interpolate_part(const Group& at) {
    const __m512i near = _mm512_maskz_loadu_epi8(first_lanes(at.left), at.from);
    if constexpr (kWindow == 64) return interpolate(_mm512_permutexvar_epi8(at.index, near), at.weights);
    const __m512i far = _mm512_maskz_loadu_epi8(first_lanes(at.left - 64), at.from + 64);
    return interpolate(_mm512_permutex2var_epi8(near, at.index, far), at.weights);
}

template <std::ptrdiff_t kWindow>
GLIOFED_AVX512_INLINE __m512i interpolate_at(const Group& at) {
    if (at.left < kWindow) return interpolate_part<kWindow>(at);
    return interpolate_whole<kWindow>(at.from, at.index, at.weights);
}

// Both rows that an output row lies between.
struct RowBlend {
    const std::uint8_t* lower;
    const std::uint8_t* upper;
    std::int16_t weight_lower;
    std::int16_t weight_upper;
};

// Interpolates both along x and joins them as blend_rows does: rows in registers cost less to interpolate anew than to
// keep. Reads nothing beyond the `source_length` bytes of either, writes `length` bytes.
template <std::ptrdiff_t kWindow>
GLIOFED_AVX512_INLINE void resize_row(const RowBlend& rows, std::ptrdiff_t source_length, const RowPlan& plan,
                                      std::uint8_t* out, std::ptrdiff_t length) {
    const __m512i weight_lower = _mm512_set1_epi16(rows.weight_lower);
    const __m512i weight_upper = _mm512_set1_epi16(rows.weight_upper);
    for (std::ptrdiff_t group = 0; group < plan.num_groups; ++group) {
        Group at = group_at(rows.lower, source_length, plan, group);
        const __m512i lower = _mm512_mulhi_epi16(interpolate_at<kWindow>(at), weight_lower);
        at.from += rows.upper - rows.lower;
        const __m512i upper = _mm512_mulhi_epi16(interpolate_at<kWindow>(at), weight_upper);
        const __m512i sum = _mm512_add_epi16(_mm512_add_epi16(lower, upper), _mm512_set1_epi16(2));
        const auto valid = static_cast<__mmask32>(first_lanes(length - kGroup * group));
        _mm256_mask_storeu_epi8(out + kGroup * group, valid, _mm512_cvtepi16_epi8(_mm512_srli_epi16(sum, 2)));
    }
}

// Three rows of our own along x, in units of 1/128 level, whole groups at a time: `rows`, `row_stride` apart, are
// aligned and have room for multiples of 32. The sources are `source_stride` apart with 128 bytes to spare behind the
// last.
template <std::ptrdiff_t kWindow>
GLIOFED_AVX512_INLINE void resize_three_rows(const std::uint8_t* source, std::ptrdiff_t source_stride,
                                             const RowPlan& plan, std::int16_t* rows, std::ptrdiff_t row_stride) {
    for (std::ptrdiff_t group = 0; group < plan.num_groups; ++group) {
        const Group at = group_at(source, source_stride, plan, group);
        std::int16_t* to = rows + kGroup * group;
        _mm512_store_si512(to, interpolate_whole<kWindow>(at.from, at.index, at.weights));
        _mm512_store_si512(to + row_stride, interpolate_whole<kWindow>(at.from + source_stride, at.index, at.weights));
        _mm512_store_si512(to + 2 * row_stride,
                           interpolate_whole<kWindow>(at.from + 2 * source_stride, at.index, at.weights));
    }
}

}  // namespace gliofed::avx512
