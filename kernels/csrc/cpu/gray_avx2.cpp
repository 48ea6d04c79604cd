#include "gray.h"

#include "avx2.h"

namespace gliofed {
namespace avx2 {
namespace {

constexpr std::ptrdiff_t kStep = 32;

// Pairs of 16 bits for multiply-add: first and second channel, third channel and one (which brings the half that
// rounds).
struct Weights {
    __m256i first_second;
    __m256i third_half;
};

std::int32_t pair(int low, int high) { return static_cast<std::int32_t>(low | (high << 16)); }

GLIOFED_AVX2 Weights weights_of(ChannelOrder order) {
    const bool bgr = order == ChannelOrder::kBgr;
    const int first = bgr ? kGrayWeightBlue : kGrayWeightRed;
    const int third = bgr ? kGrayWeightRed : kGrayWeightBlue;
    return {_mm256_set1_epi32(pair(first, kGrayWeightGreen)), _mm256_set1_epi32(pair(third, 1 << (kGrayShift - 1)))};
}

// Eight pixels from exactly 24 bytes. The second load begins at byte 8, four before the pixels it is for.
GLIOFED_AVX2_INLINE __m256i gray_of_eight(const std::uint8_t* pixels, const Weights& weights) {
    const __m256i bytes = load_halves(pixels, pixels + 8);
    const __m256i first_second = _mm256_shuffle_epi8(
        bytes, _mm256_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1,  //
                                4, -1, 5, -1, 7, -1, 8, -1, 10, -1, 11, -1, 13, -1, 14, -1));
    const __m256i third = _mm256_shuffle_epi8(
        bytes, _mm256_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1,  //
                                6, -1, -1, -1, 9, -1, -1, -1, 12, -1, -1, -1, 15, -1, -1, -1));
    const __m256i third_one = _mm256_or_si256(third, _mm256_set1_epi32(1 << 16));
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(first_second, weights.first_second),
                                         _mm256_madd_epi16(third_one, weights.third_half));
    return _mm256_srli_epi32(sum, kGrayShift);
}

GLIOFED_AVX2_INLINE void gray_step(const std::uint8_t* pixels, const Weights& weights, std::uint8_t* out) {
    const __m256i low = _mm256_packs_epi32(gray_of_eight(pixels, weights), gray_of_eight(pixels + 24, weights));
    const __m256i high = _mm256_packs_epi32(gray_of_eight(pixels + 48, weights), gray_of_eight(pixels + 72, weights));
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    store256(out, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), in_order));
}

GLIOFED_AVX2 void gray_rows(const ImageView& image, std::uint8_t* out) {
    const Weights weights = weights_of(image.order);
    const std::ptrdiff_t steps = num_steps(image.width, kStep);
    for (std::ptrdiff_t y = 0; y < image.height; ++y) {
        for (std::ptrdiff_t i = 0; i < steps; ++i) {
            const std::ptrdiff_t x = step_start(i, image.width, kStep);
            gray_step(image.row(y) + 3 * x, weights, out + y * image.width + x);
        }
    }
}

}  // namespace
}  // namespace avx2

void gray_avx2(const ImageView& image, std::uint8_t* out) {
    if (image.width < avx2::kStep) {
        gray_scalar(image, out);
    } else {
        avx2::gray_rows(image, out);
    }
}

}  // namespace gliofed
