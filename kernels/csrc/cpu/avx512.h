#pragma once
// What the AVX-512 twins share. Functions carry the target attribute one by one: were whole files compiled for a
// newer CPU, the linker could keep their copy of an inline function for everybody.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define GLIOFED_AVX512_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx2,fma,bmi,bmi2"
// Aligned, because where the linker happens to put a hot loop would else decide a third of its speed.
#define GLIOFED_AVX512 __attribute__((target(GLIOFED_AVX512_TARGET), aligned(64)))
#define GLIOFED_AVX512_INLINE __attribute__((target(GLIOFED_AVX512_TARGET), always_inline)) inline

namespace gliofed::avx512 {

// Bits of the first min(count, 64) lanes; none for a count below one.
inline std::uint64_t first_lanes(std::ptrdiff_t count) {
    if (count >= 64) return ~std::uint64_t{0};
    return count < 1 ? 0 : (std::uint64_t{1} << count) - 1;
}

// A table of 256 bytes in four registers.
struct ByteTable {
    __m512i quarter[4];
};

GLIOFED_AVX512_INLINE ByteTable load_table(const std::uint8_t* table) {
    return {{_mm512_load_si512(table), _mm512_load_si512(table + 64), _mm512_load_si512(table + 128),
             _mm512_load_si512(table + 192)}};
}

GLIOFED_AVX512_INLINE __m512i look_up(const ByteTable& table, __m512i index) {
    const __m512i lower = _mm512_permutex2var_epi8(table.quarter[0], index, table.quarter[1]);
    const __m512i upper = _mm512_permutex2var_epi8(table.quarter[2], index, table.quarter[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper);
}

// 64 float32 from four planes of their bytes. Of each 128-bit lane of the planes, bytes 4k to 4k + 3 become the
// same lane of vector k.
struct Floats {
    __m512 quarter[4];
};

GLIOFED_AVX512_INLINE Floats join_bytes(__m512i byte0, __m512i byte1, __m512i byte2, __m512i byte3) {
    const __m512i low01 = _mm512_unpacklo_epi8(byte0, byte1);
    const __m512i high01 = _mm512_unpackhi_epi8(byte0, byte1);
    const __m512i low23 = _mm512_unpacklo_epi8(byte2, byte3);
    const __m512i high23 = _mm512_unpackhi_epi8(byte2, byte3);
    return {{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23)),
             _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23)),
             _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23)),
             _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23))}};
}

}  // namespace gliofed::avx512
