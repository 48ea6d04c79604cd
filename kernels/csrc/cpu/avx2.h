#pragma once
// What the AVX2 twins share. Not for other files: everything here needs a CPU that dispatch.h calls kAvx2.

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "resize.h"

// On each function rather than on the file: shared inline functions stay compiled for the baseline CPU. Aligned,
// because the same loop was up to 1.5 times slower where the linker happened to put it across cache lines.
#define GLIOFED_AVX2 __attribute__((target("avx2,fma,bmi,bmi2"), aligned(64)))
#define GLIOFED_AVX2_INLINE __attribute__((target("avx2,fma,bmi,bmi2"), always_inline)) static inline

namespace gliofed::avx2 {

// Rows are walked in steps of whole vectors. Where the length is no multiple, the last step moves back and does
// some elements twice, so that nothing outside the row is read or written. The length is at least one step.
inline constexpr std::ptrdiff_t num_steps(std::ptrdiff_t length, std::ptrdiff_t step) {
    return (length + step - 1) / step;
}
inline constexpr std::ptrdiff_t step_start(std::ptrdiff_t i, std::ptrdiff_t length, std::ptrdiff_t step) {
    return std::min(i * step, length - step);
}

GLIOFED_AVX2_INLINE __m128i load128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
GLIOFED_AVX2_INLINE __m256i load256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
GLIOFED_AVX2_INLINE void store128(void* to, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(to), value); }
GLIOFED_AVX2_INLINE void store256(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

// The low half from `low`, the high half from `high`.
GLIOFED_AVX2_INLINE __m256i load_halves(const void* low, const void* high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(low)), load128(high), 1);
}

// The x pass of `resize` goes in steps of this many outputs.
inline constexpr std::ptrdiff_t kRowStep = 16;
inline constexpr std::ptrdiff_t kWindow = 16;  // neighbouring outputs take their source pixels from so many bytes

// Prepares an axis that has the edge rule of the x pass, kClampWeight. plan.window says how many bytes a step reads:
// two windows, one for eight outputs each, or four where the source pixels lie further apart. It is 0 for axes that
// this way cannot interpolate: fewer outputs than a step, fewer source pixels than a window, more than about 4.6
// source pixels for an output, or a pair of weights that does not suit `interpolate`.
void plan_row(const LinearAxis& axis, std::ptrdiff_t source_length, RowPlan& plan);

// Copied before a loop, because the compiler must take every row that is written for part of the plan.
struct PlanTables {
    const std::int32_t* windows;
    const std::uint8_t* shuffles;
    const std::int16_t* weights;
};
inline PlanTables tables_of(const RowPlan& plan) {
    return {plan.bases.data(), plan.indices.data(), plan.weights.data()};
}

// Of a step: where its windows begin, the bytes of each output's two pixels in them, and the weights.
template <std::ptrdiff_t kWindows>
struct PlanStep;

template <>
struct PlanStep<2> {
    std::ptrdiff_t windows[2];
    __m256i shuffle;
    __m256i weights;

    GLIOFED_AVX2_INLINE PlanStep load(const PlanTables& plan, std::ptrdiff_t i) {
        const std::int32_t* windows = plan.windows + 2 * i;
        return {{windows[0], windows[1]}, load256(plan.shuffles + 32 * i), load256(plan.weights + 16 * i)};
    }
    GLIOFED_AVX2_INLINE __m256i pairs(const PlanStep& step, const std::uint8_t* source) {
        return _mm256_shuffle_epi8(load_halves(source + step.windows[0], source + step.windows[1]), step.shuffle);
    }
};

template <>
struct PlanStep<4> {
    std::ptrdiff_t windows[4];
    __m256i even_shuffle;  // for outputs 0-3 and 8-11, zero elsewhere
    __m256i odd_shuffle;
    __m256i weights;

    GLIOFED_AVX2_INLINE PlanStep load(const PlanTables& plan, std::ptrdiff_t i) {
        const std::int32_t* windows = plan.windows + 4 * i;
        const std::uint8_t* shuffles = plan.shuffles + 64 * i;
        return {{windows[0], windows[1], windows[2], windows[3]}, load256(shuffles), load256(shuffles + 32),
                load256(plan.weights + 16 * i)};
    }
    GLIOFED_AVX2_INLINE __m256i pairs(const PlanStep& step, const std::uint8_t* source) {
        const __m256i even = load_halves(source + step.windows[0], source + step.windows[2]);
        const __m256i odd = load_halves(source + step.windows[1], source + step.windows[3]);
        return _mm256_or_si256(_mm256_shuffle_epi8(even, step.even_shuffle),
                               _mm256_shuffle_epi8(odd, step.odd_shuffle));
    }
};

// The arithmetic of resize_row_scalar: with weights 2048 - w and w, (a * (2048 - w) + b * w) >> 4 is, exactly,
//   64 * (a + b) + ((128 * (b - a) * (32 * (w - 1024))) >> 16),
// and every part of it fits 16 bits.
template <std::ptrdiff_t kWindows>
GLIOFED_AVX2_INLINE __m256i interpolate(const std::uint8_t* source, const PlanStep<kWindows>& step) {
    const __m256i pairs = PlanStep<kWindows>::pairs(step, source);
    const __m256i sum = _mm256_maddubs_epi16(pairs, _mm256_set1_epi16(0x4040));   // 64 64
    const __m256i half = _mm256_maddubs_epi16(pairs, _mm256_set1_epi16(0x40C0));  // -64 64
    return _mm256_add_epi16(sum, _mm256_mulhi_epi16(_mm256_add_epi16(half, half), step.weights));
}

// blend_rows for sixteen pixels, not yet narrowed to bytes.
GLIOFED_AVX2_INLINE __m256i blend(__m256i lower, __m256i upper, __m256i weight_lower, __m256i weight_upper) {
    const __m256i from_lower = _mm256_mulhi_epi16(lower, weight_lower);
    const __m256i sum = _mm256_add_epi16(from_lower, _mm256_mulhi_epi16(upper, weight_upper));
    return _mm256_srli_epi16(_mm256_add_epi16(sum, _mm256_set1_epi16(2)), 2);
}

}  // namespace gliofed::avx2
