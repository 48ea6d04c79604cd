#include "cpu/avx512.h"
#include "gray.h"

namespace gliofed {
namespace {

// Bytes of 16 interleaved pixels spread to 16 groups of four: first, second, third channel, nothing.
alignas(64) constexpr std::uint8_t kSpread[64] = {
    0,  1,  2,  0, 3,  4,  5,  0, 6,  7,  8,  0, 9,  10, 11, 0, 12, 13, 14, 0, 15, 16, 17, 0,
    18, 19, 20, 0, 21, 22, 23, 0, 24, 25, 26, 0, 27, 28, 29, 0, 30, 31, 32, 0, 33, 34, 35, 0,
    36, 37, 38, 0, 39, 40, 41, 0, 42, 43, 44, 0, 45, 46, 47, 0,
};
constexpr std::uint64_t kThreeOfFour = 0x7777777777777777U;

struct Weights {
    __m512i first_and_third;
    __m512i second;
};

// Sixteen pixels: the sum of three products of 8 by 15 bits needs 23, so it is made in 32.
GLIOFED_AVX512_INLINE __m128i sixteen(const std::uint8_t* pixels, std::uint64_t valid_bytes, Weights weights) {
    const __m512i packed = _mm512_maskz_loadu_epi8(valid_bytes, pixels);
    const __m512i spread = _mm512_maskz_permutexvar_epi8(kThreeOfFour, _mm512_load_si512(kSpread), packed);
    const __m512i even = _mm512_and_si512(spread, _mm512_set1_epi16(0xFF));  // first | third channel
    const __m512i odd = _mm512_srli_epi16(spread, 8);                        // second channel | nothing
    const __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(even, weights.first_and_third),
                                         _mm512_madd_epi16(odd, weights.second));
    const __m512i half = _mm512_set1_epi32(1 << (kGrayShift - 1));
    return _mm512_cvtepi32_epi8(_mm512_srli_epi32(_mm512_add_epi32(sum, half), kGrayShift));
}

}  // namespace

GLIOFED_AVX512 void gray_avx512(const ImageView& image, std::uint8_t* out) {
    const bool bgr = image.order == ChannelOrder::kBgr;
    const int first = bgr ? kGrayWeightBlue : kGrayWeightRed;
    const int third = bgr ? kGrayWeightRed : kGrayWeightBlue;
    const Weights weights{_mm512_set1_epi32(first | third << 16), _mm512_set1_epi32(kGrayWeightGreen)};
    for (std::ptrdiff_t y = 0; y < image.height; ++y) {
        const std::uint8_t* row = image.row(y);
        for (std::ptrdiff_t x = 0; x < image.width; x += 16) {
            const std::ptrdiff_t left = image.width - x;
            const __m128i levels = sixteen(row + 3 * x, avx512::first_lanes(left < 16 ? 3 * left : 48), weights);
            _mm_mask_storeu_epi8(out + x, static_cast<__mmask16>(avx512::first_lanes(left)), levels);
        }
        out += image.width;
    }
}

}  // namespace gliofed
